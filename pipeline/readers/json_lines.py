"""JSON lines and JSON arrays: read by DuckDB over all files at once, with a second look at what it may misread."""

from __future__ import annotations

import json
from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.masking import PERSON_NAME
from pipeline.picking import picked
from pipeline.readers.gathered import WHOLE_FILE, Gathered, raw_schema, shortened
from pipeline.schema import Feed
from pipeline.unpacking import MAX_DOCUMENT_BYTES, BrokenFile, CutLine, Lines, LongLine

# A number that is no integer may have lost its spelling; a bracket may open a nested value.
_DOUBTFUL_TEXT = r"^-?[0-9]+(\.[0-9]+([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)$|^[\[{]"


class JsonLines:
    """The JSON files of one feed: their lines are kept as they come and read together."""

    def __init__(self, into: Gathered) -> None:
        self.into = into
        self._parts: list[tuple[int, int, pa.Array, np.ndarray]] = []  # file, place, lines, numbers

    def take(self, file: int, parts: Iterator[Lines | LongLine | CutLine], *, whole_document: bool) -> None:
        """JSON lines; with `whole_document` the file may also be one JSON array, whose elements are the rows."""
        try:
            self._take(file, self.into.good_lines(file, parts), whole_document=whole_document)
        except BrokenFile as error:
            self._parts = [part for part in self._parts if part[0] != file]
            self.into.refuse_file(file, error)

    def _take(self, file: int, good: Iterator[tuple[pa.Array, np.ndarray]], *, whole_document: bool) -> None:
        for number, (lines, numbers) in enumerate(good):
            if whole_document and number == 0 and len(lines) and lines[0].as_py().lstrip().startswith("["):
                self._take_array(file, pa.concat_arrays(_document(lines, good)))
                return
            self._parts.append((file, self.into.keep(lines), lines, numbers))

    def _take_array(self, file: int, lines: pa.Array) -> None:
        document = "".join(lines.to_pylist())
        try:
            elements = [_as_line(element) for element in _exact_array(document)]
        except (ValueError, RecursionError) as error:
            detail = f"as a JSON array: {shortened(str(error))}"
            self.into.refusals.add(file, WHOLE_FILE, "malformed_json", detail, document)
            return
        content = pa.array(elements, pa.string())
        self._parts.append((file, self.into.keep(content), content, np.arange(1, len(elements) + 1)))

    def rows(self) -> pa.Table:
        """The rows of all files (`raw_schema`); refuses the lines that are none."""
        if not self._parts:
            return raw_schema(self.into.feed).empty_table()
        numbers = np.concatenate([numbers for _, _, _, numbers in self._parts])
        counts = [len(lines) for _, _, lines, _ in self._parts]
        files = np.repeat(np.array([file for file, _, _, _ in self._parts], np.int32), counts)
        places = np.concatenate([np.arange(place, place + len(lines)) for _, place, lines, _ in self._parts])
        lines = pa.chunked_array(_larger([lines for _, _, lines, _ in self._parts]))
        parsed = _parse_json(lines, self.into.feed)
        at = parsed["number"].to_numpy()
        columns = {name: parsed[name] for name in self.into.feed.raw_names}
        columns |= {"file": pa.array(files[at]), "source_row": pa.array(numbers[at]), "place": pa.array(places[at])}
        rows = pa.table(columns).cast(raw_schema(self.into.feed))
        bad = np.setdiff1d(np.arange(len(lines)), at, assume_unique=True)
        for row, line in zip(bad.tolist(), picked(lines, bad).to_pylist(), strict=True):
            self.into.refusals.add(int(files[row]), int(numbers[row]), "malformed_json", _json_fault(line), line)
        return self._without_other_feeds(self._second_look(rows, parsed["key_count"].to_numpy(), lines, at))

    def _second_look(self, rows: pa.Table, keys: np.ndarray, lines: pa.ChunkedArray, at: np.ndarray) -> pa.Table:
        """Rows whose fast reading may differ from the file are read again, one by one; few of a file are."""
        filled = np.zeros(len(rows), np.int64)
        doubtful = np.zeros(len(rows), bool)
        for column in self.into.feed.columns:
            values = rows[column.name]
            filled += values.is_valid().to_numpy()
            if column.name != self.into.feed.time:  # no time is a number or nested: cleaning refuses it as it stands
                doubtful |= _doubtful(values, number=pa.types.is_floating(column.type))
        odd = keys != filled  # nulls, columns of no feed, or one key twice
        suspects = np.flatnonzero(doubtful | odd)
        if not len(suspects):
            return rows
        return self._look_again(rows, suspects, picked(lines, at[suspects]))

    def _look_again(self, rows: pa.Table, suspects: np.ndarray, lines: pa.ChunkedArray) -> pa.Table:
        names = self.into.feed.raw_names
        found_rows = picked(rows, suspects)
        columns = {name: found_rows[name].to_pylist() for name in names}
        files, numbers = found_rows["file"].to_pylist(), found_rows["source_row"].to_pylist()
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
                self.into.refusals.add(files[place], numbers[place], *fault, line)
                continue
            for name in names:
                columns[name][place] = _as_json_text(found.get(name))
            extra.setdefault(files[place], {}).update(dict.fromkeys(key for key in found if key not in names))
        self.into.extra |= {file: tuple(keys) for file, keys in extra.items() if keys}
        rows = _with_values(rows, suspects, columns)
        return rows if keep.all() else rows.filter(pa.array(keep))

    def _without_other_feeds(self, rows: pa.Table) -> pa.Table:
        """Refuses the rows of files in which a required column never appears: another feed's file, or renamed."""
        if not len(rows):
            return rows
        found = rows.group_by("file").aggregate([(name, "count") for name in self.into.feed.required])
        lacking = np.zeros(len(found), bool)
        for name in self.into.feed.required:
            lacking |= found[f"{name}_count"].to_numpy() == 0
        if not lacking.any():
            return rows
        wrong = pc.is_in(rows["file"], found["file"].filter(pa.array(lacking)))
        refused = rows.filter(wrong)
        kept = picked(pa.chunked_array(self.into.lines, pa.string()), refused["place"].to_numpy()).to_pylist()
        problems: dict[int, tuple[str, str]] = {}
        absent = {
            file: [name for name in self.into.feed.required if counts[f"{name}_count"] == 0]
            for counts in found.to_pylist()
            for file in [counts["file"]]
        }
        for file, number, line in zip(
            refused["file"].to_pylist(), refused["source_row"].to_pylist(), kept, strict=True
        ):
            row = json.loads(line, parse_int=_Number)
            if file not in problems:
                names = [name for name in row if name not in absent[file]]
                missing = self.into.missing_columns(names)
                problems[file] = missing if missing else ("missing_column", ", ".join(absent[file]))
            self.into.persons.update(str(value) for name, value in row.items() if value and PERSON_NAME.search(name))
            self.into.refusals.add(file, number, *problems[file], line)
            self.into.extra.pop(file, None)
        return rows.filter(pc.invert(wrong))


def _document(first: pa.Array, rest: Iterator[tuple[pa.Array, np.ndarray]]) -> list[pa.Array]:
    """The lines of a JSON array, as long as it is short enough to be parsed as a whole."""
    parts, size_bytes = [first], first.nbytes
    for more, _ in rest:
        parts.append(more)
        size_bytes += more.nbytes
        if size_bytes > MAX_DOCUMENT_BYTES:
            break
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise BrokenFile("too_large", f"a JSON array of over {MAX_DOCUMENT_BYTES} bytes; land it as JSON lines")
    return parts


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
        found[at] = pc.match_substring_regex(picked(values, at), _DOUBTFUL_TEXT).to_numpy()
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
        return shortened(str(error))
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
    """The text of a JSON number, of any length: Python makes no int of more than 4,300 digits."""

    __slots__ = ()


def _exact_array(text: str) -> list[object]:
    value = json.loads(text, parse_float=_Number, parse_int=_Number, parse_constant=_Number)
    if not isinstance(value, list):
        raise ValueError("not an array")
    return value


def _as_line(element: object) -> str:
    """An array's element as JSON; half a surrogate pair is escaped as it was, for no UTF-8 can hold it."""
    return json.dumps(element, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _exact_row(line: str) -> tuple[tuple[str, str] | None, dict[str, object]]:
    """The object on a line with the text of its numbers, or the fault that refuses it."""
    try:
        found = json.loads(
            line, object_pairs_hook=_pairs, parse_float=_Number, parse_int=_Number, parse_constant=_Number
        )
    except _KeyTwice as error:
        return ("duplicate_key", f"the key {shortened(str(error))} comes twice"), {}
    except (ValueError, RecursionError) as error:
        return ("malformed_json", shortened(str(error))), {}
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
