"""The rows of landed files as text, from JSON lines, CSV and Parquet: every row is read or refused with a reason.

The good path is vectorised over many files at once (DuckDB for JSON, pyarrow for CSV and Parquet); only what
they cannot read is looked at line by line. A value keeps the text that it has in the file; the exception is a
JSON number of a numeric column, which keeps its value ("1.10" may come as "1.1").
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.masking import PERSON_NAME
from pipeline.schema import Feed
from pipeline.unpacking import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    MAX_RAW_BYTES,
    BrokenFile,
    CutLine,
    Lines,
    LongLine,
)

# Lists of equal values pack to almost nothing in Parquet, so rows are limited beside bytes: 16 million of the
# narrowest rows fill MAX_FILE_BYTES.
MAX_FILE_ROWS = 16_000_000
# A number that is no integer may have lost its spelling; a bracket may open a nested value.
_DOUBTFUL_TEXT = r"^-?[0-9]+(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$|^[\[{]"
_BLANK_BYTES = 16  # no row of any feed is as short, and no blank line longer (or it is malformed, which is no harm)
_WHOLE_FILE = 0  # source_row of a refusal that is about a file, not about a row of it

REFUSED_SCHEMA = pa.schema(
    [
        pa.field("file", pa.int32()),  # index into the files that are read together
        pa.field("source_row", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("raw", pa.string()),  # cut at MAX_RAW_BYTES, not masked yet
        pa.field("raw_bytes", pa.int64()),
    ]
)


@dataclass
class Refusals:
    """Rows, lines and files that cannot be read, gathered while reading."""

    _single: list[tuple[int, int, str, str, str | None, int]] = field(default_factory=list)

    def add(
        self, file: int, row: int, reason: str, detail: str, raw: bytes | str | None = None, length: int | None = None
    ) -> None:
        """Refuses a row (0: the whole file); of `raw` the beginning is kept, `length` is its own if not given."""
        content = raw.encode() if isinstance(raw, str) else raw or b""
        kept = None if raw is None else content.rstrip(b"\r\n")[:MAX_RAW_BYTES].decode("utf-8", "replace")
        self._single.append(
            (file, row, reason, detail, kept, len(content.rstrip(b"\r\n")) if length is None else length)
        )

    def forget(self, file: int) -> None:
        """Takes back what was refused of a file that is refused as a whole."""
        self._single = [row for row in self._single if row[0] != file]

    def table(self) -> pa.Table:
        """All refusals, REFUSED_SCHEMA."""
        columns: list[Any] = list(zip(*self._single, strict=True)) or [[]] * len(REFUSED_SCHEMA)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, REFUSED_SCHEMA, strict=True)]
        return pa.table(arrays, REFUSED_SCHEMA)


def raw_schema(feed: Feed) -> pa.Schema:
    """What reading gives: the feed's columns as text, and where each row stood."""
    return pa.schema(
        [
            *(pa.field(name, pa.string()) for name in feed.raw_names),
            pa.field("file", pa.int32()),
            pa.field("source_row", pa.int64()),
            pa.field("place", pa.int64()),  # index of the row's line among the lines read; -1: it had none
        ]
    )


class Reader:
    """Reads the files of one feed, one after the other, into one table.

    Attributes:
        refusals: what could not be read so far.
        extra: index of a file -> the columns that it carries and the feed does not have.
        persons: raw ids of persons seen in columns that no table takes, for masking refused raw text.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.refusals = Refusals()
        self.extra: dict[int, tuple[str, ...]] = {}
        self.persons: set[str] = set()
        self._tables: list[pa.Table] = []
        self._lines: list[pa.Array] = []
        self._lines_read = 0
        self._json: list[tuple[int, int, pa.Array, np.ndarray]] = []  # file, place, lines, numbers

    # -- lines ---------------------------------------------------------------------------------------------

    def take_json(self, file: int, parts: Iterator[Lines | LongLine | CutLine], *, whole_document: bool) -> None:
        """JSON lines; with `whole_document` the file may also be one JSON array, whose elements are the rows."""
        try:
            self._take_json(file, self._good_lines(file, parts), whole_document=whole_document)
        except BrokenFile as error:
            self._json = [part for part in self._json if part[0] != file]
            self._refuse_file(file, error)

    def _refuse_file(self, file: int, error: BrokenFile) -> None:
        self.refusals.forget(file)
        self.refusals.add(file, _WHOLE_FILE, error.reason, error.detail)

    def _take_json(self, file: int, good: Iterator[tuple[pa.Array, np.ndarray]], *, whole_document: bool) -> None:
        for number, (lines, numbers) in enumerate(good):
            if whole_document and number == 0 and len(lines) and lines[0].as_py().lstrip().startswith("["):
                self._take_array(file, pa.concat_arrays([lines, *(more for more, _ in good)]))
                return
            self._json.append((file, self._keep(lines), lines, numbers))

    def _take_array(self, file: int, lines: pa.Array) -> None:
        document = "".join(lines.to_pylist())
        try:
            elements = [json.dumps(element, ensure_ascii=False) for element in _exact_array(document)]
        except (ValueError, RecursionError) as error:
            self.refusals.add(file, _WHOLE_FILE, "malformed_json", f"as a JSON array: {_short(str(error))}", document)
            return
        content = pa.array(elements, pa.string())
        self._json.append((file, self._keep(content), content, np.arange(1, len(elements) + 1)))

    def _good_lines(
        self, file: int, parts: Iterator[Lines | LongLine | CutLine]
    ) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """UTF-8 lines that are not blank, as `[lines]` string, and their numbers; the others are refused."""
        for part in parts:
            if isinstance(part, LongLine):
                self.refusals.add(
                    file,
                    part.number,
                    "line_too_long",
                    f"{part.length_bytes} bytes; allowed: {MAX_LINE_BYTES}",
                    part.beginning,
                    part.length_bytes,
                )
            elif isinstance(part, CutLine) and part.broken.reason == "too_large":
                raise part.broken  # an attack or an accident: none of it is taken
            elif isinstance(part, CutLine):
                self.refusals.add(file, part.number, part.broken.reason, part.broken.detail, part.content)
            else:
                numbers = np.arange(part.first, part.first + len(part.content))
                try:
                    lines = part.content.cast(pa.string())
                except pa.ArrowInvalid:
                    lines, numbers = self._utf8_lines(file, part)
                if len(lines) and pc.min(pc.binary_length(lines)).as_py() <= _BLANK_BYTES:
                    blank = pc.match_substring_regex(lines, r"^\s*$")
                    lines, numbers = lines.filter(pc.invert(blank)), numbers[~blank.to_numpy(zero_copy_only=False)]
                yield lines, numbers

    def _utf8_lines(self, file: int, part: Lines) -> tuple[pa.Array, np.ndarray]:
        good: list[str] = []
        numbers: list[int] = []
        for number, line in enumerate(part.content.to_pylist(), start=part.first):
            try:
                good.append(line.decode())
                numbers.append(number)
            except UnicodeDecodeError as error:
                self.refusals.add(file, number, "invalid_utf8", f"{error.reason} at byte {error.start}", line)
        return pa.array(good, pa.string()), np.array(numbers, np.int64)

    def _keep(self, lines: pa.Array) -> int:
        place = self._lines_read
        self._lines.append(lines)
        self._lines_read += len(lines)
        return place

    # -- CSV -----------------------------------------------------------------------------------------------

    def take_csv(self, file: int, parts: Iterator[Lines | LongLine | CutLine], delimiter: str) -> None:
        """Comma or tab separated values under a header line."""
        try:
            read = list(self._good_lines(file, parts))
        except BrokenFile as error:
            self._refuse_file(file, error)
            return
        lines = pa.concat_arrays([lines for lines, _ in read]) if read else pa.array([], pa.string())
        numbers = np.concatenate([numbers for _, numbers in read]) if read else np.zeros(0, np.int64)
        if not len(lines):
            return
        header = [name.strip() for name in next(csv.reader([lines[0].as_py()], delimiter=delimiter))]
        lines, numbers = lines.slice(1), numbers[1:]
        problem = self._header_problem(file, header)
        if problem:
            people = [place for place, name in enumerate(header) if PERSON_NAME.search(name)]
            for number, line in zip(numbers.tolist(), lines.to_pylist(), strict=True):
                self._remember_cells(line, delimiter, people)
                self.refusals.add(file, number, *problem, line)
            return
        place = self._keep(lines)
        places = np.arange(place, place + len(lines))
        quotes = pc.count_substring(lines, '"').to_numpy(zero_copy_only=False)
        inner = pc.match_substring_regex(lines, r"\r[^\n]").to_numpy(zero_copy_only=False)
        several = (quotes % 2 == 1) | inner
        if several.any():
            several = self._several_lines(file, lines, numbers, several, header, delimiter)
            keep = pa.array(~several)
            lines, numbers, places = lines.filter(keep), numbers[~several], places[~several]
        if len(lines):
            self._single_lines(file, lines, numbers, places, header, delimiter)

    def _header_problem(self, file: int, header: Sequence[str]) -> tuple[str, str] | None:
        known = [name for name in header if name in self.feed.raw_names]
        twice = sorted({name for name in known if known.count(name) > 1})
        if twice:
            return "duplicate_column", f"the header names {', '.join(twice)} more than once"
        problem = self._missing(header)
        extra = tuple(name for name in header if name not in self.feed.raw_names)
        if extra and problem is None:
            self.extra[file] = extra
        return problem

    def _missing(self, names: Sequence[str]) -> tuple[str, str] | None:
        missing = [name for name in self.feed.required if name not in names]
        if not missing:
            return None
        near = difflib.get_close_matches(missing[0], names, n=3, cutoff=0.5)
        said = f"; near: {', '.join(near)}" if near else ""
        return "missing_column", f"{', '.join(missing)} not among {_short(', '.join(names))}{said}"

    def _remember_cells(self, line: str, delimiter: str, people: Sequence[int]) -> None:
        if not people:
            return
        cells = next(csv.reader([line], delimiter=delimiter), [])
        self.persons.update(cells[place].strip() for place in people if place < len(cells))

    def _several_lines(
        self, file: int, lines: pa.Array, numbers: np.ndarray, odd: np.ndarray, header: Sequence[str], delimiter: str
    ) -> np.ndarray:
        """Reads the records that go over several lines; returns which lines are dealt with.

        A record goes from a line with an unpaired quote to the next such line, if what lies between them has
        as many cells as the header. If not, the quote was never closed: its line alone is refused.
        """
        done = odd.copy()
        starts = np.flatnonzero(odd).tolist()
        rows: list[list[str]] = []
        first: list[int] = []
        number = 0
        while number < len(starts):
            start = starts[number]
            number += 1
            end = start if lines[start].as_py().count('"') % 2 == 0 else None  # a bare carriage return inside quotes
            if end is None and number < len(starts):
                end = starts[number]
            text = "".join(lines.slice(start, end - start + 1).to_pylist()) if end is not None else ""
            record = _one_record(text, delimiter) if 0 < len(text) <= MAX_LINE_BYTES else None
            if record is None or len(record) != len(header):
                line = lines[start].as_py()
                self._remember_cells(line, delimiter, _people_at(header, len(header)))
                self.refusals.add(file, int(numbers[start]), "malformed_csv", "a quote is not closed", line)
                continue
            assert end is not None
            done[start : end + 1] = True
            number += end > start
            rows.append(record)
            first.append(int(numbers[start]))
        if rows:
            columns = {
                name: pa.array([row[place] or None for row in rows], pa.string())
                for place, name in enumerate(header)
                if name in self.feed.raw_names
            }
            self._add(file, pa.table(columns), np.array(first), np.full(len(rows), -1))
        return done

    def _single_lines(
        self, file: int, lines: pa.Array, numbers: np.ndarray, places: np.ndarray, header: Sequence[str], delimiter: str
    ) -> None:
        bad: list[pa_csv.InvalidRow] = []

        def refuse(row: pa_csv.InvalidRow) -> str:
            bad.append(row)
            return "skip" if row.number is not None else "error"

        content = _bytes_of(lines)
        try:
            table = _read_csv(content, header, self.feed, delimiter, refuse, threads=True)
        except pa.ArrowInvalid:
            bad.clear()  # only one thread knows the numbers of the rows that it skips
            table = _read_csv(content, header, self.feed, delimiter, refuse, threads=False)
        skipped = np.array([row.number - 1 for row in bad], np.int64)
        for row, at in zip(bad, skipped.tolist(), strict=True):
            line = lines[at].as_py()
            self._remember_cells(line, delimiter, _people_at(header, row.actual_columns))
            self.refusals.add(
                file,
                int(numbers[at]),
                "wrong_number_of_cells",
                f"{row.actual_columns} cells; the header has {row.expected_columns}",
                line,
            )
        self._add(file, table, np.delete(numbers, skipped), np.delete(places, skipped))

    # -- Parquet -------------------------------------------------------------------------------------------

    def take_parquet(self, file: int, content: pa.Buffer) -> None:
        """One Parquet file, typed or text."""
        try:
            parquet = pq.ParquetFile(pa.BufferReader(content))
            unpacked_bytes = sum(parquet.metadata.row_group(n).total_byte_size for n in range(parquet.num_row_groups))
        except (pa.ArrowException, OSError) as error:
            self.refusals.add(
                file,
                _WHOLE_FILE,
                "unreadable_parquet",
                _short(str(error)),
                bytes(content[:MAX_RAW_BYTES]),
                content.size,
            )
            return
        rows = parquet.metadata.num_rows
        if unpacked_bytes > MAX_FILE_BYTES or rows > MAX_FILE_ROWS:
            allowed = f"allowed: {MAX_FILE_BYTES} bytes, {MAX_FILE_ROWS} rows; land it as several files"
            detail = f"{unpacked_bytes} bytes unpacked, {rows} rows; {allowed}"
            self.refusals.add(file, _WHOLE_FILE, "too_large", detail, None, content.size)
            return
        names = parquet.schema_arrow.names
        problem = self._header_problem(file, names)
        begin = 0
        for group in range(parquet.num_row_groups):
            try:
                table = parquet.read_row_group(
                    group, columns=None if problem else [name for name in names if name in self.feed.raw_names]
                )
            except (pa.ArrowException, OSError) as error:
                detail = f"row group {group + 1} of {parquet.num_row_groups}: {_short(str(error))}"
                self.refusals.add(file, begin + 1, "truncated_file", detail)
                return
            if problem:
                self._refuse_rows(file, table, begin, problem)
            else:
                self._add_typed(file, table, np.arange(begin + 1, begin + len(table) + 1))
            begin += len(table)

    def _refuse_rows(self, file: int, table: pa.Table, begin: int, problem: tuple[str, str]) -> None:
        people = [name for name in table.column_names if PERSON_NAME.search(name)]
        for number, row in enumerate(table.to_pylist(), start=begin + 1):
            self.persons.update(str(row[name]) for name in people if row[name] is not None)
            self.refusals.add(file, number, *problem, json.dumps(row, default=str, ensure_ascii=False))

    def _add_typed(self, file: int, table: pa.Table, numbers: np.ndarray) -> None:
        columns = {}
        good = np.ones(len(table), bool)
        for name in table.column_names:
            column, readable = _as_text(table[name])
            columns[name] = column
            for at in np.flatnonzero(good & ~readable).tolist():
                self.refusals.add(
                    file,
                    int(numbers[at]),
                    "nested_value",
                    f"{name} is of type {table[name].type}, not one value",
                    json.dumps(table.slice(at, 1).to_pylist()[0], default=str, ensure_ascii=False),
                )
            good &= readable
        text = pa.table(columns)
        text = text if good.all() else text.filter(pa.array(good))
        self._add(file, text, numbers[good], np.full(int(good.sum()), -1))

    # -- the result ----------------------------------------------------------------------------------------

    def _add(self, file: int, table: pa.Table, numbers: np.ndarray, places: np.ndarray) -> None:
        columns = {name: table[name] for name in table.column_names}
        columns |= {
            "file": pa.array(np.full(len(table), file, np.int32)),
            "source_row": pa.array(numbers),
            "place": pa.array(places),
        }
        schema = raw_schema(self.feed)
        self._tables.append(
            pa.table([columns[f.name] if f.name in columns else pa.nulls(len(table), f.type) for f in schema], schema)
        )

    def finish(self) -> tuple[pa.Table, pa.ChunkedArray]:
        """All rows in order of file and row (`raw_schema`), and the lines that `place` counts."""
        lines = pa.chunked_array(self._lines, pa.string()) if self._lines else pa.chunked_array([[]], pa.string())
        read = self._read_json() if self._json else raw_schema(self.feed).empty_table()
        rows = pa.concat_tables(_in_file_order(read, self._tables))
        key = np.asarray(rows["file"], np.int64) * (1 << 40) + np.asarray(rows["source_row"])
        if (np.diff(key) < 0).any():
            rows = rows.take(np.argsort(key, kind="stable"))
        return rows, lines

    def _read_json(self) -> pa.Table:
        numbers = np.concatenate([numbers for _, _, _, numbers in self._json])
        counts = [len(lines) for _, _, lines, _ in self._json]
        files = np.repeat(np.array([file for file, _, _, _ in self._json], np.int32), counts)
        places = np.concatenate([np.arange(place, place + len(lines)) for _, place, lines, _ in self._json])
        lines = pa.chunked_array(_larger([lines for _, _, lines, _ in self._json]))
        parsed = _parse_json(lines, self.feed)
        at = parsed["number"].to_numpy()
        columns = {name: parsed[name] for name in self.feed.raw_names}
        columns |= {"file": pa.array(files[at]), "source_row": pa.array(numbers[at]), "place": pa.array(places[at])}
        rows = pa.table(columns).cast(raw_schema(self.feed))
        bad = np.setdiff1d(np.arange(len(lines)), at, assume_unique=True)
        for row, line in zip(bad.tolist(), lines.take(bad).to_pylist(), strict=True):
            self.refusals.add(int(files[row]), int(numbers[row]), "malformed_json", _json_fault(line), line)
        return self._without_other_feeds(
            self._second_look(rows, parsed["key_count"].to_numpy(), lines, at), lines, places
        )

    def _second_look(self, rows: pa.Table, keys: np.ndarray, lines: pa.ChunkedArray, at: np.ndarray) -> pa.Table:
        """Rows whose fast reading may differ from the file are read again, one by one; few of a file are."""
        filled = np.zeros(len(rows), np.int64)
        doubtful = np.zeros(len(rows), bool)
        for column in self.feed.columns:
            values = rows[column.name]
            filled += values.is_valid().to_numpy()
            if column.name != self.feed.time:  # no time is a number or nested: cleaning refuses it as it stands
                doubtful |= _doubtful(values, number=pa.types.is_floating(column.type))
        odd = keys != filled  # nulls, columns of no feed, or one key twice
        suspects = np.flatnonzero(doubtful | odd)
        if not len(suspects):
            return rows
        return self._look_again(rows, suspects, lines.take(at[suspects]))

    def _look_again(self, rows: pa.Table, suspects: np.ndarray, lines: pa.ChunkedArray) -> pa.Table:
        names = self.feed.raw_names
        columns = {name: rows[name].take(suspects).to_pylist() for name in names}
        files, numbers = rows["file"].take(suspects).to_pylist(), rows["source_row"].take(suspects).to_pylist()
        keep = np.ones(len(rows), bool)
        extra: dict[int, dict[str, None]] = {}
        for place, line in enumerate(lines.to_pylist()):
            fault, found = _exact_row(line)
            if fault is None:
                fault = next(
                    (
                        ("nested_value", f"{name} is a list or an object, not one value")
                        for name in names
                        if isinstance(found.get(name), dict | list)
                    ),
                    None,
                )
            if fault is not None:
                keep[suspects[place]] = False
                self.refusals.add(files[place], numbers[place], *fault, line)
                continue
            for name in names:
                columns[name][place] = _as_json_text(found.get(name))
            extra.setdefault(files[place], {}).update(dict.fromkeys(key for key in found if key not in names))
        self.extra |= {file: tuple(keys) for file, keys in extra.items() if keys}
        rows = _with_values(rows, suspects, columns)
        return rows if keep.all() else rows.filter(pa.array(keep))

    def _without_other_feeds(self, rows: pa.Table, lines: pa.ChunkedArray, places: np.ndarray) -> pa.Table:
        """Refuses the rows of files in which a required column never appears: another feed's file, or renamed."""
        if not len(rows):
            return rows
        found = rows.group_by("file").aggregate([(name, "count") for name in self.feed.required])
        lacking = np.zeros(len(found), bool)
        for name in self.feed.required:
            lacking |= found[f"{name}_count"].to_numpy() == 0
        if not lacking.any():
            return rows
        wrong = pc.is_in(rows["file"], found["file"].filter(pa.array(lacking)))
        refused = rows.filter(wrong)
        kept = pa.chunked_array(self._lines, pa.string()).take(refused["place"]).to_pylist()
        problems: dict[int, tuple[str, str]] = {}
        absent = {
            file: [name for name in self.feed.required if counts[f"{name}_count"] == 0]
            for counts in found.to_pylist()
            for file in [counts["file"]]
        }
        for file, number, line in zip(
            refused["file"].to_pylist(), refused["source_row"].to_pylist(), kept, strict=True
        ):
            row = json.loads(line)
            if file not in problems:
                names = [name for name in row if name not in absent[file]]
                missing = self._missing(names)
                problems[file] = missing if missing else ("missing_column", ", ".join(absent[file]))
            self.persons.update(str(value) for name, value in row.items() if value and PERSON_NAME.search(name))
            self.refusals.add(file, number, *problems[file], line)
            self.extra.pop(file, None)
        return rows.filter(pc.invert(wrong))


def _in_file_order(json_rows: pa.Table, others: Sequence[pa.Table]) -> list[pa.Table]:
    """All tables with the JSON files' rows cut where other files come between them; moves no row."""
    files = json_rows["file"].to_numpy()
    parts, begin = [], 0
    for table in sorted((table for table in others if len(table)), key=lambda table: table["file"][0].as_py()):
        end = int(np.searchsorted(files, table["file"][0].as_py()))
        parts += [json_rows.slice(begin, end - begin), table]
        begin = end
    return [*parts, json_rows.slice(begin)]


def _doubtful(values: pa.ChunkedArray, *, number: bool) -> np.ndarray:
    """Which texts may not be what the file says: a number that lost its spelling, a nested value."""
    if number:
        return pc.fill_null(pc.match_substring_regex(values, r"[eE]|^[\[{]"), False).to_numpy()
    # comparing beginnings first leaves few texts to the expression, or none
    early = pc.or_(pc.less(values, ":"), pc.or_(pc.starts_with(values, "["), pc.starts_with(values, "{")))
    found = pc.fill_null(early, False).to_numpy()
    if found.any():
        found = found.copy()
        at = np.flatnonzero(found)
        found[at] = pc.match_substring_regex(values.take(at), _DOUBTFUL_TEXT).to_numpy()
    return found


def _larger(arrays: list[pa.Array]) -> list[pa.Array]:
    """The arrays, small ones put together: a year of hourly files is 10,000 arrays of a few lines."""
    groups: list[list[pa.Array]] = [[]]
    size = 0
    for array in arrays:
        if size + array.nbytes > 16 << 20 and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(array)
        size += array.nbytes
    return [pa.concat_arrays(group) if len(group) > 1 else group[0] for group in groups if group]


def _parse_json(lines: pa.ChunkedArray, feed: Feed) -> pa.Table:
    """Of each line that is a JSON object: the feed's columns as text, `number` (its index), `key_count`."""
    connection = duckdb.connect()
    connection.register("landed", pa.table({"line": lines, "number": pa.array(np.arange(len(lines)))}))
    shape = json.dumps(dict.fromkeys(feed.raw_names, "VARCHAR"))
    return connection.sql(
        f"SELECT unnest(from_json(line, '{shape}')), number, len(json_keys(line)) AS key_count FROM landed "
        "WHERE json_valid(line) AND json_type(line) = 'OBJECT'"
    ).to_arrow_table()


def _json_fault(line: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _short(str(error))
    return f"a row is a JSON object; this is {type(value).__name__}"


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, _ in pairs]
        raise _KeyTwice(next(key for key in twice if twice.count(key) > 1))
    return found


class _KeyTwice(ValueError):
    """A JSON object has a key twice."""


class _Number(str):
    """The text of a JSON number."""

    __slots__ = ()


def _exact_array(text: str) -> list[object]:
    value = json.loads(text, parse_float=_Number, parse_int=_Number, parse_constant=_Number)
    if not isinstance(value, list):
        raise ValueError("not an array")
    return value


def _exact_row(line: str) -> tuple[tuple[str, str] | None, dict[str, object]]:
    """The object on a line with the text of its numbers, or the fault that refuses it."""
    try:
        found = json.loads(
            line, object_pairs_hook=_pairs, parse_float=_Number, parse_int=_Number, parse_constant=_Number
        )
    except _KeyTwice as error:
        return ("duplicate_key", f"the key {_short(str(error))} comes twice"), {}
    except (ValueError, RecursionError) as error:
        return ("malformed_json", _short(str(error))), {}
    return None, found


def _as_json_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value if value is None else str(value)
    return "true" if value else "false"


def _with_values(rows: pa.Table, at: np.ndarray, columns: dict[str, list[str | None]]) -> pa.Table:
    mask = np.zeros(len(rows), bool)
    mask[at] = True
    for name, values in columns.items():
        new = pc.replace_with_mask(rows[name].combine_chunks(), pa.array(mask), pa.array(values, pa.string()))
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), new)
    return rows


def _one_record(text: str, delimiter: str) -> list[str] | None:
    try:
        records = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return records[0] if len(records) == 1 else None


def _people_at(header: Sequence[str], cells: int) -> list[int]:
    """Where a person may stand in a line with another number of cells: counted from the left and the right."""
    people = [place for place, name in enumerate(header) if PERSON_NAME.search(name)]
    return [place for at in people for place in {at, cells - len(header) + at} if place >= 0]


def _bytes_of(lines: pa.Array) -> pa.Buffer:
    """The lines' bytes one after the other, each with a line end."""
    if not lines[-1].as_py().endswith("\n"):
        lines = pa.concat_arrays([lines.slice(0, len(lines) - 1), pa.array([lines[-1].as_py() + "\n"])])
    offsets = np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
    return lines.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _read_csv(
    content: pa.Buffer,
    header: Sequence[str],
    feed: Feed,
    delimiter: str,
    refuse: Callable[[pa_csv.InvalidRow], str],
    *,
    threads: bool,
) -> pa.Table:
    known = [name for name in header if name in feed.raw_names]
    # names of other columns may repeat or be empty: they are not read
    names = [name if name in feed.raw_names else f"extra {place}" for place, name in enumerate(header)]
    return pa_csv.read_csv(
        pa.BufferReader(content),
        pa_csv.ReadOptions(column_names=names, use_threads=threads, block_size=4 * MAX_LINE_BYTES),
        pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=refuse, ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            include_columns=known,
            column_types=dict.fromkeys(known, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )


def _as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """A typed column as text, and which rows have a text: nested values and bytes that are no UTF-8 have none."""
    kind = column.type
    everyone = np.ones(len(column), bool)
    if pa.types.is_dictionary(kind):
        return _as_text(column.cast(kind.value_type))
    if pa.types.is_nested(kind):
        return pa.chunked_array([pa.nulls(len(column), pa.string())]), column.is_null().to_numpy()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return _bytes_as_text(column)
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.timestamp("us", "UTC"))
    return column.cast(pa.string()), everyone


def _bytes_as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    try:
        return column.cast(pa.binary()).cast(pa.string()), np.ones(len(column), bool)
    except pa.ArrowInvalid:
        values, good = [], []
        for value in column.to_pylist():
            try:
                values.append(None if value is None else value.decode())
                good.append(True)
            except UnicodeDecodeError:
                values.append(None)
                good.append(False)
        return pa.chunked_array([pa.array(values, pa.string())]), np.array(good, bool)


def _short(text: str) -> str:
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 300 else text[:300] + "…"  # a detail is read by a person
