"""Parquet: typed columns become the text that a shop would have written, nested values are refused."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.masking import PERSON_NAME
from pipeline.readers.gathered import NO_HEADER, WHOLE_FILE, Gathered, shortened
from pipeline.unpacking import MAX_FILE_BYTES, MAX_FILE_ROWS, MAX_RAW_BYTES

_BYTES = (  # and texts: nothing says that those of a file are UTF-8
    pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view,
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
)


class Parquet:
    """The Parquet files of one feed."""

    def __init__(self, into: Gathered) -> None:
        self.into = into

    def take(self, file: int, content: pa.Buffer) -> None:
        """One Parquet file, typed or text."""
        try:
            parquet = pq.ParquetFile(pa.BufferReader(content))
            unpacked_bytes = sum(parquet.metadata.row_group(n).total_byte_size for n in range(parquet.num_row_groups))
        except (pa.ArrowException, OSError) as error:
            self.into.refusals.add(
                file,
                WHOLE_FILE,
                "unreadable_parquet",
                shortened(str(error)),
                bytes(content[:MAX_RAW_BYTES]),
                content.size,
            )
            return
        rows = parquet.metadata.num_rows
        if unpacked_bytes > MAX_FILE_BYTES or rows > MAX_FILE_ROWS:
            allowed = f"allowed: {MAX_FILE_BYTES} bytes, {MAX_FILE_ROWS} rows; land it as several files"
            detail = f"{unpacked_bytes} bytes unpacked, {rows} rows; {allowed}"
            self.into.refusals.add(file, WHOLE_FILE, "too_large", detail, None, content.size)
            return
        names = parquet.schema_arrow.names
        problem = self.into.header_problem(file, names)
        wanted = None if problem else [name for name in names if name in self.into.feed.raw_names]
        # as dictionaries: a long text that is repeated a million times takes its own size, and is counted before
        # it is laid out
        parquet = pq.ParquetFile(pa.BufferReader(content), read_dictionary=_texts(parquet.metadata))
        tables, broken, expanded_bytes = [], None, 0
        for group in range(parquet.num_row_groups):
            try:
                tables.append(parquet.read_row_group(group, columns=wanted))
            except (pa.ArrowException, OSError) as error:
                broken = f"row group {group + 1} of {parquet.num_row_groups}: {shortened(str(error))}"
                break
            expanded_bytes += sum(_expanded_bytes(part) for column in tables[-1].columns for part in column.chunks)
            if expanded_bytes > MAX_FILE_BYTES:
                detail = f"over {MAX_FILE_BYTES} bytes, repeated values laid out; land it as several files"
                self.into.refusals.add(file, WHOLE_FILE, "too_large", detail, None, content.size)
                self.into.extra.pop(file, None)
                return
        begin = 0
        for table in tables:
            if problem:
                self._refuse_rows(file, table, begin, problem)
            else:
                self._add_typed(file, table, np.arange(begin + 1, begin + len(table) + 1))
            begin += len(table)
        if broken:
            self.into.refusals.add(file, begin + 1, "truncated_file", broken)

    def _refuse_rows(self, file: int, table: pa.Table, begin: int, problem: tuple[str, str]) -> None:
        people = [name for name in table.column_names if PERSON_NAME.search(name)]
        for number, row in enumerate(_for_showing(table), start=begin + 1):
            self.into.persons.update(str(row[name]) for name in people if row[name] is not None)
            text = json.dumps(row, default=str, ensure_ascii=False)
            kept = None if problem[0] == NO_HEADER else text
            self.into.refusals.add(file, number, *problem, kept, len(text.encode()))

    def _add_typed(self, file: int, table: pa.Table, numbers: np.ndarray) -> None:
        columns = {}
        good = np.ones(len(table), bool)
        for name in table.column_names:
            column, readable = _as_text(table[name])
            columns[name] = column
            for at in np.flatnonzero(good & ~readable).tolist():
                (row,) = _for_showing(table.slice(at, 1))
                self.into.refusals.add(
                    file,
                    int(numbers[at]),
                    "nested_value",
                    f"{name} is of type {table[name].type}, not one value or no UTF-8",
                    json.dumps(row, default=str, ensure_ascii=False),
                )
            good &= readable
        text = pa.table(columns)
        text = text if good.all() else text.filter(pa.array(good))
        self.into.add(file, text, numbers[good], np.full(int(good.sum()), -1))


def _texts(metadata: pq.FileMetaData) -> list[str]:
    """The paths of the columns of text or bytes."""
    columns = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    kinds = ("STRING", "NONE", "JSON", "ENUM")
    return [one.path for one in columns if one.physical_type == "BYTE_ARRAY" and one.logical_type.type in kinds]


def _expanded_bytes(values: pa.Array) -> int:
    """What values take once every repetition stands by itself."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return (pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0) + values.indices.nbytes
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _expanded_bytes(values.flatten())
    if pa.types.is_struct(kind):
        return sum(_expanded_bytes(part) for part in values.flatten())
    return int(values.nbytes)


def _for_showing(table: pa.Table) -> list[dict[str, object]]:
    """The rows for JSON, each single value as its text: Python has no year 20260 and no time zone `Foo/Bar`."""
    columns = []
    for column in table.columns:
        text, readable = _as_text(column)
        values: list[object] = text.to_pylist()
        for at in np.flatnonzero(~readable).tolist():
            values[at] = _for_python(column[at])
        columns.append(values)
    return [dict(zip(table.column_names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _for_python(value: pa.Scalar) -> object:
    """A nested value or bytes; the name of the type where Python has no such value."""
    try:
        return value.as_py()
    except (ValueError, OverflowError, KeyError):  # no UTF-8, a year without a date, an unknown time zone
        return f"<{value.type}>"


def _as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    """A typed column as text, and which rows have a text: nested values and bytes that are no UTF-8 have none."""
    kind = column.type
    everyone = np.ones(len(column), bool)
    if pa.types.is_dictionary(kind):
        return _as_text(column.cast(kind.value_type))
    if isinstance(kind, pa.UuidType):
        texts = [None if one is None else str(one) for one in column.to_pylist()]
        return pa.chunked_array([texts], pa.string()), everyone
    if isinstance(kind, pa.BaseExtensionType):
        return _as_text(column.cast(kind.storage_type))
    if pa.types.is_nested(kind):
        return pa.chunked_array([pa.nulls(len(column), pa.string())]), column.is_null().to_numpy()
    if any(is_of(kind) for is_of in _BYTES):
        return _bytes_as_text(column.cast(pa.binary()))
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False).cast(pa.timestamp("us", "UTC"))
    return column.cast(pa.string()), everyone


def _bytes_as_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
    try:
        return column.cast(pa.string()), np.ones(len(column), bool)
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
