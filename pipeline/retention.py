"""Retention: which model versions keep their files and for how long, so that a year of hourly updates fits a disk.

`python -m pipeline.retention --help`; the DAG `retention` runs it every day. A version that must go loses its
checkpoint and its package. Its entry in the registry stays, with ledger, parent, code, settings and decision in its
tags, so that lineage answers for it as before; the log of decisions is in the lake and is not touched at all.

Every version that keeps its files can serve, and an update can start from it: the first model of its lineage, with
which the gate compares, is kept with it. The scheme by age is that of backups (hourly, daily, weekly).

First the versions are marked while no champion can move, and what is marked can neither serve nor be trained on; then
their files are removed; whoever comes next completes what a killed process left. The lake is tidied as well: the small
files that hours and decisions add are put together, so that an hour's job costs what changed and not what there is, and
files that no version within reach needs any more are deleted, and so are the vectors of taught text encoders that no
alias leads to (`texts.py`). Old pages go as well (`old_pages.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.checkpoint import LEDGER, Ledger
from pipeline.lake import Lake, open_lake
from pipeline.old_pages import Open, remove_old_pages
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import RegistryError
from pipeline.schema import FEEDS, schemas_of_tables
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.texts import TAG, prune

# A weekend: what was held or promoted on a Friday evening is still whole when somebody looks on Monday.
ALL_HOURS = 72
DAILY_DAYS = 30  # a month, the longest span of validation rows (28 days) within it
WEEKLY_WEEKS = 53  # a year and a week: the same season a year ago can be served or compared
# Rollback reaches so many champions back, whatever their age: a shop that is promoted hourly has noticed within them.
CHAMPIONS = 10
# A retrain may take 12 hours (dags/retrain.py), and what it shares is stored before its version is.
SHARED_DAYS = 1
# A day of a feed whose rows may still be corrected by late ones (`lateness_hours`, 48) is rewritten all day long: not
# yet. What is written about the hours is small: put together each day, whoever reads it opens tens of files and not
# hundreds (of the window log 250 after four days, and each hour's ingest and watch cost twice what they had at first).
SETTLED_DAYS = 3

_YEAR_HOURS = 365 * 24


@dataclass(frozen=True)
class Candidate:
    """What the rule looks at of a version that has its files.

    Attributes:
        number: the version.
        registered_at: when.
        served: whether it ever was the champion.
        undecided: whether it may still be promoted: nobody has acted on the gate's decision yet, and the champion is
            the one that it was compared with.
        base: the first model of its lineage, with which the gate compares its updates; itself where it is that.
    """

    number: int
    registered_at: datetime
    served: bool
    undecided: bool
    base: int


def kept(
    candidates: Sequence[Candidate], aliased: Collection[int], champions: Sequence[int], now: datetime
) -> dict[int, str]:
    """The versions that keep their files, each with the reason.

    Args:
        candidates: all versions that have their files.
        aliased: versions that an alias names.
        champions: those that served, in order, a version as often as it did.
        now: ages are counted back from here.
    """
    newest_first = sorted(candidates, key=lambda one: one.number, reverse=True)
    there = {one.number: one for one in candidates}
    reach = set(list(dict.fromkeys(reversed(champions)))[:CHAMPIONS])
    reasons: dict[int, str] = {}
    for one in newest_first:
        if one.number in aliased:
            reasons[one.number] = "an alias names it"
        elif one.number in reach:
            reasons[one.number] = f"rollback: one of the last {CHAMPIONS} champions"
        elif one.undecided:
            reasons[one.number] = "it may still be promoted"
        elif now - one.registered_at < timedelta(hours=ALL_HOURS):
            reasons[one.number] = f"younger than {ALL_HOURS} hours"
    for name, period, span in (
        ("day", lambda time: time.date(), timedelta(days=DAILY_DAYS)),
        ("week", lambda time: time.isocalendar()[:2], timedelta(weeks=WEEKLY_WEEKS)),
    ):
        for number in _newest_of_each(newest_first, period, span, now):
            reasons.setdefault(number, f"the newest of its {name} that served")
    for number in list(reasons):
        if (base := there[number].base) in there:
            reasons.setdefault(base, f"the gate compares updates of {number} with it")
    return dict(sorted(reasons.items()))


def _newest_of_each(
    newest_first: Sequence[Candidate], period: Callable[[datetime], Any], span: timedelta, now: datetime
) -> list[int]:
    """Of those that served within the span, the newest of each period."""
    seen: dict[Any, int] = {}
    for one in newest_first:
        if one.served and now - one.registered_at < span:
            seen.setdefault(period(one.registered_at), one.number)
    return list(seen.values())


def kept_after_a_year(now: datetime) -> int:
    """How many versions the rule keeps of a year in which every hour's update served, with a retrain each week."""
    started = now - timedelta(hours=_YEAR_HOURS)
    hours = [
        Candidate(hour + 1, started + timedelta(hours=hour), served=True, undecided=False, base=hour - hour % 168 + 1)
        for hour in range(_YEAR_HOURS)
    ]
    return len(kept(hours, {_YEAR_HOURS, _YEAR_HOURS - 1}, [one.number for one in hours], now))


def retain(settings: Settings, now: datetime, *, dry_run: bool = False) -> dict[str, Any]:
    """Applies the rule to every task, and tidies the lake.

    Args:
        settings: of the installation.
        now: ages are counted back from here.
        dry_run: nothing is marked, removed or rewritten.

    Returns:
        By task `kept` and `removed` (version -> reason), `bytes_kept`, `bytes_removed`, `bytes_of_a_version`,
        `versions_after_a_year`, `bytes_after_a_year`; `shared_removed` (address -> bytes); for the lake
        `text_vectors_removed` and `files_deleted` by table; and `pages_removed`.
    """
    lake, registry = open_lake(settings), open_registry(settings)
    tasks, champions, oldest = {}, [], now
    for task in settings.tasks:
        candidates = _candidates(registry, task)
        stay = _kept_of(registry, task, candidates, now)
        tasks[task] = _apply(registry, task, candidates, stay, now, dry_run=dry_run)
        champion = registry.champion(task)
        champions.append(None if champion is None else Ledger.of_tags(registry.tags(task, champion)))
        oldest = min([oldest, *(one.registered_at for one in candidates if one.number in stay)])
    shared = registry.remove_unused_parts(now - timedelta(days=SHARED_DAYS), _why(now), dry_run=dry_run)
    # an update may start from the oldest of them and reads all that changed since it was trained, a day before at most
    needed = now - oldest + timedelta(days=1)
    still_open = Open.of({task: found["kept"] for task, found in tasks.items()}, champions)
    vectors = prune(lake, _encoders_in_use(registry, settings.tasks), dry_run=dry_run)  # before their files can go
    return {
        "tasks": tasks, "shared_removed": shared, "text_vectors_removed": vectors,
        "files_deleted": tidy(lake, now, needed, dry_run=dry_run),
        "pages_removed": remove_old_pages(
            settings.reports, lake, still_open, now, settings.pages_days, dry_run=dry_run
        ),
    }


def _encoders_in_use(registry: Registry, tasks: Collection[str]) -> set[str]:
    """The taught encoders of the versions that an alias names: what serves, served before, or was trained last."""
    named = {(task, version) for task in tasks for version in registry.aliases(task).values()}
    return {registry.tags(task, version).get(TAG, "") for task, version in named}


def tidy(lake: Lake, now: datetime, needed: timedelta, *, dry_run: bool = False) -> dict[str, int]:
    """Puts the lake's small files together and deletes those that only old versions of the tables need.

    Args:
        lake: whose tables.
        now: feeds, and their rows that count elsewhere, keep the files of the last `SETTLED_DAYS` as they are.
        needed: age of the oldest version of a feed's table that anyone may ask for.
        dry_run: only counts.

    Returns:
        table -> how many files were deleted; rows and change data of the versions that stay are as before.
    """
    deleted = {}
    for table in sorted(schemas_of_tables()):
        if lake.version(table) < 0:
            continue
        if not dry_run:
            settles = table.removeprefix("duplicates_") in FEEDS
            lake.compact(table, now.date() - timedelta(days=SETTLED_DAYS) if settles else None)
        deleted[table] = lake.vacuum(table, needed, dry_run=dry_run)
    return deleted


def _apply(
    registry: Registry, task: str, candidates: Sequence[Candidate], stay: Mapping[int, str], now: datetime, *,
    dry_run: bool,
) -> dict[str, Any]:
    sizes = {one.number: registry.bytes_of(task, one.number) for one in candidates}
    go = {one.number: _why(now) for one in candidates if one.number not in stay}
    if not dry_run:
        # asked anew while no champion can move: an operator may have rolled back to one of them meanwhile
        def chosen() -> dict[int, str]:
            held = _candidates(registry, task)
            whole = _kept_of(registry, task, held, now)
            return {one.number: _why(now) for one in held if one.number not in whole}

        marked = registry.retire(task, chosen)
        for version in marked:
            registry.remove_files(task, version)
        go = dict.fromkeys(marked, _why(now))
    one = max((sizes[number] for number in stay), default=0)  # a table of ids grows: the largest is the next
    held = kept_after_a_year(now)
    return {
        "kept": dict(stay), "removed": go,
        "bytes_kept": sum(sizes[number] for number in stay),
        "bytes_removed": sum(sizes.get(number, 0) for number in go),
        "bytes_of_a_version": one, "versions_after_a_year": held, "bytes_after_a_year": held * one,
        "bytes_without_the_rule": _YEAR_HOURS * one,
    }


def _why(now: datetime) -> str:
    return f"Not needed by the rule of retention on {now:%Y-%m-%d} (python -m pipeline.retention --help)."


def _candidates(registry: Registry, task: str) -> list[Candidate]:
    served = {one.version for one in registry.services(task)}
    champion, decided = registry.champion(task), registry.all_decided(task)
    return [
        Candidate(
            entry.number, entry.registered_at, entry.number in served,
            entry.number not in decided and entry.tags.get("evergreen.compared_with", "") == str(champion or ""),
            Ledger.of_tags(entry.tags).base or entry.number,
        )
        for entry in registry.entries(task) if not entry.retired and LEDGER in entry.tags
    ]


def _kept_of(registry: Registry, task: str, candidates: Sequence[Candidate], now: datetime) -> dict[int, str]:
    champions = [one.version for one in registry.services(task)]
    return kept(candidates, registry.aliases(task).values(), champions, now)


def main(arguments: Sequence[str] | None = None) -> int:
    """Applies the rule once; returns the process's exit status."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m pipeline.retention",
        description=f"Removes checkpoints and packages of model versions that nobody needs: of all, those of the last "
        f"{ALL_HOURS} hours stay; of those that served the newest of each day for {DAILY_DAYS} days and of each week "
        f"for {WEEKLY_WEEKS} weeks, the last {CHAMPIONS} champions, what an alias names, what may still be promoted, "
        "and of each of these the first model of its lineage. Tags, lineage and the log of decisions stay for ever. "
        "Pages go after EVERGREEN_PAGES_DAYS, but for what is open. The installation is the one of the environment's "
        "EVERGREEN_* variables.",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go and what a year costs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    try:
        done = retain(read_settings(), datetime.now(UTC), dry_run=chosen.dry_run)
    except (RegistryError, SettingsError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    if chosen.json:
        print(json.dumps(done, indent=2))
    else:
        _print(done, Console(), dry_run=chosen.dry_run)
    return 0


def _print(done: Mapping[str, Any], console: Any, *, dry_run: bool) -> None:
    from rich.table import Table

    for task, found in done["tasks"].items():
        table = Table("version", "files", "because", title=f"evergreen-{task}", title_justify="left")
        for version, why in sorted([*found["kept"].items(), *found["removed"].items()]):
            gone = "would go" if dry_run else "removed"
            table.add_row(str(version), "stay" if version in found["kept"] else gone, why)
        console.print(table)
        lines = [
            f"{len(found['kept'])} versions take {_megabytes(found['bytes_kept'])}; {len(found['removed'])} "
            f"{'would free' if dry_run else 'freed'} {_megabytes(found['bytes_removed'])}.",
            f"A year of hourly promotions: {found['versions_after_a_year']} versions of "
            f"{_megabytes(found['bytes_of_a_version'])} each stay, {_megabytes(found['bytes_after_a_year'])}; without "
            f"the rule {_megabytes(found['bytes_without_the_rule'])}.",
        ]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
    shared = done["shared_removed"]
    console.print(
        f"Parts that versions shared and none needs any more: {len(shared)} ({_megabytes(sum(shared.values()))}).",
        highlight=False, soft_wrap=True,
    )
    deleted = {table: number for table, number in done["files_deleted"].items() if number}
    files = ", ".join(f"{number} of {table}" for table, number in deleted.items()) or "none"
    console.print(f"Files of the lake that no version needs any more: {files}.", highlight=False, soft_wrap=True)
    console.print(
        f"Vectors of text encoders that no model in use has: {done['text_vectors_removed']:,}.", highlight=False,
    )
    pages = done["pages_removed"]
    console.print(
        f"Old pages: {pages['quality']} of quality, {pages['lineage']} of lineage, {_megabytes(pages['bytes'])}.",
        highlight=False, soft_wrap=True,
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
