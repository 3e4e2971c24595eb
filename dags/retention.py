"""The DAG `retention`: every day, files of model versions and of the lake that nobody needs any more are removed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, get_current_context, task

from evergreen import DEFAULTS, NOTICES, RECOVERED
from pipeline.settings import read_settings

HELP = """
### What it does
Removes checkpoints and packages of model versions that neither an alias nor a rollback, the gate, an open decision or
the scheme by age (all of three days, one a day for a month, one a week for a year) needs. Their entries in the registry
stay, so that `python -m pipeline.lineage` answers for them; the table `decisions` is not touched.

Removes what versions shared and none with files needs any more (a text encoder that an earlier retrain had taught).

Puts the small files of the lake together, deletes files that only old versions of tables need, takes out the vectors of
text encoders that an earlier retrain of `sentiment` had made, and removes pages of quality and lineage that are older
than `EVERGREEN_PAGES_DAYS` (90) and that nothing open needs.

### Before you rely on it
`python -m pipeline.retention --dry-run` says what would go, and what a year of hourly updates costs. To keep a version
for ever, give it an alias of your own in MLflow.
"""

with DAG(
    dag_id="retention",
    description="Daily: removes files of versions that nobody needs; lineage and the log of decisions stay.",
    doc_md=HELP,
    schedule=CronTriggerTimetable("20 3 * * *", timezone="UTC"),  # the quiet hour of most shops
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULTS,
    on_failure_callback=NOTICES,
    tags=["evergreen", "model"],
):

    @task(execution_timeout=timedelta(hours=1), on_success_callback=RECOVERED)
    def retain() -> dict[str, Any]:
        """Applies the rule; the counts are its result."""
        from pipeline import retention

        done = retention.retain(read_settings(), get_current_context()["dag_run"].start_date)
        return {
            "files_deleted": done["files_deleted"], "pages_removed": done["pages_removed"],
            "shared_removed": sorted(done["shared_removed"]), "text_vectors_removed": done["text_vectors_removed"],
            "tasks": {
                name: {"kept": len(found["kept"]), "removed": sorted(found["removed"])}
                for name, found in done["tasks"].items()
            },
        }

    retain()
