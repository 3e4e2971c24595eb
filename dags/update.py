"""The DAGs `update_<task>`: what a table gained since the champion learnt is learnt, judged and, if good, served."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from evergreen import DEFAULTS, NOTICES, RECOVERED, TABLES, pending
from pipeline.settings import read_settings
from pipeline.tasks.catalogue import entry

HELP = """
### What it does
Compares the version of the table `{table}` with the champion's ledger and learns the difference, from the last
checkpoint in MLflow, with replayed old examples beside it. Both models are scored on the same validation examples;
the gate promotes, holds or rejects, and says why in the model version's tags and in the table `decisions`.

### When it runs
Woken by each ingest (also by a backfill), and every hour at half past in case a wake-up was lost; one at a time.
With nothing to learn it skips. Trigger it by hand whenever you like: it learns nothing twice.

### When nothing is promoted
*hold* means too little evidence, *reject* means shown to be worse; both consume nothing: the next update learns the
same rows again together with the newer ones. A range that was rejected three times is set aside and reported.
"""


def update_dag(name: str) -> None:
    """The DAG of one task."""
    table = entry(name).table
    with DAG(
        dag_id=f"update_{name}",
        description=f"Fine-tunes evergreen-{name} on what {table} gained, and promotes it if it is not worse.",
        doc_md=HELP.format(table=table),
        schedule=AssetOrTimeSchedule(
            # a wake-up can be lost while a run is active (airflow issue 56050): the sweep finds what was left
            timetable=CronTriggerTimetable("30 * * * *", timezone="UTC"), assets=(TABLES[table] | pending(name)),
        ),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS,
        on_failure_callback=NOTICES,
        tags=["evergreen", "model", name],
    ):

        @task(execution_timeout=timedelta(minutes=5))
        def plan() -> dict[str, Any]:
            """What there is to learn; skips the rest where there is nothing."""
            from pipeline import updating

            found = updating.plan(name, read_settings())
            if "nothing_because" in found:
                raise AirflowSkipException(found["nothing_because"])
            return found

        # An update of an hour takes half a minute here; of a bulk load that was never learnt, as long as a retrain.
        @task(pool="evergreen_learning", execution_timeout=timedelta(hours=2))
        def learn(planned: dict[str, Any]) -> dict[str, Any]:
            """Trains, scores both models, decides and registers the challenger."""
            from pipeline import updating

            return updating.update(planned, read_settings(), get_current_context()["dag_run"].start_date)

        @task(execution_timeout=timedelta(minutes=15), on_success_callback=RECOVERED)
        def promote(learnt: dict[str, Any]) -> dict[str, Any]:
            """Acts on the decision: moves the champion, or records why not."""
            from pipeline import updating

            if learnt["version"] is None:
                raise AirflowSkipException(" ".join(learnt["reasons"]))
            decided_at = get_current_context()["dag_run"].start_date
            return updating.promote(name, learnt["version"], read_settings(), decided_at)

        @task(outlets=[pending(name)], trigger_rule="none_failed", execution_timeout=timedelta(minutes=5))
        def wake_again(learnt: dict[str, Any] | None) -> None:
            """Wakes the next run if the table moved on meanwhile."""
            from pipeline import updating

            if learnt is not None and learnt["decision"] in ("cannot-score", "waits"):  # at once it would be the same
                raise AirflowSkipException(" ".join(learnt["reasons"]) + " The next hour tries again.")
            if not updating.behind(name, read_settings()):
                raise AirflowSkipException("Nothing more to learn.")

        learnt = learn(plan())
        promote(learnt) >> wake_again(learnt)


for task_name in read_settings().tasks:
    update_dag(task_name)
