"""The DAG `watch`: each hour an eye on what serves, how fresh and how good it is; asks for a retrain where due."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from evergreen import DEFAULTS, PageLink, retrain_requested
from pipeline.settings import read_settings

HELP = """
### What it does
Reads what the updates have measured (each window was scored before anything learnt it), compares the champion with
the plain baseline, tells how many landed hours the champion does not know yet, and writes the health page (button
*Quality page* of the task, and *Evergreen health* in the navigation).

### What it alerts on
A task without a champion, a champion that falls behind what landed, updates that are refused again and again, a
champion below the plain baseline. One alert when a condition begins, none while it lasts. The last of these also asks
for a full retrain.
"""

settings = read_settings()

with DAG(
    dag_id="watch",
    description="Freshness, quality against the baseline, refusals; the health page; asks for a retrain.",
    doc_md=HELP,
    schedule=CronTriggerTimetable("50 * * * *", timezone="UTC"),  # after ingest (00) and the sweep of updates (30)
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    tags=["evergreen", "health"],
):

    @task(execution_timeout=timedelta(minutes=10))
    def look() -> dict[str, Any]:
        """Looks at every task, raises and settles alerts, writes the health page."""
        from pipeline.watch import watch

        settings = read_settings()
        seen = watch(settings)
        get_current_context()["ti"].xcom_push(key="page", value=settings.page_url(seen["page"]))
        return seen

    seen = look()
    seen.operator.operator_extra_links = (PageLink(),)

    for name in settings.tasks:

        @task(task_id=f"ask_for_retrain_{name}", outlets=[retrain_requested(name)],
              execution_timeout=timedelta(minutes=5))
        def ask_for_retrain(found: dict[str, Any], name: str) -> str:
            """Wakes the retrain if the watch asks for one."""
            if name not in found["retrain"]:
                raise AirflowSkipException(f"No retrain of {name} is due.")
            return str(found["retrain"][name])

        ask_for_retrain(seen, name)
