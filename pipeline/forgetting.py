"""From a shell: a user or an item is forgotten, in the lake at once and for good, in the models step by step.

`python -m pipeline.forgetting --help`. The rows leave the tables of every feed; a user's profile goes with them, and so
does what people have said of a user's messages. Ingest refuses them from then on (quarantine: `deleted_on_request`), so
that a backfill brings nothing back. An item leaves the models' tables with the next update. What weights have learnt
from a user's rows cannot be taken out of them: the versions that may have learnt from them are named, and the watch
asks for a full retrain, whose model is the first without them.
"""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.asking import a_person_waits
from pipeline.checkpoint import LEDGER, Ledger
from pipeline.lake import Lake, open_lake
from pipeline.locking import LockNotTaken
from pipeline.masking import Mask
from pipeline.registry_errors import RegistryError, VersionMissing
from pipeline.schema import DELETIONS_SCHEMA, FEEDS, MESSAGES
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.tables import LakeError, sql_text, text_field
from pipeline.tasks.catalogue import entry

if TYPE_CHECKING:
    from pipeline.registry import Registry

_COLUMNS = {"user": "user_id", "item": "item_id"}
_LIKE_MASKED = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Forgotten:
    """Users (masked) and items that were deleted on request.

    Attributes:
        users, items: their ids, sorted.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]

    @classmethod
    def of(cls, lake: Lake) -> Forgotten:
        """All of a lake's."""
        asked = lake.arrow("deletions", columns=["kind", "id"]).to_pylist()
        users, items = (sorted({row["id"] for row in asked if row["kind"] == kind}) for kind in _COLUMNS)
        return cls(tuple(users), tuple(items))

    @property
    def empty(self) -> bool:
        """Whether nobody ever asked."""
        return not self.users and not self.items

    def among(self, rows: pa.Table) -> pa.ChunkedArray:
        """[n] bool: rows of a feed that are a forgotten user's or item's."""
        found = pa.chunked_array([pa.repeat(False, len(rows))])
        for column, ids in (("user_id", self.users), ("item_id", self.items)):
            if column in rows.column_names and ids:
                found = pc.or_(found, pc.is_in(rows[column], value_set=pa.array(ids)))
        return found

    def blanked(self, quarantine: pa.Table) -> pa.Table:
        """The quarantine without the content of rows that a forgotten user's masked id stands in."""
        for user in self.users:
            found = pc.fill_null(pc.match_substring(quarantine["raw"], user), False)
            for name in ("raw", "detail"):
                at = quarantine.schema.get_field_index(name)
                blank = pc.if_else(found, pa.scalar(None, pa.string()), quarantine[name])
                quarantine = quarantine.set_column(at, quarantine.schema.field(at), blank)
        return quarantine


def forget(kind: str, identifier: str, settings: Settings, asked_at: datetime, who: str) -> int:
    """Deletes a user or an item from the lake, for good; how many published rows went. Safe to repeat.

    Args:
        kind: `user` or `item`.
        identifier: an item's id; a user's as the shop has it, or masked (as the tables have it; see `masked`).
        settings: of the installation.
        asked_at: for the log of deletions.
        who: the same.
    """
    lake, column = open_lake(settings), _COLUMNS[kind]
    known = masked(identifier, settings, lake) if kind == "user" else identifier
    deleted = 0
    for feed in FEEDS.values():
        if column not in feed.raw_names or lake.version(feed.name) < 0:
            continue
        rows = lake.arrow(feed.name, columns=["landed_window"], filter=text_field(column) == known)
        # written before anything is deleted: ingest must not bring a row back in between
        lake.append("deletions", pa.Table.from_pylist([{
            "asked_at": asked_at, "kind": kind, "id": known, "feed": feed.name, "rows": len(rows),
            "first_window": pc.min(rows["landed_window"]).as_py(), "version_before": lake.version(feed.name),
            "who": who,
        }], schema=DELETIONS_SCHEMA))
        if feed is MESSAGES:  # before them, for they say whose a label is: a killed call is made again
            _delete_labels(lake, known)
        lake.delete(feed, column, known)
        deleted += len(rows)
    if kind == "user":
        lake.drop("user_profiles", column, known)  # last: an update of the profiles asks the log of deletions first
    return deleted


def _delete_labels(lake: Lake, user: str) -> None:
    """Deletes what people have said of a user's messages: an answer may name whom it is written to."""
    tables = [name for name in (MESSAGES.name, f"duplicates_{MESSAGES.name}") if lake.version(name) >= 0]
    of_user = text_field("user_id") == user
    theirs = [lake.arrow(name, columns=[MESSAGES.key], filter=of_user)[MESSAGES.key].to_pylist() for name in tables]
    labelled = text_field(MESSAGES.key).isin(pa.array(sorted({one for ids in theirs for one in ids}), pa.string()))
    found = pc.unique(lake.arrow("labels", columns=[MESSAGES.key], filter=labelled)[MESSAGES.key]).to_pylist()
    if found:
        lake.remove("labels", f"{MESSAGES.key} IN ({', '.join(map(sql_text, found))})")


def masked(user: str, settings: Settings, lake: Lake) -> str:
    """The masked form of a user's id, which may be masked already.

    It is taken as masked only where a table knows it and none its hash: a shop's own ids may be 32 hex digits too, and
    one of those must not be taken, and kept, for what it hides.
    """
    forms = masked_forms(user, settings)
    return forms[0] if len(forms) == 1 else next((form for form in forms if _known(lake, form)), forms[0])


def masked_forms(user: str, settings: Settings) -> tuple[str, ...]:
    """What the tables may call a user: the hash of the id, or else the id itself where it looks like a hash."""
    hashed = Mask(settings.mask_key).value(user)
    return (hashed, user) if _LIKE_MASKED.fullmatch(user) else (hashed,)


def _known(lake: Lake, user: str) -> bool:
    """Whether a feed's table has rows of a user, or had some that were deleted on request."""
    feeds = [name for name, feed in FEEDS.items() if "user_id" in feed.raw_names and lake.version(name) >= 0]
    if any(len(lake.arrow(name, columns=["user_id"], filter=text_field("user_id") == user)) for name in feeds):
        return True
    asked = lake.arrow("deletions", columns=["id", "rows"], filter=ds.field("kind") == "user").to_pylist()
    return any(row["id"] == user and row["rows"] for row in asked)


def learnt_from_deleted(lake: Lake, registry: Registry, task: str, table: str, version: int, user: str = "") -> bool:
    """Whether a model version may have learnt from rows of users (or of one) that were deleted since.

    It may, if its lineage began before the deletion and it knows the window in which the first of the rows landed.
    When a lineage began is not known if its first version was deleted in MLflow by hand.
    """
    asked = lake.arrow("deletions", filter=(ds.field("kind") == "user") & (ds.field("feed") == table)).to_pylist()
    asked = [row for row in asked if row["rows"] and user in ("", row["id"])]
    if not asked:
        return False
    ledger = Ledger.of_tags(registry.tags(task, version))
    try:
        base = ledger if ledger.base is None else Ledger.of_tags(registry.tags(task, ledger.base))
    except VersionMissing:
        began = -1
    else:
        began = base.versions[table]
    return any(began <= row["version_before"] and ledger.window >= row["first_window"] for row in asked)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one deletion; returns the process's exit status."""
    from rich.console import Console

    chosen = _parser().parse_args(arguments)
    try:
        settings = read_settings()
    except SettingsError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    identifier = chosen.id.strip()
    if not identifier:
        Console(stderr=True).print(f"The id of the {chosen.kind} must not be empty.", style="red")
        return 2
    say, errors = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
    try:
        deleted = forget(chosen.kind, identifier, settings, datetime.now(UTC), chosen.who)
        say.print(f"{deleted} published rows of {chosen.kind} {identifier} deleted.", highlight=False, markup=False)
        if not deleted:
            say.print("No table had a row of it; should one land, ingest refuses it. Was the id right?")
        with a_person_waits(settings.tracking_uri):
            remains = _what_remains(chosen.kind, identifier, settings)
    except LockNotTaken as error:
        errors.print(f"It is not all deleted. {error}", style="red", highlight=False, markup=False)
        return 1
    except RegistryError as error:
        errors.print(
            f"The rows are deleted. What has learnt from them is not known: {error} Run this again then.",
            style="red", highlight=False, markup=False,
        )
        return 1
    for line in remains:
        say.print(line, highlight=False, markup=False)
    return 0


def _what_remains(kind: str, identifier: str, settings: Settings) -> list[str]:
    from pipeline.learnt import LEARNT, MAYBE
    from pipeline.lineage import of_rows  # which asks this module how ids are masked
    from pipeline.lineage_pages import sentences_of
    from pipeline.registry import open_registry

    remains = [
        "Older versions of the tables keep the rows until they are vacuumed, and the landing zone its files: "
        "delete those by their own rules."
    ]
    if kind == "item":
        return ["The next update's model is without it.", *remains]
    lake, registry = open_lake(settings), open_registry(settings)
    user = masked(identifier, settings, lake)
    try:
        answer = of_rows("user", identifier, settings)
    except LakeError as error:  # change data of more than a year ago are gone: what may be is named
        return [str(error), *_may_have_learnt(lake, registry, settings, user), *remains]
    for feed in answer["feeds"]:
        for task in feed["tasks"]:
            remains += sentences_of(task)
            if any(task["by_verdict"].get(verdict) for verdict in (LEARNT, MAYBE)):
                remains.append(_RETRAIN.format(task=task["task"]))
    return remains


_RETRAIN = (
    "The watch asks for a full retrain within the hour (at once: trigger retrain_{task}); its model is without them."
)


def _may_have_learnt(lake: Lake, registry: Registry, settings: Settings, user: str) -> list[str]:
    said = []
    for task in settings.tasks:
        versions = [
            one.number for one in registry.entries(task)
            if LEDGER in one.tags and learnt_from_deleted(lake, registry, task, entry(task).table, one.number, user)
        ]
        if versions:
            said.append(f"Versions {', '.join(map(str, versions))} of {task} may have learnt from them.")
            said.append(_RETRAIN.format(task=task))
    return said


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.forgetting",
        description="Deletes a user's or an item's rows from the lake, for good: ingest refuses them from then on. "
        "The installation is the one of the environment's EVERGREEN_* variables.",
    )
    parser.add_argument("kind", choices=list(_COLUMNS), help="what is to be forgotten")
    parser.add_argument("id", help="an item's id; a user's as the shop has it, or masked as the tables have it")
    parser.add_argument("--who", default=getpass.getuser(), help="for the log (default: you)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
