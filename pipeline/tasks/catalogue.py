"""The tasks that there are. A new one is one line here, beside its file in this folder and its network."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from pipeline.lake import Lake
from pipeline.settings import Settings, SettingsError
from pipeline.tasks.contract import Task

_TASKS = {  # name -> module and class; imported only when used, because a DAG file reads this list
    "recommend": ("pipeline.tasks.recommend", "Recommend"),
}


def task_named(name: str, settings: Settings, lake: Lake) -> Task:
    """The task `name` of an installation.

    Raises:
        SettingsError: there is no such task.
    """
    if name not in _TASKS:
        raise SettingsError(f"A task is one of {sorted(_TASKS)}; received {name!r}. Correct EVERGREEN_TASKS.")
    module, attribute = _TASKS[name]
    return cast(Task, getattr(import_module(module), attribute)(lake, settings.encoder))
