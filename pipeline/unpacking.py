"""A landed file's bytes as blocks of complete lines: unpacked, hashed, with hard limits on memory.

A shop's file is not trusted. It may be cut, be no archive at all, unpack to a thousand times its size or be one
line of 50 MB; whatever it is, only a block of it and its good lines are in memory.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa

# 1 GiB unpacked is four million events of 250 bytes, several times the largest hour that one file should carry
# (a larger hour lands as several files), and fits the memory of a small machine together with its Arrow form.
MAX_FILE_BYTES = 1 << 30
# Equal values pack to almost nothing, so rows are limited beside bytes: 16 million of the narrowest fill the bytes.
MAX_FILE_ROWS = 16_000_000
# A JSON array is parsed as a whole, into objects that take ten to thirty times its size; JSON lines are not.
MAX_DOCUMENT_BYTES = 64 << 20
# An event has 250 bytes, the longest product text some thousands: 1 MiB is no row but an accident or an attack.
MAX_LINE_BYTES = 1 << 20
# What of an unreadable row or file is kept for looking at; enough to see what it is.
MAX_RAW_BYTES = 64 << 10
_BLOCK_BYTES = 16 << 20
# pyarrow's zstd loses the whole read in which the stream breaks off: small reads lose little.
_ZSTD_READ_BYTES = 64 << 10


class BrokenFile(ValueError):
    """A file cannot be read on from some point; its fields become a quarantine row.

    Attributes:
        reason: stable name, such as `truncated_file`.
        detail: what was seen and what is allowed.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class Fingerprint:
    """A stream that hashes what is read from it: for the manifest, without reading a file twice."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        content = self._stream.read(size) if size >= 0 else self._stream.read()
        self._hash.update(content)
        self.bytes += len(content)
        return content

    def finish(self) -> str:
        """The SHA-256 of the whole stream, whose rest is read for it."""
        while self.read(_BLOCK_BYTES):
            pass
        return self._hash.hexdigest()

    def close(self) -> None:
        """Ends reading."""
        self.closed = True

    def readable(self) -> bool:
        """As pyarrow asks of a Python file."""
        return True

    def writable(self) -> bool:
        """As pyarrow asks of a Python file."""
        return False

    def seekable(self) -> bool:
        """As pyarrow asks of a Python file."""
        return False


def unpacked(stream: Fingerprint, packing: str) -> Iterator[bytes]:
    """The unpacked bytes of a stream in blocks; `packing` is ``, `gz` or `zst`.

    Raises:
        BrokenFile: after the last block that could be read: `truncated_file`, `corrupt_file`, or `too_large`.
    """
    total = 0
    for block in {"": _plain, "gz": _gunzipped, "zst": _zstd}[packing](stream):
        total += len(block)
        if total > MAX_FILE_BYTES:
            raise BrokenFile(
                "too_large",
                f"over {MAX_FILE_BYTES} bytes unpacked, from at most {stream.bytes} packed; land it as several files",
            )
        yield block


def _plain(stream: Fingerprint) -> Iterator[bytes]:
    while block := stream.read(_BLOCK_BYTES):
        yield block


def _gunzipped(stream: Fingerprint) -> Iterator[bytes]:
    member = zlib.decompressobj(wbits=31)
    begun = False
    while packed := stream.read(_BLOCK_BYTES // 8):
        while packed:
            begun = True
            try:
                block = member.decompress(packed, _BLOCK_BYTES)
            except zlib.error as error:
                raise BrokenFile("corrupt_file", f"gzip: {error}") from error
            if block:
                yield block
            packed = member.unconsumed_tail
            while len(block) == _BLOCK_BYTES and not packed and not member.eof:  # output that waits inside
                block = member.decompress(b"", _BLOCK_BYTES)
                if block:
                    yield block
            if member.eof:  # another member may follow (`cat a.gz b.gz`), or zeros that pad a tape's block
                packed = member.unused_data.lstrip(b"\0")
                member, begun = zlib.decompressobj(wbits=31), False
    if begun:
        raise BrokenFile("truncated_file", f"the gzip stream breaks off after {stream.bytes} bytes")


def _zstd(stream: Fingerprint) -> Iterator[bytes]:
    plain = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    gathered: list[bytes] = []
    broken: BrokenFile | None = None
    while broken is None:
        try:
            piece = plain.read(_ZSTD_READ_BYTES)
        except OSError as error:
            truncated = "Truncated" in str(error)
            reason = "truncated_file" if truncated else "corrupt_file"
            broken, piece = BrokenFile(reason, f"zstd, after {stream.bytes} bytes: {error}"), b""
        if not piece or len(gathered) * _ZSTD_READ_BYTES >= _BLOCK_BYTES:
            if gathered:
                yield b"".join(gathered)
            gathered = []
        if not piece:
            break
        gathered.append(piece)
    if broken is not None:
        raise broken


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of a file.

    Attributes:
        first: number of the first line, from 1.
        content: `[lines]` binary, each with its line end; shares the block's memory.
    """

    first: int
    content: pa.BinaryArray


@dataclass(frozen=True)
class LongLine:
    """A line over `MAX_LINE_BYTES`, of which only the beginning was kept."""

    number: int
    beginning: bytes
    length_bytes: int


@dataclass(frozen=True)
class CutLine:
    """The part of a line before the place where the file breaks off, and why it does."""

    number: int
    content: bytes
    broken: BrokenFile


def lines_of(blocks: Iterator[bytes]) -> Iterator[Lines | LongLine | CutLine]:
    """A file's lines in order. A byte order mark is taken off; a last line needs no line end."""
    number, rest = 1, b""
    skipped: tuple[bytes, int] | None = None  # beginning and length so far of a line that is too long
    start_of_file = True
    broken: BrokenFile | None = None
    while True:
        try:
            block = next(blocks, b"")
        except BrokenFile as error:
            block, broken = b"", error
        if not block:
            break
        if start_of_file:
            block, start_of_file = block.removeprefix(b"\xef\xbb\xbf"), False
        if skipped is not None:
            end = block.find(b"\n")
            if end < 0:
                skipped = skipped[0], skipped[1] + len(block)
                continue
            yield LongLine(number, skipped[0], skipped[1] + end)
            number, skipped, block = number + 1, None, block[end + 1 :]
        block = rest + block
        last = block.rfind(b"\n") + 1
        complete, rest = block[:last] if last < len(block) else block, block[last:]
        for part in _split(complete, number):
            yield part
            number += len(part.content) if isinstance(part, Lines) else 1
        if len(rest) > MAX_LINE_BYTES:
            skipped, rest = (rest[:MAX_RAW_BYTES], len(rest)), b""
    if skipped is not None:
        yield LongLine(number, *skipped)
        number += 1
    if broken is not None:
        yield CutLine(number, rest, broken)
    elif rest:
        yield from _split(rest, number)


def _split(block: bytes, first: int) -> Iterator[Lines | LongLine]:
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    if not block.endswith(b"\n") and block:
        ends = np.append(ends, len(block))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    lengths = np.diff(offsets)
    content = pa.BinaryArray.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(block)])
    begin = 0
    for row in np.flatnonzero(lengths > MAX_LINE_BYTES).tolist():
        if row > begin:
            yield Lines(first + begin, content.slice(begin, row - begin))
        line = block[offsets[row] : offsets[row + 1]].rstrip(b"\r\n")
        yield LongLine(first + row, line[:MAX_RAW_BYTES], len(line))
        begin = row + 1
    if len(ends) > begin:
        yield Lines(first + begin, content.slice(begin))
