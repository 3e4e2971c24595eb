"""Whether the tables end as if everything had arrived on time and once, however the hours are taken in.

Two processes at once backfill ranges of hours in a random order of their own, each hour several times, while a third
goes on hour by hour: lands an hour, takes it in, corrects an old hour on its way, and has the model updated. What they
leave is compared, row by row, with a second home that took in the same landing zone once and in order. Then what each
update has learnt is compared with what the table gained between the versions that it names, counted from the tables
themselves and not from their change data.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.learnt import CONTEXT, HELD_OUT, SET_ASIDE, TAUGHT, Version, own_rows
from pipeline.registry import Registry, open_registry
from pipeline.schema import EVENTS
from pipeline.settings import Settings
from pipeline.sources.simulator import ShopSimulator
from pipeline.tasks.catalogue import task_named
from pipeline.updating import retrain
from pipeline.window import Window, windows_between
from tests.benchmarks.bench_trust import Measured
from tests.killed import Worker, forked
from tests.price_shop import NOW, TASK, first_champion, price_settings, rows_in_table, simulated, update_once
from tests.same_tables import TABLES, rows_differing, rows_of

SEED = 11
HOURS = 48
WORKERS = 2
LONGEST_RANGE = 8  # hours of a backfilled range
_PATIENCE_SECONDS = 3600.0  # a busy machine; a process that hangs for longer is a fault


def measure(hours: int = HOURS) -> Measured:
    """`backfill.rows_wrong`: rows that the disturbed home lacks or has too many; and rows not learnt exactly once."""
    with tempfile.TemporaryDirectory(prefix="evergreen-") as folder:
        end = disturbed(Path(folder), hours, SEED)
        wrong = rows_differing(open_lake(end.disturbed), open_lake(end.calm))
        print(f"tables that differ (rows lacking, rows too many): {wrong}", flush=True)
        figures = {
            "backfill.hours": hours,
            "backfill.rows": sum(rows_of(open_lake(end.calm), table).total() for table in TABLES),
            "backfill.rows_wrong": sum(lacking + more for lacking, more in wrong.values()),
            "backfill.windows_taken_in": end.taken_in,
            **learnt_figures(end.disturbed),
        }
    return Measured(
        figures, (SEED,),
        f"{WORKERS} processes backfill all {hours} hours twice each in random ranges of up to {LONGEST_RANGE} hours, a "
        "third lands and takes in the last quarter hour by hour, corrects an old hour and updates the model; then "
        "tables, spare rows, quarantine and window log (without version numbers and warnings about volume, which "
        "depend on the order) against a home that took the same files in once, in order. Then two updates more and a "
        "retrain; what each learnt against the tables' contents at the versions that its ledger names",
    )


@dataclass(frozen=True)
class Ended:
    """Two homes that took in the same files.

    Attributes:
        disturbed: in any order, repeatedly, several at once.
        calm: once, in order.
        taken_in: windows that the first took in, each time counted.
    """

    disturbed: Settings
    calm: Settings
    taken_in: int


def disturbed(folder: Path, hours: int, seed: int) -> Ended:
    """Lets the processes run and end, and takes the calm home's files in."""
    shop = simulated(seed, hours)
    windows = list(windows_between(shop.first, shop.last))[:hours]
    settings = price_settings(folder / "disturbed")
    calm = price_settings(folder / "calm", Path(settings.landing))
    known, late = windows[: hours // 4], windows[-(hours // 4) :]
    shop.land(windows[: -len(late)], Path(settings.landing))
    ingest(known, settings, report=lambda line: None)
    first_champion(settings)
    plans = [_ranges(windows, random.Random(seed + number)) for number in range(WORKERS)]
    log = folder / "log"
    workers = [forked(_take_in, settings, ranges, log=log) for ranges in plans]
    workers.append(forked(_go_on, settings, shop, late, windows[hours // 3], log=log))
    _all_succeed(workers)
    for start in range(0, hours, 6):  # in order; a few hours a call, which is the same and quicker
        ingest(windows[start : start + 6], calm, report=lambda line: None)
    taken_in = len(known) + len(late) + 1 + sum(len(one) for ranges in plans for one in ranges)
    _learn_the_rest(settings, shop, windows)
    return Ended(settings, calm, taken_in)


def _ranges(windows: Sequence[Window], draw: random.Random) -> list[list[Window]]:
    """All windows twice, in ranges of random lengths, in random order."""
    ranges = []
    for _ in range(2):
        at = 0
        while at < len(windows):
            length = draw.randint(1, LONGEST_RANGE)
            ranges.append(list(windows[at : at + length]))
            at += length
    draw.shuffle(ranges)
    return ranges


def _take_in(settings: Settings, ranges: Sequence[Sequence[Window]]) -> None:
    for windows in ranges:
        ingest(windows, settings)


def _go_on(settings: Settings, shop: ShopSimulator, windows: Sequence[Window], corrected: Window) -> None:
    """The hourly runs; midway an old hour is corrected and taken in again, and the model is updated."""
    for number, window in enumerate(windows):
        shop.land([window], Path(settings.landing))
        ingest([window], settings)
        if number == len(windows) // 2:
            update_once(settings)
            correct(settings, corrected)
            ingest([corrected], settings)


def correct(settings: Settings, window: Window) -> None:
    """Doubles the prices of a window's web purchases and drops its last line, as a shop's second export would."""
    for path in sorted((Path(settings.landing) / "events" / window.folder).glob("web-*.jsonl")):
        lines = []
        for line in path.read_text().splitlines()[:-1]:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                lines.append(line)
                continue
            if row.get("event_type") == "purchase" and isinstance(row.get("price"), int | float):
                row["price"] = round(2 * row["price"], 2)
            lines.append(json.dumps(row))
        whole = path.with_name(f".{path.name}")
        whole.write_text("\n".join(lines) + "\n")
        whole.replace(path)


def _all_succeed(workers: Sequence[Worker]) -> None:
    for worker in workers:
        if (status := worker.ended(_PATIENCE_SECONDS)) != 0:
            for other in workers:
                other.kill()
            raise RuntimeError(f"A process that takes in hours must succeed; it ended with {status}: {worker.said}")


# -- what was learnt ------------------------------------------------------------------------------------------


def _learn_the_rest(settings: Settings, shop: ShopSimulator, windows: Sequence[Window]) -> None:
    """An update of what came since the last, one more of a table that did not change, and a retrain."""
    update_once(settings)
    if update_once(settings) is not None:
        raise RuntimeError("An update that finds the table as its champion knows it must do nothing.")
    retrain(TASK, settings, NOW, "measured", report=lambda line: None)


def learnt_figures(settings: Settings) -> dict[str, float]:
    """Rows of the champion's lineage that were not learnt exactly once a change, and old rows in the retrain."""
    lake, registry = open_lake(settings), open_registry(settings)
    versions = {number: Version(number, registry.tags(TASK, number)) for number in registry.versions(TASK)}
    retrained = max(versions)
    wrong = _not_once(settings, lake, _lineage(registry, versions))
    print(f"rows not learnt exactly once by version: {wrong}", flush=True)
    did = own_rows(task_named(TASK, settings, lake), lake, versions[retrained], None)
    return {
        "backfill.updates": len(wrong) - 1,
        "backfill.rows_not_learnt_once": sum(wrong.values()),
        "backfill.rows_out_of_balance": _out_of_balance(settings, versions),
        "backfill.old_rows_in_retrain": sum(
            (Counter(did["key"].to_pylist()) - Counter(list(_contents(lake, lake.version("events"))))).values()
        ),
    }


def _lineage(registry: Registry, versions: Mapping[int, Version]) -> list[Version]:
    """From the first model to the champion before the retrain, which itself has no parent."""
    chain = []
    at: int | None = max(number for number in versions if versions[number].ledger.kind == "update")
    while at is not None:
        chain.append(versions[at])
        at = versions[at].ledger.parent
    return chain[::-1]


def _not_once(settings: Settings, lake: Lake, lineage: Sequence[Version]) -> dict[int, int]:
    """Version -> keys that it learnt though nothing of them had changed, or did not learn though something had."""
    task, wrong, before, parent = task_named(TASK, settings, lake), {}, dict[str, str](), None
    for version in lineage:
        now = _contents(lake, version.ledger.versions["events"])
        came = Counter(key for key, content in now.items() if before.get(key) != content)
        did = own_rows(task, lake, version, parent)
        learnt = Counter(
            key for key, what in zip(did["key"].to_pylist(), did["did"].to_pylist(), strict=True)
            if what in (TAUGHT, HELD_OUT, CONTEXT, SET_ASIDE)
        )
        follows = -1 if parent is None else parent.ledger.versions["events"]
        if version.ledger.learnt_from["events"] != follows:
            raise RuntimeError(f"Version {version.number} must begin where its parent ended, at {follows}.")
        wrong[version.number] = (came - learnt).total() + (learnt - came).total()
        before, parent = now, version
    return wrong


def _contents(lake: Lake, version: int) -> dict[str, str]:
    """Key -> what makes a row of the events, as text."""
    names = [name for name in (*EVENTS.raw_names, "hour") if name != EVENTS.key]
    rows = lake.arrow("events", version, [EVENTS.key, *names]).to_pylist()
    return {row[EVENTS.key]: json.dumps([row[name] for name in names], default=str) for row in rows}


def _out_of_balance(settings: Settings, versions: Mapping[int, Version]) -> int:
    """By how many rows the ledgers of those that know the whole table miss it, or do not account for a row."""
    held, newest = rows_in_table(settings), open_lake(settings).version("events")
    missed = 0
    for version in versions.values():
        rows = version.ledger.rows
        missed += abs(rows.inserted + rows.updated - rows.taught - rows.held_out - rows.context - rows.set_aside)
        if version.ledger.versions["events"] == newest:
            missed += abs(rows.inserted - rows.deleted - held)
    return missed
