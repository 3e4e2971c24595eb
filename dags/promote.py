"""The DAG `promote`: an operator puts a model version in service that the gate did not promote, by name and audited."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

from evergreen import DEFAULTS, NOTICES, RECOVERED
from pipeline.settings import read_settings

HELP = """
### What it does
Makes a version the champion though the gate held or rejected it: after a change of schema on purpose, when the champion
cannot be compared with any more, or where you know better. The version must load and answer in a fresh process all the
same. The table `decisions` keeps who forced it and why.

### How
**Trigger → Single Run**: choose the task, name the version (MLflow and the health page list them) and say why. The next
update starts from it. `rollback` undoes it.
"""

settings = read_settings()

with DAG(
    dag_id="promote",
    description="By hand: a version that the gate did not promote becomes champion, by name and audited.",
    doc_md=HELP,
    schedule=None,
    max_active_runs=1,
    default_args=DEFAULTS,
    on_failure_callback=NOTICES,
    tags=["evergreen", "model", "by hand"],
    params={
        "task": Param(settings.tasks[0], type="string", enum=list(settings.tasks), title="Task"),
        "version": Param(None, type="integer", minimum=1, title="Version", description="The version that shall serve."),
        "why": Param(None, type="string", minLength=3, title="Why", description="For the log."),
    },
):

    @task(execution_timeout=timedelta(minutes=15), on_success_callback=RECOVERED)
    def promote_by_force() -> dict[str, Any]:
        """Moves the champion and appends the move to the log."""
        from pipeline.champion import forced
        from pipeline.registry import open_registry
        from pipeline.registry_errors import RegistryError

        context = get_current_context()
        params, run = context["params"], context["dag_run"]
        try:
            done = forced(
                open_registry(read_settings()), params["task"], params["version"],
                who=run.triggering_user_name or "airflow", why=params["why"], decided_at=run.start_date,
            )
        except RegistryError as refused:  # somebody waits, and the same would be refused again
            raise AirflowFailException(str(refused)) from refused
        return {"champion_before": done.champion_before, "champion_after": done.champion_after}

    promote_by_force()
