"""Comma and tab separated values: whole blocks by pyarrow, records over several lines and wrong ones singly."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from pipeline.masking import PERSON_NAME
from pipeline.readers.gathered import NO_HEADER, Gathered
from pipeline.schema import Feed
from pipeline.unpacking import MAX_LINE_BYTES, BrokenFile, CutLine, Lines, LongLine


class CsvLines:
    """The CSV files of one feed."""

    def __init__(self, into: Gathered) -> None:
        self.into = into
        csv.field_size_limit(MAX_LINE_BYTES)  # of the process; Python's own, 131,072, is shorter than a line may be

    def take(self, file: int, parts: Iterator[Lines | LongLine | CutLine], delimiter: str) -> None:
        """Comma or tab separated values under a header line."""
        try:
            read = list(self.into.good_lines(file, parts))
        except BrokenFile as error:
            self.into.refuse_file(file, error)
            return
        lines = pa.concat_arrays([lines for lines, _ in read]) if read else pa.array([], pa.string())
        numbers = np.concatenate([numbers for _, numbers in read]) if read else np.zeros(0, np.int64)
        if not len(lines):
            return
        try:
            header = [name.strip() for name in next(csv.reader([lines[0].as_py()], delimiter=delimiter))]
        except csv.Error:  # bare carriage returns: all rows are one line
            detail = "a carriage return without a line feed in the header; lines end with \\n or \\r\\n"
            self.into.refuse_file(file, BrokenFile("malformed_csv", detail))
            return
        problem = self.into.header_problem(file, header)
        if problem is None or problem[0] != NO_HEADER:  # without a header the first line is a row like the others
            lines, numbers = lines.slice(1), numbers[1:]
        if problem:
            people = [place for place, name in enumerate(header) if PERSON_NAME.search(name)]
            for number, line in zip(numbers.tolist(), lines.to_pylist(), strict=True):
                kept = self._showable(line, delimiter, people)
                # where nothing says which cell tells a person, none is kept
                kept = None if problem[0] == NO_HEADER else kept
                self.into.refusals.add(file, number, *problem, kept, len(line.encode()))
            return
        place = self.into.keep(lines)
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

    def _showable(self, line: str, delimiter: str, people: Sequence[int]) -> str | None:
        """The line as it may be kept, its persons noted for masking; None where they cannot be found in it."""
        if not people:
            return line
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            return None
        self.into.persons.update(cells[place].strip() for place in people if place < len(cells))
        return line

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
                unpaired = line.count('"') % 2
                fault = "a quote is not closed" if unpaired else "its carriage returns do not lie in a quoted cell"
                kept = self._showable(line, delimiter, _people_at(header, len(header)))
                self.into.refusals.add(file, int(numbers[start]), "malformed_csv", fault, kept, _bytes_in(line))
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
                if name in self.into.feed.raw_names
            }
            self.into.add(file, pa.table(columns), np.array(first), np.full(len(rows), -1))
        return done

    def _single_lines(
        self, file: int, lines: pa.Array, numbers: np.ndarray, places: np.ndarray, header: Sequence[str], delimiter: str
    ) -> None:
        bad: list[pa_csv.InvalidRow] = []

        def refuse(row: pa_csv.InvalidRow) -> str:
            bad.append(row)
            return "skip"

        content = _bytes_of(lines)
        try:
            table = _read_csv(content, header, self.into.feed, delimiter, None)
        except pa.ArrowInvalid:  # only one thread knows the numbers of the rows that it skips
            table = _read_csv(content, header, self.into.feed, delimiter, refuse)
        skipped = np.array([row.number - 1 for row in bad], np.int64)
        for row, at in zip(bad, skipped.tolist(), strict=True):
            line = lines[at].as_py()
            self.into.refusals.add(
                file,
                int(numbers[at]),
                "wrong_number_of_cells",
                f"{row.actual_columns} cells; the header has {row.expected_columns}",
                self._showable(line, delimiter, _people_at(header, row.actual_columns)),
                _bytes_in(line),
            )
        self.into.add(file, table, np.delete(numbers, skipped), np.delete(places, skipped))


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


def _bytes_in(line: str) -> int:
    return len(line.rstrip("\r\n").encode())


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
    refuse: Callable[[pa_csv.InvalidRow], str] | None,
) -> pa.Table:
    """The rows by several threads where none is refused, or by one that shows `refuse` each row that it skips."""
    known = [name for name in header if name in feed.raw_names]
    # names of other columns may repeat or be empty: they are not read
    names = [name if name in feed.raw_names else f"extra {place}" for place, name in enumerate(header)]
    return pa_csv.read_csv(
        pa.BufferReader(content),
        pa_csv.ReadOptions(column_names=names, use_threads=refuse is None, block_size=4 * MAX_LINE_BYTES),
        pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=refuse, ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            include_columns=known,
            column_types=dict.fromkeys(known, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
