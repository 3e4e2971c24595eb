"""Landing files as a shop would drop them: JSON lines, CSV and Parquet, each renamed into place when whole.

Every source writes through here, so that "a reader never sees half a file" is said and tested once. Tables
come with all columns as text (or null); a column named in `NUMBERS` is written as a JSON number where its
text is one, and as a string where it is not: dirt lands as it is.
"""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.window import Window

NUMBERS = frozenset({"quantity", "price", "rating", "stock"})

_JSON_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"  # RFC 8259, section 6


def write_file(landing: Path, feed: str, window: Window, name: str, content: bytes) -> Path:
    """Puts one file into the window's folder of a feed: written under a hidden name, then renamed."""
    folder = landing / feed / window.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    unfinished = folder / f".{name}.{os.getpid()}.tmp"
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def json_lines(table: pa.Table) -> pa.ChunkedArray:
    """Each row of a table of text columns as one JSON object; a null leaves its key out. `[rows]` string."""
    lines = None
    for name in table.column_names:
        values = _json_value(name, table[name])
        lead = f'{{"{name}":' if lines is None else f',"{name}":'
        pair = pc.fill_null(pc.binary_join_element_wise(lead, values, ""), "{" if lines is None else "")
        lines = pair if lines is None else pc.binary_join_element_wise(lines, pair, "")
    closed = pc.binary_join_element_wise(lines, "}", "")
    return pc.replace_substring(closed, "{,", "{", max_replacements=1) if table[0].null_count else closed


def _json_value(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    if name in NUMBERS:
        if pc.all(pc.match_substring_regex(values, _JSON_NUMBER)).as_py():  # nulls are skipped
            return values
        quoted = _json_string(values)
        return pc.if_else(pc.match_substring_regex(values, _JSON_NUMBER), values, quoted)
    return _json_string(values)


def _json_string(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pc.any(pc.match_substring_regex(values, r'[\x00-\x1f"\\]')).as_py():
        values = pc.replace_substring(pc.replace_substring(values, "\\", "\\\\"), '"', '\\"')
        for character, escape in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
            values = pc.replace_substring(values, character, escape)
        values = pc.replace_substring_regex(values, r"[\x00-\x1f]", " ")
    return pc.binary_join_element_wise('"', values, '"', "")


def json_lines_bytes(lines: pa.ChunkedArray) -> bytes:
    """The content of a JSON lines file."""
    return ("\n".join(lines.to_pylist()) + "\n").encode() if len(lines) else b""


def csv_gz_bytes(table: pa.Table) -> bytes:
    """The content of a gzipped CSV file with a header; the same table gives the same bytes."""
    out = io.BytesIO()
    pa_csv.write_csv(table, out, pa_csv.WriteOptions(quoting_style="needed"))
    return gzip.compress(out.getvalue(), compresslevel=1, mtime=0)  # mtime: no clock in the bytes


def parquet_bytes(table: pa.Table, time: str) -> bytes:
    """The content of a Parquet file, typed as a shop's warehouse would: times and numbers are no text."""
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name == time:
            column = column.cast(pa.timestamp("ms", tz="UTC"))
        elif name in NUMBERS:
            column = column.cast(pa.float64())
        columns[name] = column
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="snappy")
    return out.getvalue()
