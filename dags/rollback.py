"""The DAG `rollback`: an operator puts an earlier model version back in service, with a reason for the log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from evergreen import DEFAULTS, NOTICES, RECOVERED
from pipeline.settings import read_settings

HELP = """
### What it does
Makes an earlier version the champion again. Consumers of `models:/evergreen-<task>@champion` get it at their next
load. The table `decisions` keeps who did it and why.

### How
**Trigger → Single Run**: choose the task, leave the version empty for the one that served before, and say why.
The next update starts from the restored champion and learns everything since.
"""

settings = read_settings()

with DAG(
    dag_id="rollback",
    description="By hand: champion back to an earlier version, audited.",
    doc_md=HELP,
    schedule=None,
    max_active_runs=1,
    default_args=DEFAULTS,
    on_failure_callback=NOTICES,
    tags=["evergreen", "model", "by hand"],
    params={
        "task": Param(settings.tasks[0], type="string", enum=list(settings.tasks), title="Task"),
        "version": Param(
            None, type=["null", "integer"], minimum=1, title="Version",
            description="The version that shall serve. Empty: the one that served before.",
        ),
        "why": Param("", type="string", minLength=3, title="Why", description="For the log."),
    },
):

    @task(execution_timeout=timedelta(minutes=10), on_success_callback=RECOVERED)
    def roll_back() -> dict[str, Any]:
        """Moves the champion and appends the move to the log."""
        from pipeline.registry import open_registry
        from pipeline.registry_errors import RegistryError

        context = get_current_context()
        params, run = context["params"], context["dag_run"]
        try:
            done = open_registry(read_settings()).rollback(
                params["task"], params["version"], who=run.triggering_user_name or "airflow", why=params["why"],
                decided_at=run.start_date,  # the same in a retry, which therefore does nothing twice
            )
        except RegistryError as refused:  # somebody waits, and the same would be refused again
            raise AirflowFailException(str(refused)) from refused
        return {"champion_before": done.champion_before, "champion_after": done.champion_after}

    roll_back()
