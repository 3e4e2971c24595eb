"""From a shell: messages that a person should label go out as CSV, and what was said of them comes back.

    python -m pipeline.labels export wanted.csv     # fill in the column `value`
    python -m pipeline.labels import wanted.csv

Each update names the messages that its task is least sure of (table `labels_wanted`). What comes in is kept in
the table `labels`, which only a deletion on request rewrites, and put into the messages at once: to an update a
label is a row that changed, so the next one learns it. Ingest puts it on again when an hour is backfilled, because
landing files do not know it. A label is checked by the rules of `expectations/messages.json`, and e-mail addresses
and numbers in it are masked, as in everything that lands.
"""

from __future__ import annotations

import argparse
import csv
import getpass
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from models.contacts import without_contacts
from pipeline.lake import Lake, open_lake
from pipeline.schema import LABELS_SCHEMA, MESSAGES
from pipeline.settings import Settings, SettingsError, read_settings
from pipeline.tables import text_field
from pipeline.tasks.catalogue import entry

KINDS = ("label", "sentiment", "answer")
_CLASSES = ("label", "sentiment")  # of KINDS
COLUMNS = ("task", "message_id", "kind", "guess", "confidence", "text", "value")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run (OWASP: CSV injection)


class LabelRefused(ValueError):
    """A line of a file of labels cannot be taken; nothing of the file was.

    Attributes:
        line: its number in the file, from 1, the header counted.
    """

    def __init__(self, line: int, rule: str, received: str) -> None:
        self.line = line
        super().__init__(f"Line {line}: {rule}; received {received[:200]!r}. Correct the file and import it again.")


@dataclass(frozen=True)
class Labels:
    """What people said of messages after they came.

    Attributes:
        values: kind -> message id -> what was said last; None: taken back.
    """

    values: Mapping[str, Mapping[str, str | None]]

    @classmethod
    def of(cls, lake: Lake) -> Labels:
        """All of a lake's."""
        rows = lake.arrow("labels", columns=LABELS_SCHEMA.names).sort_by([("labelled_at", "ascending")]).to_pylist()
        values: dict[str, dict[str, str | None]] = {kind: {} for kind in KINDS}
        for row in rows:
            values[row["kind"]][row["message_id"]] = row["value"]
        return cls(values)

    def on(self, messages: pa.Table) -> pa.Table:
        """The messages with what was said of them in the place of what they had."""
        ids = messages["message_id"].to_pylist() if any(self.values.values()) else []
        for kind, said in self.values.items():
            if not said or not said.keys() & set(ids):
                continue
            held = messages[kind].to_pylist()
            values = [said.get(one, before) for one, before in zip(ids, held, strict=True)]
            at = messages.schema.get_field_index(kind)
            messages = messages.set_column(at, messages.schema.field(kind), pa.array(values, pa.string()))
        return messages


def wanted(lake: Lake, task: str, count: int) -> list[dict[str, Any]]:
    """The messages of a task that are worth labelling most and are not labelled yet: COLUMNS, `value` empty.

    Those of the newest version come first, each version's in its own order.
    """
    named = lake.arrow("labels_wanted", filter=text_field("task") == task)
    named = named.sort_by([("version", "descending"), ("rank", "ascending")]).to_pylist()
    ids = pa.array(sorted({row["message_id"] for row in named}), pa.string())
    columns = ["message_id", "text", *KINDS]
    held = {
        row["message_id"]: row
        for row in lake.arrow("messages", columns=columns, filter=text_field("message_id").isin(ids)).to_pylist()
    }
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in named:
        message = held.get(row["message_id"])
        if message is None or message[row["kind"]] is not None:  # gone, or labelled since
            continue
        known = {name: row[name] for name in ("task", "message_id", "kind", "guess", "confidence")}
        found.setdefault((row["message_id"], row["kind"]), {**known, "text": message["text"], "value": ""})
    return list(found.values())[:count]


def take_in(lake: Lake, lines: Sequence[Mapping[str, str]], labelled_at: datetime, who: str) -> int:
    """Takes the labels of a file's lines (`message_id`, `kind`, `value`; blank: not labelled); how many rows changed.

    Safe to repeat: the labels are written before the messages, and a message that has its label already stays.

    Raises:
        LabelRefused: a line names no message, no kind, breaks a rule of the messages, or says otherwise than another.
    """
    given = [(number, line) for number, line in enumerate(lines, 2) if (line.get("value") or "").strip()]
    for number, line in given:
        if line.get("kind") not in KINDS:
            raise LabelRefused(number, f"kind is one of {', '.join(KINDS)}", str(line.get("kind")))
    said = [
        (str(line["message_id"]), str(line["kind"]), without_contacts(str(line["value"]).strip())) for _, line in given
    ]
    said = _as_spelt_before(lake, said)
    values: dict[str, dict[str, str | None]] = {kind: {} for kind in KINDS}
    for (number, _), (message, kind, value) in zip(given, said, strict=True):
        if (before := values[kind].setdefault(message, value)) != value:
            raise LabelRefused(number, f"a message has one {kind}, and {message} has {before!r} above", value)
    labels, ids = Labels(values), sorted({message for message, _, _ in said})
    _check(lake, labels, ids, given)
    if not said:
        return 0
    lake.append("labels", pa.Table.from_pylist([
        {"message_id": message, "kind": kind, "value": value, "labelled_at": labelled_at, "who": who}
        for message, kind, value in said
    ], schema=LABELS_SCHEMA))
    return lake.correct(MESSAGES, ids, labels.on)


def _as_spelt_before(lake: Lake, said: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Classes in the spelling of the messages that have them: `Late_delivery` would be a class beside `late_delivery`.

    Args:
        lake: whose messages.
        said: message, kind and value of each line.
    """
    known: dict[str, dict[str, str]] = {kind: {} for kind in _CLASSES}
    for kind in _CLASSES if said else ():
        there = pc.value_counts(lake.arrow("messages", columns=[kind])[kind].drop_null()).to_pylist()
        of_lines = [{"values": value, "counts": 0} for _, named, value in reversed(said) if named == kind]
        for one in sorted([*of_lines, *there], key=lambda one: one["counts"]):  # the most frequent spelling stays
            known[kind][one["values"].casefold()] = one["values"]
        known[kind] |= {one["values"]: one["values"] for one in there}
    return [
        (message, kind, spelt.get(value, spelt.get(value.casefold(), value)) if (spelt := known.get(kind)) else value)
        for message, kind, value in said
    ]


def _check(
    lake: Lake, labels: Labels, ids: Sequence[str], given: Sequence[tuple[int, Mapping[str, str]]]
) -> None:
    from pipeline.quality import row_faults

    named = text_field("message_id").isin(pa.array(ids, pa.string()))  # typed: of no ids it could not be told
    rows = lake.arrow("messages", columns=MESSAGES.table_schema.names, filter=named)
    known = set(rows["message_id"].to_pylist())
    first = {str(line["message_id"]): number for number, line in reversed(given)}
    for message in ids:
        if message not in known:
            raise LabelRefused(first[message], "message_id must be one of the table messages", message)
    faults = row_faults(MESSAGES, labels.on(rows))
    for row, detail in zip(faults["row"].to_pylist(), faults["detail"].to_pylist(), strict=True):
        message = rows["message_id"][row].as_py()
        raise LabelRefused(first[message], "a label must keep the rules of expectations/messages.json", str(detail))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit status."""
    from rich.console import Console

    chosen = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        said = _exported(chosen, settings) if chosen.command == "export" else _imported(chosen, settings)
    except (SettingsError, LabelRefused, OSError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    Console(soft_wrap=True).print(said, highlight=False, markup=False)
    return 0


def _exported(chosen: argparse.Namespace, settings: Settings) -> str:
    lake, tasks = open_lake(settings), chosen.task or settings.tasks
    for task in tasks:
        entry(task)  # refuses one that is not there, before the file is written
    rows = [row for task in tasks for row in wanted(lake, task, chosen.count)]
    with Path(chosen.file).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            cells = {name: _as_cell(value) if isinstance(value, str) else value for name, value in row.items()}
            writer.writerow({**cells, "confidence": f"{row['confidence']:.3f}"})
    return f"{len(rows)} messages written to {chosen.file}. Fill in the column value, then import the file."


def _as_cell(value: str) -> str:
    """A text that a spreadsheet shows and does not compute."""
    return f"'{value}" if value.startswith(_FORMULA) else value


def _from_cell(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _imported(chosen: argparse.Namespace, settings: Settings) -> str:
    lines = [
        {**line, "message_id": _from_cell(line["message_id"])} if line.get("message_id") else line
        for line in _lines(Path(chosen.file).read_bytes())
    ]
    missing = {"message_id", "kind", "value"} - set(lines[0] if lines else {})
    if lines and missing:
        raise LabelRefused(1, f"the file needs the columns {', '.join(sorted(missing))}", ", ".join(lines[0]))
    changed = take_in(open_lake(settings), lines, datetime.now(UTC), chosen.who)
    return f"{changed} messages changed; the next update of each task learns them."


def _lines(content: bytes) -> list[dict[str, str]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        rule = 'the file must be in UTF-8, which a spreadsheet writes when told "CSV UTF-8"'
        raise LabelRefused(line, rule, repr(content[error.start : error.end])) from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)  # where decimals have a comma, spreadsheets write semicolons
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return list(reader)
    except csv.Error as error:
        raise LabelRefused(reader.line_num + 1, "the file must be CSV", str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.labels",
        description="Messages worth labelling, as CSV, and what was said of them. The installation is the one of the "
        "environment's EVERGREEN_* variables.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write the messages that are worth labelling")
    out.add_argument("file")
    out.add_argument("--task", action="append", help="of this task (default: of all that are on)")
    out.add_argument("--count", type=int, default=50, help="at most so many of each task (default: 50)")
    into = commands.add_parser("import", help="take in what was said")
    into.add_argument("file")
    into.add_argument("--who", default=getpass.getuser(), help="for the table labels (default: you)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
