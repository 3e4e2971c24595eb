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
    """Raises an alert for a DAG that failed: one until it works again, however many of its runs fail."""

    def notify(self, context: Context) -> None:
        """Called by Airflow once a task's last retry has failed, and for a run that failed without any task's word."""
        from pipeline.alerts import raise_alert
        from pipeline.settings import read_settings

        ti, dag = context.get("ti"), context["dag"].dag_id
        said = context.get("exception") or context.get("reason")
        task = f".{ti.task_id}" if ti is not None and context.get("exception") else ""
        raise_alert(
            read_settings(), f"failed-{dag}",
            f"{dag}{task}: {said} → Look at the run {context['run_id']} in Airflow; the next that works settles this.",
        )


class Recovered(BaseNotifier):
    """Settles the alert of a DAG that works again; on the task with which its work is done."""

    def notify(self, context: Context) -> None:
        """Called by Airflow when the task has succeeded."""
        from pipeline.alerts import settle_alert
        from pipeline.settings import read_settings

        settle_alert(read_settings(), f"failed-{context['dag'].dag_id}")


class PageLink(BaseOperatorLink):
    """A button on the task that opens the page which the task returned under `page`."""

    def __init__(self, words: str = "Quality page") -> None:
        """Takes the button's words."""
        self._words = words

    @property
    def name(self) -> str:
        """The button's words."""
        return self._words

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page's address; empty where the task has written none."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_value(key="page", ti_key=ti_key) or ""


NOTICES: list[Any] = [Notice()]
RECOVERED: list[Any] = [Recovered()]

# Twice, a minute apart and then longer: enough for a database or a bucket that restarts. A window that breaks an
# expectation is not retried, since the same files would break it again.
DEFAULTS: dict[str, Any] = {
    "owner": "evergreen",
    "retries": 2,
    "retry_delay": timedelta(minutes=1),
    "retry_exponential_backoff": 2.0,
    "on_failure_callback": NOTICES,
}
