"""What is gathered while files are read, whatever their format: rows as text, refusals, lines, ids of persons."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import FEEDS, Feed
from pipeline.unpacking import (
    MAX_FILE_ROWS,
    MAX_LINE_BYTES,
    MAX_RAW_BYTES,
    BrokenFile,
    CutLine,
    Lines,
    LongLine,
)

_COLUMNS = frozenset(name for feed in FEEDS.values() for name in feed.raw_names)
NO_HEADER = "no_header"
WHOLE_FILE = 0  # source_row of a refusal that is about a file, not about a row of it
_BLANK_BYTES = 16  # no row of any feed is as short, and no blank line longer (or it is malformed, which is no harm)

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


class Gathered:
    """All that was read of one feed so far.

    Attributes:
        feed: the feed.
        refusals: what could not be read.
        extra: index of a file -> the columns that it carries and the feed does not have.
        persons: raw ids of persons seen in columns that no table takes, for masking refused raw text.
        tables: rows of `raw_schema`, each table of one file.
        lines: the lines that `place` counts, as they were read.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.refusals = Refusals()
        self.extra: dict[int, tuple[str, ...]] = {}
        self.persons: set[str] = set()
        self.tables: list[pa.Table] = []
        self.lines: list[pa.Array] = []
        self._lines_read = 0

    def refuse_file(self, file: int, error: BrokenFile) -> None:
        """Refuses a file as a whole, in the place of what was refused of it."""
        self.refusals.forget(file)
        self.refusals.add(file, WHOLE_FILE, error.reason, error.detail)

    def good_lines(
        self, file: int, parts: Iterator[Lines | LongLine | CutLine]
    ) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """UTF-8 lines that are not blank, as `[lines]` string, and their numbers; the others are refused."""
        rows = 0
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
                rows += len(lines)
                if rows > MAX_FILE_ROWS:
                    raise BrokenFile("too_large", f"over {MAX_FILE_ROWS} rows; land it as several files")
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

    def keep(self, lines: pa.Array) -> int:
        """Keeps lines for showing them; returns the place of the first."""
        place = self._lines_read
        self.lines.append(lines)
        self._lines_read += len(lines)
        return place

    def header_problem(self, file: int, header: Sequence[str]) -> tuple[str, str] | None:
        """Reason and detail why no row of a file with such columns can be used; notes the columns of no feed."""
        if _COLUMNS.isdisjoint(header):  # not shown: in a file without a header these are the first row's values
            return NO_HEADER, _no_header(header)
        known = [name for name in header if name in self.feed.raw_names]
        twice = sorted({name for name in known if known.count(name) > 1})
        if twice:
            return "duplicate_column", f"the header names {', '.join(twice)} more than once"
        problem = self.missing_columns(header)
        extra = tuple(name for name in header if name not in self.feed.raw_names)
        if extra and problem is None:
            self.extra[file] = extra
        return problem

    def missing_columns(self, names: Sequence[str]) -> tuple[str, str] | None:
        """Reason and detail where required columns are not among `names`."""
        missing = [name for name in self.feed.required if name not in names]
        if not missing:
            return None
        near = difflib.get_close_matches(missing[0], names, n=3, cutoff=0.5)
        said = f"; near: {', '.join(near)}" if near else ""
        return "missing_column", f"{', '.join(missing)} not among {shortened(', '.join(names))}{said}"

    def add(self, file: int, table: pa.Table, numbers: np.ndarray, places: np.ndarray) -> None:
        """Adds rows of text of a file, with their numbers in it and the places of their lines (-1: none)."""
        columns = {name: table[name] for name in table.column_names}
        columns |= {
            "file": pa.array(np.full(len(table), file, np.int32)),
            "source_row": pa.array(numbers),
            "place": pa.array(places),
        }
        schema = raw_schema(self.feed)
        self.tables.append(
            pa.table([columns[f.name] if f.name in columns else pa.nulls(len(table), f.type) for f in schema], schema)
        )


def _no_header(header: Sequence[str]) -> str:
    """Why none of a header's names is known: there is no header, or its names are separated by another sign."""
    if len(header) == 1:
        for sign, said in ((",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if not _COLUMNS.isdisjoint(name.strip(' "') for name in header[0].split(sign)):
                return f"its names are separated by {said}; a .csv has commas, a .tsv tabs"
    return f"none of the {len(header)} names is a column of any feed; is the header missing?"


def shortened(text: str) -> str:
    """A text in one line that a person can read: a parser's message may quote its whole input."""
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 300 else text[:300] + "…"  # a detail is read by a person
