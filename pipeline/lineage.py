"""From a shell: what a model version has learnt from, and which versions have learnt from a window, row, user or item.

`python -m pipeline.lineage --help`. Each answer is a table here, JSON with `--json`, and a page below
`reports/lineage/`. All of it is computed from the registry and the lake (`pipeline/learnt.py` says how, and what
*learnt* means): there is no other book that could be wrong. A user's id is masked before anything is looked up,
printed or written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.asking import a_person_waits
from pipeline.checkpoint import LEDGER, Ledger
from pipeline.forgetting import masked
from pipeline.lake import Lake, open_lake
from pipeline.learnt import (
    CONTEXT,
    HELD_OUT,
    JOINED,
    TAUGHT,
    TOO_OLD,
    UNSEEN,
    FewRows,
    Known,
    Version,
    known_by_versions,
    lineage_of,
    own_rows,
)
from pipeline.registry import Registry, open_registry
from pipeline.registry_errors import RegistryError, VersionMissing
from pipeline.schema import FEEDS
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.tables import LakeError
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import Task
from pipeline.window import Window

_IMAGES_LISTED = 50  # of a row's past; a user or a window may have thousands


def of_version(task_name: str, number: int, settings: Settings, *, whole: bool = True) -> dict[str, Any]:
    """All that a version has learnt from, in JSON's types.

    Args:
        task_name: its task.
        number: the version.
        settings: of the installation.
        whole: the versions of its whole lineage and their windows; otherwise its own learning alone and its parent,
            which costs the same however many came before.

    Returns:
        The version's tags in words, `served`, `tables` (versions read), `rows` and `own_rows` (the ledger's counts),
        `lineage` (base first), `windows` (what was done with the rows of each landed window), `differences` (where
        the ledgers' counts are not what the lake says; none, unless change data were lost).

    Raises:
        VersionMissing: there is none.
    """
    lake, registry = open_lake(settings), open_registry(settings)
    task = task_named(task_name, settings, lake)
    versions = _ancestors(registry, task_name, number, None if whole else 2)
    version, chain = versions[number], list(lineage_of(versions, number))[::-1]
    did = {
        one.number: own_rows(task, lake, one, versions.get(one.ledger.parent or 0))
        for one in (chain if whole else [version])
    }
    tags, ledger = version.tags, version.ledger
    return {
        "asked": "version", "task": task_name, "version": number,
        **{name: tags.get(f"evergreen.{name}") or None for name in (
            "kind", "parent", "compared_with", "decision", "code", "window", "days", "why", "retired"
        )},
        "base": ledger.base or number, "to_base": ledger.updates + 1,
        "reasons": json.loads(tags.get("evergreen.reasons", "[]")),
        "settings": json.loads(tags.get("evergreen.settings", "null")),
        "aliases": sorted(alias for alias, at in registry.aliases(task_name).items() if at == number),
        "served": [one.as_json() for one in registry.services(task_name) if one.version == number],
        "tables": _tables(task, lake, ledger),
        "own_rows": asdict(ledger.own_rows), "rows": asdict(ledger.rows),
        "lineage": [_step(one, task.table) for one in chain],
        "whole": whole, "windows": _windows(did),
        "differences": [line for one in did for line in _differences(versions[one], did[one])],
    }


def of_rows(kind: str, value: str, settings: Settings, feed: str | None = None) -> dict[str, Any]:
    """Which versions of every task have learnt from a window, a row, a user or an item, in JSON's types.

    Args:
        kind: `window`, `row`, `user` or `item`.
        value: the window's start, the row's key, the user's id (raw or masked), the item's id.
        settings: of the installation.
        feed: of a window or a row.

    Returns:
        `id` (a user's masked) and, for each feed that can have such rows, `rows` (how many, since when), `images` (a
        row's past, where it is short) and for each task that reads the feed its versions with what they know.
    """
    lake, registry = open_lake(settings), open_registry(settings)
    known_as = masked(value, settings, lake) if kind == "user" else value
    column: dict[str, Any]
    if kind in ("window", "row"):
        column = {str(feed): "landed_window" if kind == "window" else FEEDS[str(feed)].key}
    else:
        column = {name: f"{kind}_id" for name, one in FEEDS.items() if f"{kind}_id" in one.raw_names}
    sought: Any = Window.parse(value).start if kind == "window" else known_as
    found = []
    for name, where in column.items():
        few = FewRows.of(lake, FEEDS[name], where, sought)
        tasks = [_by_task(task, lake, registry, few, settings) for task in settings.tasks]
        found.append({"feed": name, **_past(few), "tasks": [one for one in tasks if one is not None]})
    asked = lake.arrow("deletions", columns=["kind", "id", "asked_at", "rows"], filter=ds.field("kind") == kind)
    deleted = [row["asked_at"].isoformat() for row in asked.to_pylist() if row["id"] == known_as and row["rows"]]
    return {"asked": kind, "id": known_as, "deleted": sorted(set(deleted)), "feeds": found}


def _ancestors(registry: Registry, task: str, number: int, most: int | None = None) -> dict[int, Version]:
    """A version, its parent and so on to the base, at most so many of them."""
    found: dict[int, Version] = {}
    at: int | None = number
    while at is not None and (most is None or len(found) < most):
        try:
            found[at] = Version(at, registry.tags(task, at))
        except VersionMissing:
            if at == number:
                raise
            break  # deleted in MLflow by hand: the lineage is told as far as it is known
        at = found[at].ledger.parent
    return found


def _tables(task: Task, lake: Lake, ledger: Ledger) -> list[dict[str, Any]]:
    tables = []
    for name in (task.table, *task.context_tables):
        rows, first, last = lake.extent(name, ledger.versions[name])
        tables.append({
            "table": name, "reads": "learns its changes" if name == task.table else "reads it as it stands",
            "after": ledger.learnt_from.get(name, -1), "to": ledger.versions[name], "rows": rows,
            "first_window": _iso(first), "last_window": _iso(last),
        })
    return tables


def _step(version: Version, table: str) -> dict[str, Any]:
    ledger, tags = version.ledger, version.tags
    return {
        "version": version.number, "kind": ledger.kind, "parent": ledger.parent,
        "after": ledger.learnt_from[table], "to": ledger.versions[table], "window": _iso(ledger.window),
        "own_rows": asdict(ledger.own_rows), "decision": tags.get("evergreen.decision"),
        "code": tags.get("evergreen.code"),
    }


def _windows(did: Mapping[int, pa.Table]) -> list[dict[str, Any]]:
    """What was done with the rows of each landed window, over all the versions given, and by which."""
    counts: dict[datetime, Counter[str]] = defaultdict(Counter)
    by: dict[datetime, set[int]] = defaultdict(set)
    for number, rows in did.items():
        for row in rows.group_by(["landed_window", "did"]).aggregate([([], "count_all")]).to_pylist():
            counts[row["landed_window"]][row["did"]] += row["count_all"]
            if row["did"] in (TAUGHT, JOINED):
                by[row["landed_window"]].add(number)
    return [
        {"window": str(Window(window)), "did": dict(counts[window]), "learnt_by": sorted(by[window])}
        for window in sorted(counts)
    ]


def _differences(version: Version, rows: pa.Table) -> list[str]:
    """Where a version's ledger counts other rows than the lake has."""
    seen, own = Counter(rows["did"].to_pylist()), version.ledger.own_rows
    pairs = (
        ("taught", seen[TAUGHT], own.taught), ("joined", seen[JOINED], own.joined),
        ("held out", seen[HELD_OUT], own.held_out), ("context", seen[CONTEXT] + seen[TOO_OLD], own.context),
    )
    return [
        f"Version {version.number}: {name}: the ledger counted {counted:,} rows, the lake has {there:,}."
        for name, there, counted in pairs if there != counted
    ]


def _by_task(
    name: str, lake: Lake, registry: Registry, few: FewRows, settings: Settings
) -> dict[str, Any] | None:
    task = task_named(name, settings, lake)
    if few.feed.name not in (task.table, *task.context_tables):
        return None
    versions = [Version(entry.number, entry.tags) for entry in registry.entries(name) if LEDGER in entry.tags]
    known = known_by_versions(task, lake, versions, few)
    aliases: dict[int, list[str]] = defaultdict(list)
    for alias, number in sorted(registry.aliases(name).items()):
        aliases[number].append(alias)
    served = {one.version for one in registry.services(name)}
    by_verdict: dict[str, list[int]] = defaultdict(list)
    for one in known:
        by_verdict[one.verdict].append(one.version.number)
    return {
        "task": name, "reads": "learns" if few.feed.name == task.table else "context",
        "champion": registry.champion(name), "by_verdict": dict(by_verdict),
        "versions": [_line(one, aliases, served) for one in known if one.verdict != UNSEEN or one.own],
    }


def _line(known: Known, aliases: Mapping[int, list[str]], served: set[int]) -> dict[str, Any]:
    version = known.version
    return {
        "version": version.number, "verdict": known.verdict, "own": dict(known.own), "rows": dict(known.rows),
        "parent": version.ledger.parent, "kind": version.ledger.kind,
        "decision": version.tags.get("evergreen.decision"), "aliases": list(aliases.get(version.number, [])),
        "served": version.number in served,
    }


def _past(few: FewRows) -> dict[str, Any]:
    key, images = few.feed.key, few.images
    now = few.dataset(few.feed.name).to_table(columns=[key])
    span = pc.min_max(images["landed_window"]).as_py()
    past: dict[str, Any] = {
        "rows": {
            "now": len(now), "ever": pc.count_distinct(images[key]).as_py(),
            "first_window": _iso(span["min"]), "last_window": _iso(span["max"]),
            "table_versions": few.commits[:1] + few.commits[-1:],
        }
    }
    if len(images) <= _IMAGES_LISTED:
        past["images"] = [
            {"key": row[key], "table_version": row["_commit_version"], "change": _CHANGES[row["_change_type"]],
             "happened": _iso(row[few.feed.time]), "landed_window": str(Window(row["landed_window"]))}
            for row in images.to_pylist() if row["_change_type"] != "update_preimage"
        ]
    return past


_CHANGES = {"insert": "came", "update_postimage": "changed", "delete": "went"}


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def note_version_page(task_name: str, number: int, settings: Settings) -> None:
    """Notes where a version's page is, its address or its path in reports, as the version's tag `evergreen.lineage`."""
    from pipeline.lineage_pages import lineage_path

    path = lineage_path({"asked": "version", "task": task_name, "version": number}, settings.reports)
    place = settings.page_url(path) if settings.pages_url else path.relative_to(settings.reports).as_posix()
    open_registry(settings).note(task_name, number, "lineage", str(place))


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers one question; returns the process's exit status."""
    from rich.console import Console

    from pipeline.lineage_pages import print_answer, write_lineage_page

    chosen = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        with a_person_waits(settings.tracking_uri):
            if chosen.asked == "version":
                answer = of_version(chosen.task, chosen.version, settings, whole=not chosen.own)
            else:
                answer = of_rows(chosen.asked, chosen.value.strip(), settings, getattr(chosen, "feed", None))
    except (RegistryError, SettingsError, LakeError, ValueError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    path = write_lineage_page(answer, settings.reports, datetime.now(UTC))
    if chosen.json:
        print(json.dumps(answer, indent=2))
        return 0
    print_answer(answer, Console())
    Console(soft_wrap=True).print(f"Page: {settings.page_url(path)}", highlight=False, markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.lineage",
        description="Says what a model version has learnt from, and which versions have learnt from a window, a row, a "
        "user or an item. Learnt means: the row was part of an example that the version or an ancestor was trained on. "
        "The installation is the one of the environment's EVERGREEN_* variables.",
    )
    commands = parser.add_subparsers(dest="asked", required=True, metavar="question")

    def question(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--json", action="store_true", help="print JSON instead of tables")
        return made

    version = question("version", "What a version has learnt: windows, table versions, rows, parents, code, settings.")
    version.add_argument("task", help="its task, such as recommend")
    version.add_argument("version", type=int, help="its number")
    version.add_argument("--own", action="store_true", help="the windows of its own learning alone: quick")
    for name, text, help_text in (
        ("window", "Which versions have learnt from a landed window.", "its start, such as 2026-02-01T09:00Z"),
        ("row", "Which versions have learnt from a row.", "its key, such as an event's id"),
        ("user", "Which versions have learnt from a user.", "the id as the shop has it, or masked"),
        ("item", "Which versions have learnt from rows about an item.", "its id"),
    ):
        asked = question(name, text)
        if name in ("window", "row"):
            asked.add_argument("feed", choices=sorted(FEEDS), help="the feed")
        asked.add_argument("value", metavar="START" if name == "window" else "ID", help=help_text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
