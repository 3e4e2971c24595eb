"""Person ids become keyed hashes at the door, in columns, in what customers write and in raw text that is kept.

A table must allow to follow one customer but not to find out who it is: HMAC-SHA256 (RFC 2104) under the
installation's secret, cut to 128 bits, which at a billion customers leaves a chance of 1e-21 of two alike.
Columns are hashed in DuckDB, once for each distinct value (190,000 sessions: 0.13 s; Python's hmac: 0.4 s).
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable
from functools import cached_property

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from models.contacts import without_contacts

_HEX_DIGITS = 32
_PIECE_IDS = 10_000  # DuckDB hashes the pieces of a table on all cores; this many take a core 10 ms
_BLOCK_BYTES = 64  # SHA-256's block: HMAC pads its key to it

# Shorter ids than this are not looked for in running text, where "5" is a quantity far more often than a customer;
# under a key that names a person they are masked at any length.
_SHORTEST_FREE_ID = 4

PERSON_NAME = re.compile(
    r"(?i)^\W*(user|customer|client|visitor|member|account|session|shopper|buyer|login|phone|mobile|e?-?mail)"
)
# It looks at a character a bounded number of times: 64 KiB without a space took 25 s before.
_PERSON_VALUE = re.compile(
    r"""(?ix) ((?: user|customer|client|visitor|member|account|session|shopper|buyer|login|phone|mobile|e-?mail )
    [\w.-]{0,32} \\{0,4} ["']? \s{0,8} [:=] \s{0,8})
    ( [\[{] | \\{1,4}"(?:[^"\\]|\\{1,4}[^"\\])*+(?:\\{1,4}")? | "(?:[^"\\]|\\.)*"? | '[^']*'? | [^\s,;}\]&]+ )"""
)
# What stands inside brackets: a string, also of JSON inside a JSON string, a bare value, a bracket; and a key's colon.
_TOKEN = re.compile(
    r"""(?x) (?> \\{1,4}"(?:[^"\\]|\\{1,4}[^"\\])*+(?:\\{1,4}")? | "(?:[^"\\]|\\.)*"? | '[^']*'?
    | [^\s,:{}\[\]"'\\]+ | [{}\[\]] ) (\s{0,8} :)?"""
)
_FEW_IDS = 32  # each is looked for by itself; the ids of a whole window are not
_CELL = re.compile(r"""[^",;\t{}\[\]:\r\n]+""")
_WORD = re.compile(r"\w(?:[\w.@+-]*\w)?")


class Mask:
    """The keyed hash of one installation.

    Attributes:
        key: the secret.
    """

    def __init__(self, key: str) -> None:
        self.key = key.encode()

    def value(self, raw: str) -> str:
        """The hash of one id: 32 hex digits."""
        return hmac.digest(self.key, raw.encode(), "sha256").hex()[:_HEX_DIGITS]

    def column(self, raw: pa.ChunkedArray) -> pa.ChunkedArray:
        """The hash of each id of a text column; null stays null."""
        encoded = raw.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):  # pyarrow gives one for a column of no chunk
            encoded = encoded.combine_chunks()
        hashes = self._hashes(encoded.dictionary)
        return pa.chunked_array([hashes.take(encoded.indices)])

    def _hashes(self, distinct: pa.Array) -> pa.Array:
        connection = duckdb.connect()
        pieces = [distinct.slice(begin, _PIECE_IDS) for begin in range(0, len(distinct), _PIECE_IDS)]
        connection.register("ids", pa.table({"id": pa.chunked_array(pieces, pa.string())}))
        inner, outer = (_blob(bytes(byte ^ pad for byte in self._padded_key)) for pad in (0x36, 0x5C))
        hashed = connection.sql(
            f"SELECT left(sha256({outer} || unhex(sha256({inner} || encode(id)))), {_HEX_DIGITS}) AS hash FROM ids"
        ).to_arrow_table()["hash"]
        return hashed.combine_chunks().cast(pa.string())

    @cached_property
    def _padded_key(self) -> bytes:
        import hashlib

        key = self.key if len(self.key) <= _BLOCK_BYTES else hashlib.sha256(self.key).digest()
        return key.ljust(_BLOCK_BYTES, b"\0")

    def text(self, raw: str, known: frozenset[str] | set[str] = frozenset()) -> str:
        """`raw` with whatever tells a person masked.

        That is: values under a key that names a person (`"user_id": …`, also in a line that is cut in the
        middle; of an object or a list all that it holds), the `known` ids as a cell or a word, e-mail addresses,
        and numbers of phones, cards and accounts.
        """
        masked, found = self._under_keys(raw)

        def free(match: re.Match[str]) -> str:
            value = match[0].strip()
            if len(value) >= _SHORTEST_FREE_ID and (value in known or value in found):
                return match[0].replace(value, self.value(_unescaped(value)))
            return match[0]

        if not (known.isdisjoint(pieces := _pieces(masked)) and found.isdisjoint(pieces)):
            masked = _WORD.sub(free, _CELL.sub(free, masked))
        few = [ids for ids in (known, found) if len(ids) <= _FEW_IDS]
        return self.free_text(masked, frozenset().union(*few))

    def _under_keys(self, raw: str) -> tuple[str, set[str]]:
        """`raw` with the values under keys that name a person masked, and these values."""
        found: set[str] = set()

        def hashed(written: str) -> str:
            value = written.strip("\"'\\")
            if not value or value == "null":
                return written
            found.add(value)
            return written.replace(value, self.value(_unescaped(value)))

        def inside(token: re.Match[str]) -> str:
            return token[0] if token[1] or token[0] in "[]{}" else hashed(token[0])

        parts, at = [], 0
        while (match := _PERSON_VALUE.search(raw, at)) is not None:
            begin, end = match.span(2)
            parts.append(raw[at:begin])
            if match[2] in "[{":
                end = _closed_at(raw, begin)
                parts.append(_TOKEN.sub(inside, raw[begin:end]))
            else:
                parts.append(hashed(match[2]))
            at = end
        return "".join([*parts, raw[at:]]), found

    def free_text(self, raw: str, own: frozenset[str] | set[str] = frozenset()) -> str:
        """What a customer wrote, with `own` ids, e-mail addresses, numbers of phones, cards and accounts masked.

        Another customer's id that is no address and no number is not known to be one, and stays.
        """
        for value in own:
            written = {value, json.dumps(value)[1:-1]} if len(value) >= _SHORTEST_FREE_ID else ()
            if any(one in raw for one in written):  # a pattern of each id's own costs 0.2 ms, and few texts have one
                alone = rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, written))})(?![A-Za-z0-9])"
                raw = re.sub(alone, self.value(_unescaped(value)), raw)
        return without_contacts(raw)


def _closed_at(raw: str, begin: int) -> int:
    """Where the object or list that opens at `begin` has been closed; of one that is cut, the end of the text."""
    depth = 0
    for token in _TOKEN.finditer(raw, begin):
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth == 0:
            return token.end()
    return len(raw)


def _unescaped(value: str) -> str:
    """An id as it is, where raw JSON writes it with escapes."""
    if "\\" not in value:
        return value
    try:
        text = str(json.loads(f'"{value}"'))
        text.encode()  # half a surrogate pair cannot be hashed
    except ValueError:
        return value
    return text


def _pieces(text: str) -> set[str]:
    """The cells and words of a text: a look at them is quicker than putting each back unchanged."""
    return {cell.strip() for cell in _CELL.findall(text)} | set(_WORD.findall(text))


def distinct_ids(columns: Iterable[pa.ChunkedArray | pa.Array]) -> set[str]:
    """The ids of some columns of raw person ids, as they would stand in raw text."""
    ids: set[str] = set()
    for column in columns:
        ids.update(pc.unique(pc.utf8_trim_whitespace(column)).drop_null().to_pylist())
    return ids


def _blob(content: bytes) -> str:
    return "'" + "".join(f"\\x{byte:02X}" for byte in content) + "'::BLOB"
