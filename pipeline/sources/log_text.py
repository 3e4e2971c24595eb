"""A log's rows as text, as its file spells them: CSV, JSON lines and Parquet.

DuckDB could guess how a file is to be read, from a sample and for each file anew. It then takes an apostrophe for a
quote and a `#` for a comment, and writes ids anew that look like numbers or UUIDs. So the separator is told from the
header, quotes are RFC 4180's, and no value has another type than text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import islice
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.sources import SourceError
from pipeline.sources.mapping import ColumnMapping, MappingError

# Beside the log's own columns: where a row stood in the file, and a line that is no row, as it stands there. No log
# has columns of these names.
PLACE, BROKEN = "place in the log", "broken line of the log"

_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
_PACKINGS = (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz")
_WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods")
_SEPARATORS = ",;\t|"
_HEADER_LINES = 100  # blank lines and what a spreadsheet writes before the header, and a header over several lines
_MOST_SURPLUS = 8  # cells beyond the header that are shown of a row that has too many
_SHOWN_CHARACTERS = 60
_LINE_BYTES = 16 << 20  # as long as a line of the landing zone may be
_IDS = ("event_id", "user", "session", "item", "basket")
_WHOLE_UNTIL = 2**53  # up to here a double holds each whole number


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"


def read_as_text(connection: duckdb.DuckDBPyConnection, path: Path, mapping: ColumnMapping) -> pa.Table:
    """The log's rows in the file's order, all columns as text, `PLACE` (counted from 0) and `BROKEN`.

    Raises:
        SourceError: the file cannot be read as what it is said to be, or lacks a column that the mapping names.
    """
    kind = _format(path, mapping)
    try:
        table = {"csv": _csv, "jsonl": _json, "parquet": _parquet}[kind](connection, path, mapping)
    except (duckdb.Error, UnicodeDecodeError, csv.Error, pa.ArrowException, OSError) as error:
        raise SourceError(_unreadable(path, kind, str(error))) from error
    if BROKEN not in table.column_names:
        table = table.append_column(BROKEN, pa.nulls(len(table), pa.string()))
    return table.append_column(PLACE, pa.array(np.arange(len(table))))


def _unreadable(path: Path, kind: str, error: str) -> str:
    if re.search(r"not utf-8 encoded|invalid unicode|codec can't decode", error, re.IGNORECASE):
        return (
            f"A log is UTF-8; {path} is written in another encoding. Save it as UTF-8, by the name of the one that it "
            f"is in: iconv -f WINDOWS-1252 -t UTF-8 (or -f UTF-16) {path.name} > utf8-{path.name}."
        )
    if begun := re.search(r"CSV Error on Line: (\d+).*Maximum line size", error, re.DOTALL):
        return (
            f"A row of a log has at most {_LINE_BYTES} bytes; that of line {begun[1]} of {path} has more. As a rule a "
            'quote in it is not closed: close it, or write a quote in a text twice ("").'
        )
    first = error.strip().splitlines()[0] if error.strip() else "no reason was given"
    return f"The log {path} cannot be read as {kind}: {first}. Check the file, or set `format` in the mapping."


def _format(path: Path, mapping: ColumnMapping) -> str:
    last = path.suffix.lower()
    if last in _PACKINGS:
        raise SourceError(
            f"A log is a file as it is, or packed as .gz or .zst; {path.name!r} is packed otherwise. Unpack it and "
            "give the path of the log in it."
        )
    if last in _WORKBOOKS:
        raise SourceError(
            f"A log is CSV, JSON lines or Parquet; {path.name!r} is a workbook. Save its sheet as CSV (UTF-8) and give "
            "the path of that."
        )
    if mapping.format:
        return mapping.format
    for suffix in reversed(path.suffixes):
        if suffix.lower() in _SUFFIXES:
            return _SUFFIXES[suffix.lower()]
    raise SourceError(
        f"The format of {path.name!r} cannot be told from its name (.csv, .jsonl, .parquet, also .gz, .zst). "
        "Set `format` in the mapping."
    )


def _csv(connection: duckdb.DuckDBPyConnection, path: Path, mapping: ColumnMapping) -> pa.Table:
    """The cells as text; a row of more cells than the header stands in `BROKEN` alone: nothing says which are whose.

    It stands there beside its persons, so that the door, which refuses it, masks them in its text.
    """
    before, separator, header = _header(path, mapping)
    for key, column in mapping.log_columns().items():
        if header.count(column) > 1:
            raise MappingError(
                f"Mapping {mapping.name!r}: `{key}` names the column {column!r}, which the log {path} has "
                f"{header.count(column)} times. Name each column of the log differently."
            )
    names = _distinct(header)
    mapping.check_against(names, f"the log {path}")
    surplus = [f"surplus {place} of the log" for place in range(_MOST_SURPLUS)]
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in [*names, *surplus])
    more = f"coalesce({', '.join(map(quoted, surplus))}) IS NOT NULL"
    cells = ", ".join(f"CASE WHEN NOT {more} THEN {quoted(name)} END AS {quoted(name)}" for name in names)
    whole = ", ".join([*(f"coalesce({quoted(name)}, '')" for name in names), *map(quoted, surplus)])
    persons = {f"{key}_id": mapping.columns[key] for key in ("user", "session") if key in mapping.columns}
    said = "".join(f"{literal(key)}: {quoted(column)}, " for key, column in persons.items())
    broken = f"to_json({{{said}'too_many_cells': concat_ws({literal(separator)}, {whole})}})"
    table = connection.sql(
        f"SELECT {cells}, CASE WHEN {more} THEN CAST({broken} AS VARCHAR) END AS {quoted(BROKEN)} "
        f"FROM read_csv({literal(str(path))}, auto_detect=false, columns={{{columns}}}, header=true, "
        f"skip={before}, delim={literal(separator)}, quote='\"', escape='\"', comment='', nullstr='', "
        # rows may be short, and cells go over lines: only one thread reads a file that does both
        f"null_padding=true, strict_mode=false, parallel=false, max_line_size={_LINE_BYTES})"
    ).to_arrow_table()
    _refuse_open_quote(table, names, separator, path)
    return table


def _refuse_open_quote(table: pa.Table, names: list[str], separator: str, path: Path) -> None:
    """Refuses a log whose last row has rows in its last cell: a quote that is not closed goes to the file's end."""
    last = table.slice(max(len(table) - 1, 0)).select(names).to_pylist()
    filled = [value for row in last for value in row.values() if value is not None]
    if len(filled) == len(names) or not filled or "\n" not in filled[-1]:
        return
    swallowed = filled[-1].splitlines()[1:]
    if any(len(cells) == len(names) for cells in csv.reader(swallowed, delimiter=separator)):
        begun = separator.join(filled)[:_SHOWN_CHARACTERS].splitlines()[0]
        raise SourceError(
            f"A quote in {path} is not closed, in the row that begins with {begun!r}: {len(swallowed)} rows after it "
            'are taken for one text. Close it, or write a quote in a text twice ("").'
        )


def _header(path: Path, mapping: ColumnMapping) -> tuple[int, str, list[str]]:
    """How many lines stand before the header, the separator, and the header's names.

    The separator is the one that gives the columns that the mapping names: a title may hold any of the others.
    """
    packed = pa.input_stream(str(path), compression="detect")
    with io.TextIOWrapper(packed, "utf-8-sig", newline="") as text:
        lines = list(islice(text, _HEADER_LINES))
    before = next((place for place, line in enumerate(lines) if line.strip()), len(lines))
    separators = _SEPARATORS
    if told := re.fullmatch(r"\"?sep=(.)\"?\s*", lines[before] if before < len(lines) else ""):
        before, separators = before + 1, told[1]  # Excel says so before the header
    if before >= len(lines):
        raise SourceError(f"The log {path} has no rows. Give the path of another file.")
    wanted = set(mapping.log_columns().values())
    read = {one: [name.strip() for name in next(csv.reader(lines[before:], delimiter=one))] for one in separators}
    best = max(read, key=lambda one: (len(wanted & set(read[one])), len(read[one])))
    return before, best, read[best]


def _distinct(header: list[str]) -> list[str]:
    """The header's names, those told apart by their number that are empty or come again (SQL is blind to case)."""
    names: list[str] = []
    taken: set[str] = set()
    for place, said in enumerate(header):
        name, number = said or f"column{place}", 0
        while name.lower() in taken:
            number += 1
            name = f"{said or f'column{place}'}_{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def _json(connection: duckdb.DuckDBPyConnection, path: Path, mapping: ColumnMapping) -> pa.Table:
    """Each object's values as text; a line that is no object stands in `BROKEN` alone."""
    file = literal(str(path))
    with pa.input_stream(str(path), compression="detect") as stream:
        array = stream.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    lines = (
        f"SELECT CAST(json AS VARCHAR) AS line FROM read_json_objects({file}, format='array')"
        if array
        # no line of JSON has a unit separator but as an escape, so that it is one cell
        else f"SELECT line FROM read_csv({file}, auto_detect=false, columns={{line: 'VARCHAR'}}, header=false, "
        f"delim=chr(31), quote='', escape='', comment='', strict_mode=false, max_line_size={_LINE_BYTES}) "
        "WHERE trim(line) <> ''"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE lines AS SELECT line, "
        f"CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END AS good FROM ({lines})"
    )
    keys = connection.sql(
        "SELECT key FROM (SELECT unnest(json_keys(line)) AS key, rowid AS number, "
        "generate_subscripts(json_keys(line), 1) AS nth FROM lines WHERE good) GROUP BY key ORDER BY min((number, nth))"
    ).fetchall()
    if not keys:
        raise SourceError(f"The log {path} has no rows that are JSON objects. Give the path of another file.")
    said = [str(key) for (key,) in keys]
    mapping.check_against(said, f"the log {path}")
    paths = ", ".join(literal(f"$.{json.dumps(key, ensure_ascii=False)}") for key in said)
    cells = ", ".join(
        f"cells[{place}] AS {quoted(name)}" for place, name in enumerate(_distinct(said), start=1)
    )
    return connection.sql(
        f"SELECT {cells}, CASE WHEN NOT good THEN line END AS {quoted(BROKEN)} FROM "
        f"(SELECT *, CASE WHEN good THEN json_extract_string(line, [{paths}]) END AS cells FROM lines)"
    ).to_arrow_table()


def _parquet(connection: duckdb.DuckDBPyConnection, path: Path, mapping: ColumnMapping) -> pa.Table:
    """The columns as text; ids that are whole numbers without a point, as the landing zone's door writes them."""
    relation = connection.sql(f"SELECT * FROM read_parquet({literal(str(path))})")
    names, types = relation.columns, [str(one) for one in relation.types]
    mapping.check_against(names, f"the log {path}")
    ids = {mapping.columns[key] for key in _IDS if key in mapping.columns}
    cells = []
    for name, kind in zip(names, types, strict=True):
        column = quoted(name)
        text = f"CAST({column} AS VARCHAR)"
        if name in ids and kind in ("DOUBLE", "FLOAT"):  # what pandas makes of whole numbers where one is missing
            whole = f"{column} = trunc({column}) AND abs({column}) <= {_WHOLE_UNTIL}"
            text = f"CASE WHEN {whole} THEN CAST(CAST({column} AS BIGINT) AS VARCHAR) ELSE {text} END"
        cells.append(f"{text} AS {column}")
    return connection.sql(f"SELECT {', '.join(cells)} FROM relation").to_arrow_table()
