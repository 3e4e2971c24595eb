"""The DAG `ingest`: each hour what the shop dropped into the landing zone becomes rows of the lake's tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from evergreen import DEFAULTS, NOTICES, RECOVERED, TABLES, PageLink
from pipeline.settings import read_settings

HELP = """
### What it does
Takes in one hour ("window") of each feed from `landing/<feed>/YYYY-MM-DD/HH/`: reads the files, types and masks
the rows, checks them, puts what cannot be used into the table `quarantine` with its reason, and replaces the
window in its table in one transaction. Running a window again is harmless: an unchanged window is no commit.

### How to backfill
**Trigger → Backfill**, choose the range up to minute 59 of its last hour (a run named 05:00 is the hour 05:00 to
06:00, and with `EVERGREEN_INGEST_MINUTE=5` that hour's run is named 05:05), choose *All runs* to take in hours that
were ingested before, and *Max Active Runs* 4. The updates learn whatever differs, once.
An hour whose files are no longer in the landing zone keeps its rows, and its run fails and says so.

### When a file comes late
A file that came after its hour was taken in is found by the next hour's run, up to as many hours later as rows may be
late (48). Its hour is taken in again first; where it breaks a critical rule, or earlier files of it are gone, it keeps
its rows, and an alert says so.
Where files are always some minutes late, have hours taken in so much later: with `EVERGREEN_INGEST_MINUTE=5` the hour
05:00 to 06:00 at 06:05, by a run that is named 05:05.

### How to run one hour, or to load history, by hand
**Trigger → Single Run** and fill in `window` (for example `2011-11-14T09:00Z`); with `until` all hours from
`window` up to there are loaded in bulk. Without `window` it is the last full hour, whatever date the run has.

### When it fails
The log names the rule, what was seen, what is allowed and what to do. Table and model are as before. The button
*Quality page* opens the result of every check. Correct the files (or the rule), then clear the task.
"""

settings = read_settings()

with DAG(
    dag_id="ingest",
    description="Takes in one hour of each feed: read, check, quarantine, publish in one transaction.",
    doc_md=HELP,
    schedule=CronDataIntervalTimetable(f"{settings.ingest_minute} * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),  # a backfill may begin before it
    end_date=settings.schedule_end,
    catchup=False,  # hours that were missed are backfilled by an operator, who sees how many they are
    max_active_runs=4,
    default_args=DEFAULTS,
    on_failure_callback=NOTICES,
    tags=["evergreen", "data"],
    params={
        "window": Param(
            None, type=["null", "string"], title="Window",
            description="The hour to take in, such as 2011-11-14T09:00Z. Empty: the last full hour.",
        ),
        "until": Param(
            None, type=["null", "string"], title="Until",
            description="Take in all hours from the window up to this one (exclusive), in bulk.",
        ),
    },
):

    # The largest hour that was measured, a million events, takes a minute; a year in bulk less than that.
    @task(outlets=list(TABLES.values()), execution_timeout=timedelta(minutes=30), multiple_outputs=False,
          on_success_callback=RECOVERED)
    def publish_windows(outlet_events: Any = None) -> list[dict[str, Any]]:
        """Reads, checks and publishes the run's windows of every feed."""
        from pipeline.alerts import raise_alert, settle_alert
        from pipeline.ingest import ingest
        from pipeline.latecomers import take_in_late
        from pipeline.quality import WindowStopped
        from pipeline.window import windows_of

        context = get_current_context()
        params, run = context["params"], context["dag_run"]
        # by its name: where a run was started by hand with an hour's date, the backfill of that hour takes it over and
        # leaves it the interval before, and its params
        by_name = run.run_type in ("scheduled", "backfill")
        first, until = (None, None) if by_name else (params["window"], params["until"])
        try:
            windows = windows_of(first, until, run.logical_date if by_name else None, run.run_after)
        except ValueError as refused:  # no retry makes an hour of it
            raise AirflowFailException(str(refused)) from refused
        settings = read_settings()
        if first is None and run.run_type != "backfill":  # these are about the hours that they name
            take_in_late(windows[0], settings)
        try:
            done = ingest(windows, settings)
        except WindowStopped as stopped:
            context["ti"].xcom_push(key="page", value=settings.page_url(stopped.page))
            raise AirflowFailException(str(stopped)) from stopped
        for one in done:
            outlet_events[TABLES[one.feed]].extra = {
                "windows": [str(windows[0]), str(windows[-1])], "table_version": one.table_version,
                "inserted": one.inserted, "changed": one.changed, "gone": one.gone,
            }
            condition = f"missing-feed-{one.feed}"
            if one.missing:
                raise_alert(settings, condition, f"No file of the feed {one.feed} came for {windows[0]}.")
            elif one.files:
                settle_alert(settings, condition)
        page = next((one.page for one in reversed(done) if one.feed == "events"), None)
        context["ti"].xcom_push(key="page", value=settings.page_url(page))
        return [one.as_json() for one in done]

    published = publish_windows()
    published.operator.operator_extra_links = (PageLink(),)
