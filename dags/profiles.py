"""The DAG `profiles`: what is known of each user is brought up to date. It is there where EVERGREEN_TASKS names it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, get_current_context, task

from evergreen import DEFAULTS, NOTICES, RECOVERED, TABLES
from pipeline.settings import read_settings

HELP = """
### What it does
Makes the profiles of the users of whom a row came, changed or went anew: interests, price band, rhythm, recency,
segment, and from the champion of `recommend` the next categories and the vector (table `user_profiles`).
`python -m pipeline.user_profiles show USER` prints one with the events that led to it.

### When it runs
Woken by each ingest, and every hour at twenty to, when updates have promoted; one at a time. It learns nothing, so
there is no gate and no version. With nothing changed it writes nothing.

### When everybody's is made anew
The first time, when the champion is of another lineage (a full retrain), when the rules have changed, and by hand:
**Trigger → Single Run** with *Everybody's*.

### When it fails
Profiles that break `expectations/user_profiles.json` are not written; the log names the rule, the user and what to do.
"""


def profiles_dag() -> None:
    """The one DAG."""
    with DAG(
        dag_id="profiles",
        description="Makes the profiles of users who changed anew, with the events that led to them.",
        doc_md=HELP,
        schedule=AssetOrTimeSchedule(
            # a wake-up can be lost while a run is active (airflow issue 56050); and a segment changes by time alone
            timetable=CronTriggerTimetable("40 * * * *", timezone="UTC"), assets=(TABLES["events"],),
        ),
        catchup=False,
        max_active_runs=1,
        default_args=DEFAULTS,
        on_failure_callback=NOTICES,
        tags=["evergreen", "data", "profiles"],
        params={"whole": Param(False, type="boolean", title="Everybody's", description="Not only of who changed.")},
    ):

        # a million users at a thousand a second (20,000 of a simulated shop, with a champion), thrice
        @task(execution_timeout=timedelta(hours=1), on_success_callback=RECOVERED, multiple_outputs=False)
        def make() -> dict[str, Any]:
            """Brings the table up to date; the counts are its result."""
            from pipeline.user_profile_updates import update

            return update(read_settings(), whole=get_current_context()["params"]["whole"]).as_json()

        make()


if "profiles" in read_settings().derived:
    profiles_dag()
