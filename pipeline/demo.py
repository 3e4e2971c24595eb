"""`make run`: a shop's history is loaded, a first model trained, then hours arrive and go through the real scheduler.

Nothing here does what the pipeline does: it lays files into the landing zone, asks Airflow to run its DAGs, watches,
and shows what came of it. It fails where the loop did not work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from pipeline import updating
from pipeline.airflow_client import AirflowClient, AirflowError
from pipeline.installation import Installation, say_where
from pipeline.installation_place import ADMIN, InstallationError, told_port
from pipeline.lake import open_lake
from pipeline.registry import RegistryError, open_registry
from pipeline.report import WindowLine, as_table, draw_quality, metric_of, pooled, window_lines
from pipeline.settings import DERIVED, REPOSITORY, SettingsError, read_settings
from pipeline.sources import Source, SourceError, open_source
from pipeline.tasks.catalogue import TASKS, entry
from pipeline.user_profiles import Profile, read_profile, sentences_of
from pipeline.window import Window, windows_between

# So many windows may wait for an update before the next one arrives: updates take in what is there, as they would
# after a backfill, and a demo need not wait for each hour's update to end.
_MOST_BEHIND = 3

# What a person waits for: about six minutes on two idle cores, where each task trains on every hour.
_HOURS, _HOURS_OF_MANY = 12, 3

# Laying files is quick; a batch is a step of the progress line.
_LANDED_AT_ONCE = 168

# Half an hour for what takes a minute or two on two idle cores: a slow or busy machine is not a fault.
_PATIENCE_SECONDS = 1800.0

# A look at the lake takes 0.4 s of a core that the updates need.
_LOOK_SECONDS = 3.0

_MARK = "demo.json"


class DemoFailed(RuntimeError):
    """The loop did not work; the message says where to look."""


@dataclass(frozen=True)
class Stream:
    """What a demo replays: the windows of the history, and those that arrive one by one."""

    source: Source
    history: tuple[Window, ...]
    arriving: tuple[Window, ...]

    @classmethod
    def of(cls, source: Source, hours: int) -> Stream:
        """The last `hours` windows with data arrive, everything before is history."""
        windows = source.windows
        if len(windows) <= hours:
            raise SourceError(f"--hours must be fewer than the {len(windows)} hours that have data; received {hours}.")
        first = windows[len(windows) - hours]
        return cls(source, tuple(windows_between(source.first, first.start)), windows[len(windows) - hours :])


class Demo:
    """One run."""

    def __init__(self, installation: Installation, stream: Stream, console: Console) -> None:
        """Takes what runs, what is replayed, and where to say so."""
        self._installation, self._stream, self._console = installation, stream, console
        self._settings = installation.settings
        self._airflow = AirflowClient(installation.airflow_url, ADMIN, installation.secrets.admin_password)
        self._started = time.monotonic()

    def run(self) -> bool:
        """Everything to its end; whether the loop worked."""
        landing = Path(self._settings.landing)
        history, rows = self._stream.history, 0
        with ThreadPoolExecutor(1) as beside:
            self._stage(f"starting PostgreSQL, MLflow and Airflow, and laying {len(history):,} hours into {landing}")
            started = beside.submit(self._installation.up, lambda line: None)
            for start in range(0, len(history), _LANDED_AT_ONCE):
                rows += self._stream.source.land(history[start : start + _LANDED_AT_ONCE], landing)
            self._stage(f"{rows:,} rows laid; waiting until Airflow answers")
            started.result()
        self._installation.log_in()
        tasks = self._settings.tasks
        learning = [f"{kind}_{task}" for task in tasks for kind in ("update", "retrain")]
        self._airflow.wait_for_dags(["ingest", "watch", *learning, *self._settings.derived])
        say_where(self._installation, self._say)
        self._load_history()
        self._stage(f"training the first model of {', '.join(tasks)} from the pretrained base")
        dags = [f"retrain_{task}" for task in tasks]
        runs = [self._airflow.trigger(dag, {"reason": "first model"}) for dag in dags]
        for dag, run in zip(dags, runs, strict=True):
            self._finish(dag, run, "learn")
        self._stage(f"{len(self._stream.arriving)} hours arrive")
        self._arrive()
        self._finish("watch", self._airflow.trigger("watch"), "look")
        verdicts = [self._conclude(task) for task in tasks]
        if "profiles" in self._settings.derived:
            self._profile()
        self._say(f"Health page: {self._settings.reports / 'health.html'}")
        return all(verdicts)

    def _load_history(self) -> None:
        history = self._stream.history
        self._stage(f"loading the history in bulk: {history[0]} to {history[-1]}")
        conf = {"window": str(history[0]), "until": str(Window(history[-1].end))}
        self._ingest(conf)

    def _arrive(self) -> None:
        """Lands each hour and has it ingested; the updates are woken by that."""
        before = Window(self._stream.history[-1].end)
        for number, window in enumerate(self._stream.arriving, 1):
            self._stream.source.land([window], Path(self._settings.landing))
            # hours in which nothing happened (a shop that is closed at night) come along with the next
            self._ingest({"window": str(before), "until": str(Window(window.end))})
            before = Window(window.end)
            behind = 0 if number == len(self._stream.arriving) else _MOST_BEHIND
            for task in self._settings.tasks:
                self._wait_for_update(task, behind, number)
                self._tell(task, window)

    def _ingest(self, conf: dict[str, str]) -> None:
        done = self._finish("ingest", self._airflow.trigger("ingest", conf), "publish_windows")
        for one in done or ():
            if one["rows_in"]:
                self._say(
                    f"  {conf['until']}  {one['feed']:9}{one['rows_in']:>9,} in {one['published']:>9,} published"
                    f"{one['quarantined']:>7,} quarantined{one['duplicates']:>7,} duplicates{one['late']:>6,} late"
                )

    def _finish(self, dag: str, run: str, task: str) -> Any:
        """Waits for a run; what its task returned."""
        with self._console.status(f"{dag} runs"):
            state = self._airflow.wait(dag, run, _PATIENCE_SECONDS)
        if state != "success":
            said = self._airflow.log(dag, run, task)
            raise DemoFailed(f"The run {run} of {dag} failed. Its log ends:\n{said[-3000:]}")
        returned = self._airflow.returned(dag, run, task)
        return json.loads(returned) if isinstance(returned, str) else returned

    def _wait_for_update(self, task: str, behind: int, arrived: int) -> None:
        """Waits until at most `behind` of the arrived windows wait for an update, or none has anything to learn."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with self._console.status(f"update_{task} runs"):
            while arrived - self._judged(task) > behind and updating.behind(task, self._settings):
                failed = [run for run in self._airflow.runs(f"update_{task}") if run["state"] == "failed"]
                if failed or time.monotonic() > deadline:
                    raise DemoFailed(f"update_{task} does not get on: {failed[:1] or 'no run ended in time'}.")
                time.sleep(_LOOK_SECONDS)

    def _judged(self, task: str) -> int:
        """How many of the arriving windows an update has decided on."""
        feed = entry(task).table
        lines = window_lines(open_lake(self._settings), task, feed, self._stream.arriving)
        done = [place for place, line in enumerate(lines, 1) if line.decision]
        # an hour in which nobody bought anything teaches nothing: it counts with the next that does
        return max(done, default=0)

    def _tell(self, task: str, window: Window) -> None:
        lines = window_lines(open_lake(self._settings), task, entry(task).table, self._stream.arriving)
        newest = [line for line in lines if line.decision]
        if newest:
            line = newest[-1]
            self._say(f"  {window}  newest decision: {line.decision} version {line.version}. {line.why}")

    def _profile(self) -> None:
        """Has the users' profiles made by the scheduler, and shows one of somebody who has bought."""
        lake, last = open_lake(self._settings), self._stream.arriving[-1]
        done = self._finish("profiles", self._airflow.trigger("profiles"), "make")
        rows = lake.arrow("user_profiles", columns=["user_id", "last_purchase"])
        self._say(f"Profiles of {len(rows):,} users up to {last}, by recommend version {done['model_version']}; one:")
        user = rows.sort_by([("last_purchase", "descending")])["user_id"][0].as_py()
        for sentence in sentences_of(cast("Profile", read_profile(lake, user))):
            self._say(f"  {sentence}")

    def _conclude(self, task: str) -> bool:
        lake = open_lake(self._settings)
        lines = window_lines(lake, task, entry(task).table, self._stream.arriving)
        metric = metric_of(lake, task)
        self._console.print(as_table(lines, metric), markup=False)
        picture = self._settings.reports / f"{task}-quality.png"
        title = f"{self._stream.source.name}: {task}, each hour scored before it is learnt"
        draw_quality(lines, metric, title, picture)
        self._say(f"Picture of quality over time: {picture}")
        faults = self._faults(task, lines)
        for fault in faults:
            self._console.print(f"NOT AS IT SHOULD BE: {fault}", style="bold red", markup=False)
        updated, never, plain = (pooled(lines, role) for role in ("champion", "never_updated", "baseline"))
        self._say(
            f"{task}: {metric} on arrival: updated {updated:.3f}, never updated {never:.3f}, "
            f"plain baseline {plain:.3f}; "
            f"{sum(line.decision == 'promote' for line in lines)} of {len(lines)} hours promoted. "
            f"{time.monotonic() - self._started:.0f} s in all."
        )
        return not faults

    def _faults(self, task: str, lines: Sequence[WindowLine]) -> list[str]:
        """What must hold when the loop has worked."""
        registry = open_registry(self._settings)
        champion = registry.champion(task)
        faults = [
            f"{line.window}: {line.rows_in} rows came, "
            f"{line.published + line.quarantined + line.duplicates} are accounted for"
            for line in lines if line.rows_in != line.published + line.quarantined + line.duplicates
        ]
        if not any(line.rows_in for line in lines):
            faults.append("no row arrived")
        if champion is None:
            faults.append(f"{task} has no champion")
        elif not any(line.decision == "promote" for line in lines):
            faults.append(f"no update of {task} was promoted")
        if pooled(lines, "champion") < pooled(lines, "baseline"):
            faults.append(f"{task} is below the plain baseline over all hours")
        return faults

    def _stage(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._started:6.1f} s] {text}", style="bold", markup=False)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the process's exit status."""
    chosen = _parser().parse_args(arguments)
    console, errors = Console(width=None if sys.stdout.isatty() else 220), Console(stderr=True)
    home = Path(os.environ.get("EVERGREEN_HOME") or REPOSITORY / ".evergreen")
    try:
        refuse_others(home)
        # a log of sales has no customer messages, and seldom the stock that demand is learnt from
        simulated = chosen.source == "simulated" and not chosen.mapping
        tasks = chosen.tasks or (",".join([*TASKS, *DERIVED]) if simulated else "recommend")
        hours = usual_hours(tasks) if chosen.hours is None else chosen.hours
        check(tasks, hours, os.environ)
        size = {"hours": hours} if simulated else {}
        with tempfile.TemporaryDirectory() as cache:  # a log is read whole before the home, which may hold it, is empty
            source = open_source(chosen.source, chosen.data, chosen.mapping, chosen.seed, Path(cache), **size)
            stream = Stream.of(source, hours)
        clear(home)
        installation = Installation(home)
        installation.remember({
            "EVERGREEN_TASKS": tasks, "EVERGREEN_SEED": str(chosen.seed),
            "EVERGREEN_ABSENT_COLUMNS": ",".join(sorted(source.absent_columns)),
            "EVERGREEN_SCHEDULE_END": str(Window(source.last)),
        })
        (home / _MARK).write_text(json.dumps({"source": source.name, "data": chosen.data, "hours": hours}))
        worked = Demo(installation, stream, console).run()
    except (DemoFailed, InstallationError, AirflowError, SourceError, SettingsError, RegistryError) as error:
        errors.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    if chosen.keep:
        console.print("It is still running; stop it with: make down")
    else:
        installation.down()
        console.print("Stopped. To look at Airflow and MLflow: make up")
    return 0 if worked else 1


def check(tasks: str, hours: int, environment: Mapping[str, str]) -> None:
    """Refuses what a demo cannot run with, before anything of an earlier one is removed.

    Raises:
        SourceError: no hour would arrive, or the landing zone is no folder.
        SettingsError: a task is unknown, or a variable of the environment is wrong.
        InstallationError: a port is none.
    """
    if hours < 1:
        raise SourceError(
            f"--hours must be at least 1; received {hours}. Correct it (HOURS= with make), or leave it out."
        )
    # a demo makes the key itself where none is told
    told = {**environment, "EVERGREEN_MASK_KEY": environment.get("EVERGREEN_MASK_KEY") or "not made yet".ljust(32)}
    settings = read_settings({"EVERGREEN_TASKS": tasks, **told})  # the environment's wins, as in the installation
    for task in (*read_settings({**told, "EVERGREEN_TASKS": tasks}).tasks, *settings.tasks):
        if task not in TASKS:
            raise SettingsError(
                f"--tasks (TASKS= with make) and EVERGREEN_TASKS must name some of {', '.join([*TASKS, *DERIVED])}; "
                f"received {task!r}. Correct it, or leave it out."
            )
    for name in ("EVERGREEN_AIRFLOW_PORT", "EVERGREEN_MLFLOW_PORT"):
        told_port(name, environment)
    if "://" in settings.landing:
        raise SourceError(
            "make run lays its hours into a folder; EVERGREEN_LANDING is an address. Leave it out here: lake and "
            "models' files may be in object storage (EVERGREEN_LAKE, EVERGREEN_ARTIFACTS)."
        )


def usual_hours(tasks: str) -> int:
    """How many hours arrive where nobody says it: of several tasks (`a,b` or `a b`) each hour takes longer."""
    return _HOURS_OF_MANY if len(tasks.replace(",", " ").split()) > 1 else _HOURS


def refuse_others(home: Path) -> None:
    """Refuses a folder that no demo has made.

    Raises:
        DemoFailed: it holds something else.
    """
    if home.exists() and any(home.iterdir()) and not (home / _MARK).exists():
        raise DemoFailed(
            f"make run starts with an empty EVERGREEN_HOME; {home} holds an installation that no demo made. "
            "Choose another folder: EVERGREEN_HOME=... make run"
        )


def clear(home: Path) -> None:
    """Makes `home` an empty folder; refuses one that no demo has made.

    Raises:
        DemoFailed: it holds something else.
    """
    refuse_others(home)
    if home.exists() and any(home.iterdir()):
        Installation(home).down()
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / _MARK).write_text("{}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo", description="Loads a shop's history, trains, then lets hours arrive.",
    )
    add = parser.add_argument
    add("--source", default="simulated", help="simulated (default), online-retail, or a mapping file (.toml)")
    add("--data", help="path or http(s) URL of the log (not for simulated)")
    add("--mapping", help="path of a mapping file; wins over --source")
    add("--hours", type=int, help=f"hours that arrive (default: {_HOURS}, with several tasks {_HOURS_OF_MANY})")
    add("--tasks", help="tasks, comma separated (default: of the simulated shop all, of a log recommend)")
    add("--seed", type=int, default=20260101, help="of everything drawn at random (default: %(default)s)")
    add("--keep", action="store_true", help="leave Airflow and MLflow running at the end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
