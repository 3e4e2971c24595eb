"""The landing zone: the files that a shop drops, read window by window into rows of text and refused rows.

Nothing here trusts a file. Every row of it comes out once, as text with file and row number or as a refusal
with reason, so that rows in = rows out can be counted; only a fault of ours or of the storage is an exception.

A truncated file keeps what could be read before the cut, and the cut is one refusal: a shop that sends the whole
file again replaces the window, and until then most of it counts. A file over the size limit gives no row.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs

from models.contacts import without_contacts
from pipeline.masking import Mask, distinct_ids
from pipeline.picking import picked
from pipeline.readers import Reader
from pipeline.schema import QUARANTINE_SCHEMA, TIME, Feed
from pipeline.stores import store_of
from pipeline.unpacking import (
    MAX_RAW_BYTES,
    BrokenFile,
    Fingerprint,
    lines_of,
    unpacked,
)
from pipeline.window import Window

FORMATS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
PACKINGS = {".gz": "gz", ".zst": "zst"}
# what copying tools call a file that they have not finished, and what engines leave beside their output
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload")
_HIDDEN = (".", "_")


class LandingError(RuntimeError):
    """The landing zone cannot be read: a fault of storage or rights, not of the data in it."""


@dataclass(frozen=True)
class LandedFile:
    """A file of the landing zone.

    Attributes:
        window: the window in whose folder it lies.
        name: its path below `landing/<feed>/`; what no page and no log should show is escaped in it.
        path: its path in the file system.
        size_bytes: as it lies there; -1 for what is no file.
        written_ns: when it was last written, as its file system counts; None where that does not say.
        well_named: nothing in its name had to be escaped.
    """

    window: Window
    name: str
    path: str
    size_bytes: int
    written_ns: int | None = None
    well_named: bool = True


@dataclass(frozen=True)
class Landed:
    """What landed of a feed in some windows.

    Attributes:
        rows: readable rows in order of window, file and row: the feed's columns as text, `landed_window`,
            `source_file`, `source_row`, and `place` (for `raw`).
        refused: REFUSED_SCHEMA, `file` replaced by `landed_window` and `source_file`; `raw` is not masked.
        manifests: window -> file -> {bytes, sha256}; every window of the call is in it.
        warnings: window -> sentences about files that were read but are not as agreed.
        persons: raw ids of persons in columns that no table takes.
        lines: the lines that `place` counts.
    """

    rows: pa.Table
    refused: pa.Table
    manifests: Mapping[Window, Mapping[str, Mapping[str, int | str]]]
    warnings: Mapping[Window, tuple[str, ...]]
    persons: frozenset[str]
    lines: pa.ChunkedArray

    def raw(self, rows: np.ndarray) -> list[str]:
        """The text of some of `rows` (by index) as it landed; a Parquet row as a JSON object."""
        chosen = picked(self.rows, rows)
        places = np.asarray(chosen["place"])
        texts = iter(picked(self.lines, places[places >= 0]).to_pylist())
        names = [name for name in chosen.column_names if name not in _PLACES]
        rebuilt = iter(chosen.filter(pa.array(places < 0)).select(names).to_pylist())
        return [next(texts).rstrip("\r\n") if place >= 0 else _as_json(next(rebuilt)) for place in places.tolist()]


_PLACES = frozenset({"landed_window", "source_file", "source_row", "place"})


def _as_json(row: Mapping[str, str | None]) -> str:
    import json

    return json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False)


class LandingZone:
    """The files below `root` (a folder or a bucket's URL), laid as `<feed>/YYYY-MM-DD/HH/<file>`."""

    def __init__(self, root: str) -> None:
        self._fs, self._root = store_of(root)

    def files(self, feed: str, windows: Sequence[Window]) -> list[LandedFile]:
        """The finished files of the windows, in order of window and name."""
        chosen = set(windows)
        days: dict[str, list[Window]] = {}
        for window in windows:
            days.setdefault(window.folder.split("/")[0], []).append(window)
        found = []
        for day, hours in days.items():  # a day at once: a listing is a request where the zone is a bucket
            folders = [day] if len(hours) > 1 else [hours[0].folder]
            for folder in folders:
                found += [file for file in self._below(feed, folder) if file.window in chosen]
        return sorted(found, key=lambda file: (file.window, file.name))

    def _below(self, feed: str, folder: str) -> Iterator[LandedFile]:
        base = f"{self._root}/{feed}"
        local = isinstance(self._fs, pa_fs.LocalFileSystem)
        listed = self._here if local else self._in_bucket
        for path, size_bytes, written_ns in listed(f"{base}/{folder}"):
            name = path[len(base) + 1 :]
            parts = name.split("/")
            window = _window_of(parts)
            if window is None or _passed_over(parts):
                continue
            shown = _escaped(name)
            yield LandedFile(window, shown, path, size_bytes, written_ns, well_named=shown == name)

    def _here(self, folder: str) -> Iterator[tuple[str, int, int | None]]:
        """Path, size and time of what lies below a folder of this machine; linked folders are no files and not entered.

        Arrow's own listing enters links: one to `/` lists the machine, two to `.` have no end.
        """
        try:
            for top, folders, names in os.walk(folder, onerror=_raise):
                links = [name for name in folders if Path(top, name).is_symlink()]
                for path in (Path(top, name) for name in [*names, *links]):
                    try:
                        found = path.stat()
                    except FileNotFoundError:  # gone since it was listed, or a link to nothing
                        continue
                    except OSError:
                        if not path.is_symlink():
                            raise
                        yield str(path), -1, None  # a link to itself
                        continue
                    size_bytes = found.st_size if stat.S_ISREG(found.st_mode) else -1
                    yield str(path), size_bytes, found.st_mtime_ns
        except OSError as error:
            raise _unreadable(folder, error) from error

    def _in_bucket(self, folder: str) -> Iterator[tuple[str, int, int | None]]:
        """Path, size and time of what lies below a bucket's folder."""
        try:
            found = self._fs.get_file_info(pa_fs.FileSelector(folder, allow_not_found=True, recursive=True))
        except OSError as error:
            raise _unreadable(folder, error) from error
        for info in found:
            if info.type not in (pa_fs.FileType.Directory, pa_fs.FileType.NotFound):
                size_bytes = info.size if info.is_file and info.size is not None else -1
                yield info.path, size_bytes, info.mtime_ns

    def leaves(self, file: LandedFile) -> bool:
        """Whether a file is a link to a place outside the landing zone."""
        if not isinstance(self._fs, pa_fs.LocalFileSystem):
            return False
        return not os.path.realpath(file.path).startswith(self._root + os.sep)

    def open(self, file: LandedFile) -> Fingerprint:
        """A stream over the file's bytes as they lie there."""
        try:
            return Fingerprint(self._fs.open_input_stream(file.path, compression=None))
        except OSError as error:
            raise LandingError(
                f"The landed file {file.path} must be readable; {error}. Check its rights, then run the window again."
            ) from error


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # nothing landed there, or it is gone since
        raise error


def _unreadable(folder: str, error: OSError) -> LandingError:
    return LandingError(
        f"The landing zone's folder {folder} must be readable; {error}. "
        "Check the path, the rights and the connection, then run the window again."
    )


# Controls, invisible signs that turn or hide text, line separators, and bytes that are no UTF-8 (as surrogates).
_NOT_FOR_NAMES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _escaped(name: str) -> str:
    if name.isprintable():
        return name
    return "".join(
        sign.encode("unicode_escape").decode() if unicodedata.category(sign) in _NOT_FOR_NAMES else sign
        for sign in name
    )


def land(feed: Feed, windows: Sequence[Window], root: str) -> Landed:
    """Reads all files of a feed that landed in `windows` (in order)."""
    zone = LandingZone(root)
    files = zone.files(feed.name, windows)
    reader = Reader(feed)
    manifests: dict[Window, dict[str, dict[str, int | str]]] = {window: {} for window in windows}
    for number, file in enumerate(files):
        fingerprint = _read(zone, file, number, reader)
        if fingerprint is not None:
            manifests[file.window][file.name] = fingerprint
    rows, lines = reader.finish()
    gathered = reader.gathered
    warnings: dict[Window, list[str]] = {}
    for number, names in sorted(gathered.extra.items()):
        file = files[number]
        said = f"{file.name} has columns that are not used: {', '.join(names[:20])}"
        warnings.setdefault(file.window, []).append(without_contacts(said))  # of an object by person, keys tell them
    return Landed(
        rows=_placed(rows, files),
        refused=_placed(gathered.refusals.table(), files),
        manifests=manifests,
        warnings={window: tuple(said) for window, said in warnings.items()},
        persons=frozenset(gathered.persons),
        lines=lines,
    )


def _read(zone: LandingZone, file: LandedFile, number: int, reader: Reader) -> dict[str, int | str] | None:
    """Reads one file into `reader`; returns its bytes and hash (None: it was not opened)."""
    refuse = reader.gathered.refusals.add
    if zone.leaves(file):
        refuse(number, 0, "outside_landing", "a link to a place outside the landing zone is not followed")
        return None
    if not file.well_named:
        refuse(number, 0, "unusable_name", f"{file.name}; a file's name is UTF-8 without control characters")
        return None
    if file.size_bytes < 0:
        refuse(number, 0, "not_a_file", "a landed file is a regular file")
        return None
    stream = zone.open(file)
    stem, packing = _without_packing(file.name)
    suffix = Path(stem).suffix.lower()
    kind = FORMATS.get(suffix)
    if kind is None:
        allowed = f"{', '.join(FORMATS)}, each also with {' or '.join(PACKINGS)}"
        refuse(number, 0, "unknown_format", f"the ending of {file.name}; allowed: {allowed}", None, file.size_bytes)
    elif kind == "parquet":
        _read_parquet(stream, file, packing, number, reader)
    else:
        _read_lines(stream, packing, number, reader, kind, suffix)
    digest = stream.finish()
    return {"bytes": stream.bytes, "sha256": digest}


def _read_lines(stream: Fingerprint, packing: str, number: int, reader: Reader, kind: str, suffix: str) -> None:
    parts = lines_of(unpacked(stream, packing))
    if kind == "json":
        reader.json_lines.take(number, parts, whole_document=suffix == ".json")
    else:
        reader.csv_lines.take(number, parts, "\t" if suffix == ".tsv" else ",")


def _read_parquet(stream: Fingerprint, file: LandedFile, packing: str, number: int, reader: Reader) -> None:
    blocks: list[bytes] = []
    try:
        blocks.extend(unpacked(stream, packing))
    except BrokenFile as error:
        reader.gathered.refusals.add(number, 0, error.reason, error.detail, None, file.size_bytes)
        return
    content = b"".join(blocks)
    if content:
        reader.parquet.take(number, pa.py_buffer(content))


def _without_packing(name: str) -> tuple[str, str]:
    for suffix, packing in PACKINGS.items():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], packing
    return name, ""


def _passed_over(parts: Sequence[str]) -> bool:
    return any(part.startswith(_HIDDEN) for part in parts) or parts[-1].lower().endswith(_UNFINISHED)


def _window_of(parts: Sequence[str]) -> Window | None:
    """The window of `YYYY-MM-DD/HH/…`; None for a path that is laid otherwise."""
    if len(parts) < 3:
        return None
    try:
        window = Window.parse(f"{parts[0]}T{parts[1]}:00Z")
    except ValueError:
        return None
    return window if window.folder == f"{parts[0]}/{parts[1]}" else None


def _placed(table: pa.Table, files: Sequence[LandedFile]) -> pa.Table:
    """The table with `landed_window` and `source_file` in the place of the file's number."""
    number = table["file"].combine_chunks()
    starts = pa.array([file.window.start for file in files], TIME)
    names = pa.array([file.name for file in files], pa.string())
    return (
        table.drop_columns(["file"])
        .append_column("landed_window", pa.chunked_array([starts.take(number)]))
        .append_column("source_file", pa.chunked_array([names.take(number)]))
    )


def quarantined(feed: Feed, landed: Landed, faults: pa.Table, mask: Mask) -> pa.Table:
    """QUARANTINE_SCHEMA of what landing refused and of the rows that were found faulty later, persons masked.

    In a row that could be read its own persons are masked; in text that could not, all that landed beside it.

    Args:
        feed: the feed.
        landed: what landed.
        faults: columns `landed_row` (index into `landed.rows`), `reason`, `detail`.
        mask: of the installation.
    """
    rows = np.asarray(faults["landed_row"], np.int64)
    raws = pa.array(landed.raw(rows), pa.string())
    table = picked(landed.rows.select(["landed_window", "source_file", "source_row"]), rows)
    for name, values in (("reason", faults["reason"]), ("detail", faults["detail"]), ("raw", raws)):
        table = table.append_column(name, values)
    table = table.append_column("raw_bytes", pc.binary_length(raws).cast(pa.int64()))
    table = pa.concat_tables([table, landed.refused.select(table.column_names)])
    known = _own_persons(landed, rows)
    known += [_all_persons(landed)] * len(landed.refused) if len(landed.refused) else []
    columns = {name: table[name] for name in table.column_names} | {
        "feed": pa.array([feed.name] * len(table), pa.string()),
        "landed_date": table["landed_window"].cast(pa.date32()),
        "raw": pa.array(_masked(table["raw"], known, mask), pa.string()),
        "detail": pa.array(_masked(table["detail"], known, mask), pa.string()),
    }
    result = pa.table([columns[name] for name in QUARANTINE_SCHEMA.names], names=QUARANTINE_SCHEMA.names)
    return result.cast(QUARANTINE_SCHEMA)


def _masked(texts: pa.ChunkedArray, known: Sequence[set[str]], mask: Mask) -> list[str | None]:
    return [
        None if text is None else _cut(mask.text(text, ids)) for text, ids in zip(texts.to_pylist(), known, strict=True)
    ]


def _person_columns(landed: Landed) -> list[str]:
    return [name for name in ("user_id", "session_id") if name in landed.rows.column_names]


def _own_persons(landed: Landed, rows: np.ndarray) -> list[set[str]]:
    chosen = picked(landed.rows.select(_person_columns(landed)), rows).to_pylist()
    return [{value.strip() for value in row.values() if value is not None} for row in chosen] or [set()] * len(rows)


def _all_persons(landed: Landed) -> set[str]:
    return distinct_ids(landed.rows[name] for name in _person_columns(landed)) | landed.persons


def _cut(raw: str) -> str:
    return raw.encode()[:MAX_RAW_BYTES].decode("utf-8", "ignore") if len(raw) > MAX_RAW_BYTES // 4 else raw
