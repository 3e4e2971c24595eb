"""The rows of landed files as text, from JSON lines, CSV and Parquet: every row is read or refused with a reason.

The good path is vectorised over many files at once (DuckDB for JSON, pyarrow for CSV and Parquet); only what
they cannot read is looked at line by line. A value keeps the text that it has in the file; the exception is a
JSON number of a numeric column, which keeps its value ("1.10" may come as "1.1").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.readers.csv_lines import CsvLines
from pipeline.readers.gathered import Gathered
from pipeline.readers.json_lines import JsonLines
from pipeline.readers.parquet import Parquet
from pipeline.schema import Feed


class Reader:
    """Reads the files of one feed, one after the other, into one table.

    Attributes:
        gathered: what could not be read, and what else was seen on the way.
        json_lines, csv_lines, parquet: take one file each time.
    """

    def __init__(self, feed: Feed) -> None:
        self.gathered = Gathered(feed)
        self.json_lines = JsonLines(self.gathered)
        self.csv_lines = CsvLines(self.gathered)
        self.parquet = Parquet(self.gathered)

    def finish(self) -> tuple[pa.Table, pa.ChunkedArray]:
        """All rows in order of file and row (`raw_schema`), and the lines that `place` counts."""
        lines = pa.chunked_array(self.gathered.lines, pa.string())
        rows = pa.concat_tables(_in_file_order(self.json_lines.rows(), self.gathered.tables))
        key = np.asarray(rows["file"], np.int64) * (1 << 40) + np.asarray(rows["source_row"])
        if (np.diff(key) < 0).any():
            rows = rows.take(np.argsort(key, kind="stable"))
        return rows, lines


def _in_file_order(json_rows: pa.Table, others: Sequence[pa.Table]) -> list[pa.Table]:
    """All tables with the JSON files' rows cut where other files come between them; moves no row."""
    files = json_rows["file"].to_numpy()
    parts, begin = [], 0
    for table in sorted((table for table in others if len(table)), key=lambda table: table["file"][0].as_py()):
        end = int(np.searchsorted(files, table["file"][0].as_py()))
        parts += [json_rows.slice(begin, end - begin), table]
        begin = end
    return [*parts, json_rows.slice(begin)]
