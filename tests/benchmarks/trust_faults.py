"""What the loop loses when its processes, its disk, its registry or its clock fail: nothing, or it is counted here.

Every trial starts from a copy of one state, two hours before the end of a small shop's log: the hours have landed, the
champion does not know them. A fault strikes the processes that take the hours in or learn them; then they are started
again as Airflow would, without a person, and what they leave is compared row by row with a home that had no fault. The
table goes to results/FAULTS.md.

Processes are forked from one that has imported everything, so that kills fall on the work. `KILLS` in the environment
is how many there are (200); three of four strike ingest, one strikes update and promotion. `FAULTS` names those that
are tried (all; `-`: none, only the table is written anew); what became of the others stays in results/faults.json and
in the table.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipeline.ingest import ingest
from pipeline.lake import open_lake
from pipeline.registry import open_registry
from pipeline.settings import Settings
from pipeline.window import Window, windows_between
from tests.benchmarks.bench_trust import Measured
from tests.ends import copy_of, end_of, half_registered
from tests.killed import Worker, forked
from tests.price_shop import TASK, first_champion, know_price_task, price_settings, simulated, update_once
from tests.same_tables import rows_differing

PAGE = Path(__file__).with_name("results") / "FAULTS.md"
OUTCOMES = PAGE.with_name("faults.json")
SEED = 5
KNOWN_HOURS, NEW_HOURS = 22, 2
EVENTS_PER_HOUR = 150  # enough validation users for the gate to promote: the kills are to strike a promotion
KILLS_A_TRIAL = 6  # then the trial's home is let finish and looked at; each start goes on from what the last one left
TRIES = 3  # of a task by Airflow: once and two retries (dags/evergreen.py)
_PATIENCE_SECONDS = 900.0


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        fault: what was done.
        happened: what was seen.
        tried: how often.
        lost, doubled: rows that a table lacks or has too many, after the recovery.
        half: versions, aliases and parts of the end state that are not whole or not as without the fault.
        seconds: the longest recovery: the run that completes everything, from its start.
    """

    fault: str
    happened: str
    tried: int = 1
    lost: int = 0
    doubled: int = 0
    half: int = 0
    seconds: float = 0.0


@dataclass
class Stage:
    """The state from which every trial starts, and how it should end.

    Attributes:
        folder: where trials have their homes.
        origin: the home from which they are copied; its landing zone and its artifacts are everybody's.
        taken: the same with the new hours taken in, not learnt.
        calm: the same with them learnt.
        new: the hours.
    """

    folder: Path
    origin: Settings
    taken: Settings
    calm: Settings
    new: list[Window]
    _trials: int = field(default=0)

    @classmethod
    def built(cls, folder: Path) -> Stage:
        """Lands the hours, takes them in, trains, learns: once without any fault."""
        shop = simulated(SEED, KNOWN_HOURS + NEW_HOURS, EVENTS_PER_HOUR)
        windows = list(windows_between(shop.first, shop.last))[: KNOWN_HOURS + NEW_HOURS]
        origin = price_settings(folder / "origin")
        shop.land(windows, Path(origin.landing))
        ingest(windows[:KNOWN_HOURS], origin, report=lambda line: None)
        first_champion(origin)
        return cls._from(folder, origin, windows[KNOWN_HOURS:])

    @classmethod
    def _from(cls, folder: Path, origin: Settings, new: list[Window]) -> Stage:
        stage = cls(folder, origin, origin, origin, new)
        stage.taken = stage.trial()
        take_in(stage.taken, new)
        stage.calm = stage.trial(of=stage.taken)
        update_once(stage.calm)
        if (done := open_registry(stage.calm).decisions(TASK).to_pylist()[-1])["action"] != "promote":
            raise RuntimeError(f"The stage's update must be promoted for kills to strike a promotion; received {done}")
        return stage

    def trial(self, of: Settings | None = None, home: Path | None = None) -> Settings:
        """A home of its own in the state of `origin`, or of another."""
        self._trials += 1
        settings = price_settings(home or self.folder / f"trial-{self._trials}", Path(self.origin.landing))
        copy_of((of or self.origin).home, settings.home)
        return settings

    def of_tables(self, fault: str, happened: str, settings: Settings) -> Outcome:
        """Takes the new hours in once more and compares the tables."""
        began = time.monotonic()
        take_in(settings, self.new)
        seconds = time.monotonic() - began
        wrong = rows_differing(open_lake(settings), open_lake(self.taken)).values()
        return Outcome(
            fault, happened, lost=sum(lacking for lacking, _ in wrong), doubled=sum(more for _, more in wrong),
            seconds=seconds,
        )

    def of_model(self, fault: str, happened: str, settings: Settings) -> Outcome:
        """Learns what is left and compares versions, aliases, tags, log, quality and weights."""
        began = time.monotonic()
        update_once(settings)
        seconds = time.monotonic() - began
        seen, wanted = end_of(TASK, settings), end_of(TASK, self.calm)
        differing = sorted(part for part in wanted if seen[part] != wanted[part])
        if differing:
            happened += f"; differs: {', '.join(differing)}"
        return Outcome(fault, happened, half=len(differing), seconds=seconds)


def take_in(settings: Settings, windows: list[Window]) -> None:
    """Ingests quietly; a function of a module, so that it can run in a process of its own."""
    ingest(windows, settings, report=lambda line: None)


def together(fault: str, happened: str, outcomes: list[Outcome]) -> Outcome:
    """Several outcomes of the same fault as one."""
    sums = {name: sum(getattr(one, name) for one in outcomes) for name in ("lost", "doubled", "half")}
    return Outcome(fault, happened, len(outcomes), **sums, seconds=max(one.seconds for one in outcomes))


# -- kill -9 --------------------------------------------------------------------------------------------------


def killed_while_taking_in(stage: Stage, kills: int, draw: random.Random) -> Outcome:
    """kill -9 of ingest at random moments of its whole duration."""
    half_published: list[str] = []

    def look(settings: Settings) -> None:
        half_published.extend(_half_published(stage, settings))

    outcome = _killed(
        stage, kills, draw, stage.trial, lambda home, log: forked(take_in, home, stage.new, log=log),
        look, lambda happened, home: stage.of_tables("kill -9 of ingest", happened, home),
    )
    return replace(outcome, half=outcome.half + len(half_published))


def _half_published(stage: Stage, settings: Settings) -> list[str]:
    """Tables of which a reader would see some rows of the call and not the others, right after a kill."""
    found = []
    for feed in ("items", "events", "messages"):
        before, after = (open_lake(home).version(feed) for home in (stage.origin, stage.taken))
        if open_lake(settings).version(feed) not in (before, after):
            found.append(feed)
    return found


def killed_while_learning(stage: Stage, kills: int, draw: random.Random) -> Outcome:
    """kill -9 of update and promotion, the process that verifies the version included."""
    return _killed(
        stage, kills, draw, lambda: stage.trial(of=stage.taken), lambda home, log: forked(update_once, home, log=log),
        lambda home: None, lambda happened, home: stage.of_model("kill -9 of update and promotion", happened, home),
    )


def _killed(
    stage: Stage, kills: int, draw: random.Random, home_of: Callable[[], Settings],
    start: Callable[[Settings, Path], Worker], look: Callable[[Settings], None],
    end: Callable[[str, Settings], Outcome],
) -> Outcome:
    """Trials of a few kills each until there were as many as wanted; the outcomes together."""
    calm = home_of()
    forked(time.sleep, 0, log=stage.folder / "calm.log").ended()  # the first fork waits for the imports
    began = time.monotonic()
    process = start(calm, stage.folder / "calm.log")
    if process.ended(_PATIENCE_SECONDS) != 0:
        raise RuntimeError(f"Without a kill the process must succeed: {process.said[-2000:]}")
    seconds, done, outcomes = time.monotonic() - began, 0, []
    while done < kills:
        settings, of_trial = home_of(), 0
        for _ in range(min(KILLS_A_TRIAL, kills - done)):
            process = start(settings, settings.home / "log")
            # a machine that has become quicker ends before a moment near the end; such a start is no kill
            if process.ended(draw.uniform(0, 0.9 * seconds)) is None:
                process.kill()
                of_trial += 1
            look(settings)
        done += of_trial
        outcomes.append(end("", settings))
        print(f"{done} of {kills} kills, {outcomes[-1]}", flush=True)
    happened = f"moments drawn over {seconds:.1f} s of work; {len(outcomes)} homes"
    return replace(together(outcomes[0].fault, happened, outcomes), tried=done)


# -- all together ---------------------------------------------------------------------------------------------


def measure() -> Measured:
    """`faults.kills`, `faults.rows_lost`, `faults.rows_doubled`, `faults.half_registered`, over all faults."""
    from tests.benchmarks import faults

    kills, chosen = int(os.environ.get("KILLS", "200")), os.environ.get("FAULTS", "").split()
    know_price_task()
    draw = random.Random(SEED)
    tried: dict[str, Callable[[Stage], list[Outcome]]] = {
        "kills_of_ingest": lambda stage: [killed_while_taking_in(stage, kills - kills // 4, draw)],
        "kills_of_update": lambda stage: [killed_while_learning(stage, kills // 4, draw)],
        **{fault.__name__: fault for fault in faults.FAULTS},
    }
    if chosen != ["-"]:
        with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
            stage = Stage.built(Path(folder))
            for name in chosen or tried:
                found = tried[name](stage)
                print(*found, sep="\n", flush=True)
                _keep(name, [*found, _whole_registry(stage)] if name == "kills_of_update" else found)
    held = json.loads(OUTCOMES.read_text())
    outcomes = [Outcome(**one) for name in tried for one in held.get(name, [])]
    PAGE.write_text(page(outcomes))
    struck = [one for one in outcomes if one.fault.startswith("kill -9")]
    figures = {
        "faults.kills": sum(one.tried for one in struck),
        "faults.kinds": len(outcomes),
        "faults.rows_lost": sum(one.lost for one in outcomes),
        "faults.rows_doubled": sum(one.doubled for one in outcomes),
        "faults.half_registered": sum(one.half for one in outcomes),
        "faults.longest_recovery_seconds": max(one.seconds for one in outcomes),
    }
    return Measured(
        figures, (SEED,),
        "from one state each; moments of kills uniform over nine tenths of the duration of the work, in processes "
        f"forked after the imports, {KILLS_A_TRIAL} starts a home; then one run without fault, and all tables, "
        "versions, aliases, tags, decisions, quality and weights against a home without fault. Recovery is the "
        "duration of that run; Airflow starts it a minute after a failure, and the sweep within the hour",
    )


def _keep(name: str, outcomes: list[Outcome]) -> None:
    """Writes what became of a fault beside the others, which may have been tried at another time."""
    held = json.loads(OUTCOMES.read_text()) if OUTCOMES.exists() else {}
    whole = OUTCOMES.with_suffix(".part")
    whole.write_text(json.dumps(held | {name: [asdict(one) for one in outcomes]}, indent=2) + "\n")
    whole.replace(OUTCOMES)


def _whole_registry(stage: Stage) -> Outcome:
    """Whether what all trials left in the registry that they were copied from is as it was."""
    half = half_registered(open_registry(stage.origin), TASK)
    return Outcome("the registry from which all were copied", "; ".join(half) or "untouched", half=len(half))


def page(outcomes: list[Outcome]) -> str:
    """The table as Markdown."""
    lines = [
        "# What was tried, and what was lost", "",
        "Written by `make bench-trust PARTS=faults` (`KILLS=200`); how is said in",
        "[`trust_faults.py`](../trust_faults.py) and [`faults.py`](../faults.py). Lost and doubled are rows of all",
        "tables after the recovery, against a home that had no fault; *not whole* counts half-published tables,",
        "versions without all parts, and parts of the end state that differ. Recovery is the longest run that",
        "completes everything, without a person.", "",
        "| fault | times | what happened | lost | doubled | not whole | recovery, s |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.fault} | {one.tried} | {one.happened} | {one.lost} | {one.doubled} | {one.half} | {one.seconds:.1f} |"
        for one in outcomes
    ]
    return "\n".join(lines) + "\n"
