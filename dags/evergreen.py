"""What all DAG files share: the assets that connect them, owners, retries and the failure notice."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, BaseNotifier, BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk.definitions.context import Context

TABLES = {name: Asset(name=f"evergreen_{name}", uri=f"x-evergreen://lake/{name}")
          for name in ("events", "items", "messages")}


def pending(task: str) -> Asset:
    """Emitted by an update that is still behind its table, so that it is woken again."""
    return Asset(name=f"evergreen_{task}_pending", uri=f"x-evergreen://pending/{task}")


def retrain_requested(task: str) -> Asset:
    """Emitted by the watch when a task's model shows its age."""
    return Asset(name=f"evergreen_{task}_retrain_requested", uri=f"x-evergreen://retrain/{task}")


class Notice(BaseNotifier):
    """Raises an alert for a task that failed for good."""

    def notify(self, context: Context) -> None:
        """Called by Airflow once the last retry has failed."""
        from pipeline.alerts import raise_alert
        from pipeline.settings import read_settings

        ti = context["ti"]
        error = context.get("exception")
        raise_alert(read_settings(), f"failed-{ti.dag_id}-{ti.task_id}", f"{ti.dag_id}.{ti.task_id}: {error}")


class PageLink(BaseOperatorLink):
    """A button on the task that opens the page which the task returned under `page`."""

    @property
    def name(self) -> str:
        """The button's words."""
        return "Quality page"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page's address; empty where the task has written none."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(key="page", ti_key=ti_key) or ""


# Twice, a minute apart and then longer: enough for a database or a bucket that restarts. A window that breaks an
# expectation is not retried, since the same files would break it again.
DEFAULTS: dict[str, Any] = {
    "owner": "evergreen",
    "retries": 2,
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": 2.0,
    "on_failure_callback": [Notice()],
}
