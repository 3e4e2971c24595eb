"""The rows of a few texts: every way of reading finds the same, whatever the files are like."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pytest

from pipeline.few_rows import rows_in_files, rows_with
from pipeline.schema import TIME
from pipeline.stores import tree_at
from pipeline.tables import text_field

COLUMNS = ["user", "at", "amount"]
SCHEMA = pa.schema([("user", pa.string()), ("at", TIME), ("amount", pa.float64()), ("note", pa.string())])
Way = Callable[[ds.Dataset, list[str]], pa.Table]


def by_arrow(rows: ds.Dataset, users: list[str]) -> pa.Table:
    return rows_in_files(rows, text_field("user").isin(pa.array(users, pa.string())), COLUMNS)


def by_any(rows: ds.Dataset, users: list[str]) -> pa.Table:
    return rows_with(rows, "user", users, COLUMNS)


def files(folder: Path, filesystem: pa_fs.FileSystem | None = None, *, older: bool = False) -> ds.Dataset:
    """Five files of ten users each; of an `older` one the column `amount` is not there yet."""
    folder.mkdir()
    for number in range(5):
        rows = pa.table({
            "user": [f"u{number}-{place}" if place else None for place in range(10)],
            "at": pa.array([datetime(2026, 1, 1 + number, place, tzinfo=UTC) for place in range(10)], TIME),
            "amount": [float(number)] * 10, "note": ["x" * 100] * 10,
        }, schema=SCHEMA)
        pq.write_table(rows.drop_columns(["amount"]) if older and number == 3 else rows, folder / f"{number}.parquet")
    form, tree = ds.ParquetFileFormat(), filesystem or tree_at(str(folder))
    paths = [f"{number}.parquet" if filesystem is None else str(folder / f"{number}.parquet") for number in range(5)]
    return ds.FileSystemDataset([form.make_fragment(path, filesystem=tree) for path in paths], SCHEMA, form, tree)


@pytest.mark.parametrize("way", [by_any, by_arrow])
@pytest.mark.parametrize("name", ["plain", "with [glob] and 'quote'"])
def test_rows_of_some_users_are_found_in_order(tmp_path: Path, way: Way, name: str) -> None:
    found = way(files(tmp_path / name), ["u1-2", "u3-9", "nobody"])

    assert found.schema.names == COLUMNS and found.schema.field("at").type == TIME
    assert found.to_pylist() == [
        {"user": "u1-2", "at": datetime(2026, 1, 2, 2, tzinfo=UTC), "amount": 1.0},
        {"user": "u3-9", "at": datetime(2026, 1, 4, 9, tzinfo=UTC), "amount": 3.0},
    ]


@pytest.mark.parametrize("way", [by_any, by_arrow])
def test_the_order_is_the_same_each_time(tmp_path: Path, way: Way) -> None:
    rows = files(tmp_path / "t")
    wanted = [f"u{number}-{place}" for number in range(5) for place in (9, 4, 1)]

    for _ in range(20):  # a join of two threads gives some other order every third time
        found = way(rows, wanted)["user"].to_pylist()
        assert found == [f"u{number}-{place}" for number in range(5) for place in (1, 4, 9)]


@pytest.mark.parametrize("way", [by_any, by_arrow])
def test_files_of_before_a_column_was_added_have_nulls_there(tmp_path: Path, way: Way) -> None:
    found = way(files(tmp_path / "t", older=True), ["u3-1", "u4-1"])

    assert found["amount"].to_pylist() == [None, 4.0]


@pytest.mark.parametrize("way", [by_any, by_arrow])
def test_nobody_is_found_where_there_is_nobody(tmp_path: Path, way: Way) -> None:
    assert len(way(files(tmp_path / "t"), [])) == 0
    assert len(way(ds.dataset(SCHEMA.empty_table()), ["u1-1"])) == 0


def test_files_of_another_store_are_read_too(tmp_path: Path) -> None:
    assert len(by_any(files(tmp_path / "t", pa_fs.LocalFileSystem()), ["u1-1", "u2-2"])) == 2


def test_of_a_file_without_them_no_other_column_is_read(tmp_path: Path) -> None:
    rows = files(tmp_path / "t")
    (tmp_path / "t" / "0.parquet").write_bytes(_without_pages_of(tmp_path / "t" / "0.parquet", "note"))

    wanted = [*COLUMNS, "note"]
    assert rows_with(rows, "user", ["u1-1"], wanted)["note"].to_pylist() == ["x" * 100]
    assert rows_in_files(rows, text_field("user").isin(["u1-1"]), wanted)["note"].to_pylist() == ["x" * 100]


def _without_pages_of(path: Path, column: str) -> bytes:
    """The file with that column's pages overwritten: whoever decodes them fails."""
    content, group = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0)
    place = next(one for one in range(group.num_columns) if group.column(one).path_in_schema == column)
    chunk = group.column(place)
    start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    return bytes(content)
