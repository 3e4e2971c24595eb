"""The DAG `watch`: each hour an eye on what serves, how fresh and how good it is; asks for a retrain where due."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from evergreen import DEFAULTS, NOTICES, RECOVERED, PageLink, retrain_requested
from pipeline.settings import read_settings

HELP = """
### What it does
Scores the champion on windows that no update has scored, counts what landed and what the champion answers, compares
the last day with the same hours before, and writes the health page (button *Health page* of the task, and *Evergreen
health* in the navigation).

### What it alerts on
Of a task: no champion, a champion that falls behind what landed, that loses against the plain baseline, that has aged,
that does not know a tenth of what is asked for, whose answers changed; updates that are refused again and again. Of a
feed: drift of its columns, hours that were never taken in, silence. `pipeline/conditions.py` has each threshold with
its reason. One alert when a condition begins, none while it lasts; it is settled when it is over.

### What it asks for
A full retrain, where a condition says so; not again within a day and a half.
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
    on_failure_callback=NOTICES,
    tags=["evergreen", "health"],
):

    @task(execution_timeout=timedelta(minutes=10), on_success_callback=RECOVERED, multiple_outputs=False)
    def look() -> dict[str, Any]:
        """Looks at every task, raises and settles alerts, writes the health page."""
        from pipeline.watch import watch

        settings, context = read_settings(), get_current_context()
        run = context["dag_run"]
        seen = watch(settings, run.start_date, run.run_id)
        context["ti"].xcom_push(key="page", value=settings.page_url(seen["page"]))
        return seen

    seen = look()
    seen.operator.operator_extra_links = (PageLink("Health page"),)

    for name in settings.tasks:

        @task(task_id=f"ask_for_retrain_{name}", outlets=[retrain_requested(name)],
              execution_timeout=timedelta(minutes=5))
        def ask_for_retrain(found: dict[str, Any], name: str, outlet_events: Any = None) -> str:
            """Wakes the retrain if the watch asks for one, and tells it why."""
            if name not in found["retrain"]:
                raise AirflowSkipException(f"No retrain of {name} is due.")
            reason = str(found["retrain"][name])
            outlet_events[retrain_requested(name)].extra = {"reason": reason}
            return reason

        ask_for_retrain(seen, name)
