"""A vocabulary that grows: ids get the next free index for good, and earn their own row by being seen.

A row of its own for an id seen once or twice learns noise and costs memory; until `ADMISSION_SIGHTINGS` a new
item lives from its text alone (DESIGN.md, decision 6; counting filters before admission are what Monolith,
Liu et al. 2022, does for the same reason).

The ids lie end to end in one buffer, and a table of row numbers finds them by their hash: a million ids take 30 MB so,
150 as Python's own texts in a list and a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

ADMISSION_SIGHTINGS = 3
_FEWEST_SLOTS = 1024
_READ_AT_ONCE = 65_536
_SLOTS_PER_ID = 2  # at least: of a table half full a search reads 1.5 slots on average (Knuth, volume 3, section 6.4)


class Vocabulary:
    """Ids and their indices, 0 being nobody's.

    Attributes:
        sightings: [size] int64, how often each index was seen.
    """

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._ids = _Texts()
        self.sightings = np.zeros(1, np.int64)

    def __len__(self) -> int:
        """Indices in use, 0 included."""
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        """The ids by index; ids[0] is empty."""
        return [text.decode() for text in self._ids]

    @property
    def admitted(self) -> np.ndarray:
        """[size] bool: seen often enough for a row of its own."""
        return self.sightings >= ADMISSION_SIGHTINGS

    def admitted_of(self, indices: np.ndarray) -> np.ndarray:
        """[n] bool: the same for some indices."""
        return self.sightings[indices] >= ADMISSION_SIGHTINGS

    def keep(self, kept: np.ndarray) -> None:
        """Drops all ids but those at `kept` ([m] int, 0 first); they move up in that order."""
        texts = list(self._ids)
        self._ids = _Texts.of([texts[place] for place in kept])
        self.sightings = self.sightings[kept]

    def index_of(self, identifier: str | None) -> int:
        """The id's index; 0 if it is unknown."""
        return self._ids.find(identifier.encode()) if identifier else 0

    def indices_of(self, identifiers: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """[n] int32 for n strings or nulls; each distinct id is looked up once."""
        if isinstance(identifiers, pa.ChunkedArray):
            identifiers = identifiers.combine_chunks()
        encoded = identifiers.dictionary_encode()
        table = np.array([*(self.index_of(item) for item in encoded.dictionary.to_pylist()), 0], np.int32)
        return table[encoded.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)]

    def grow(self, identifiers: Sequence[str]) -> np.ndarray:
        """Gives each id that is not known the next index; returns the indices of all of them, [n] int32.

        Raises:
            ValueError: an id is empty.
        """
        for identifier in identifiers:
            if not identifier:
                raise ValueError(
                    f"An id must be a text that is not empty; received {identifier!r}. The door's checks let none "
                    "through: look for the row in the quarantine's reasons and in the task's context."
                )
        indices = np.array([self._ids.add(identifier.encode()) for identifier in identifiers], np.int32)
        self.sightings = np.pad(self.sightings, (0, len(self._ids) - len(self.sightings)))
        return indices

    def see(self, indices: np.ndarray) -> np.ndarray:
        """Counts one sighting for each entry of `indices` [n] (0 is passed over); returns those newly admitted.

        Returns:
            [admitted] int64, ascending.
        """
        seen, counts = np.unique(indices[indices > 0], return_counts=True)
        before = self.sightings[seen]
        self.sightings[seen] = before + counts
        return seen[(before < ADMISSION_SIGHTINGS) & (before + counts >= ADMISSION_SIGHTINGS)].astype(np.int64)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        text, ends = self._ids.arrays()
        return {
            f"{prefix}/utf8": np.append(text, np.uint8(0)),
            f"{prefix}/offsets": np.concatenate([np.zeros(1, np.int64), ends]),
            f"{prefix}/sightings": self.sightings.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Vocabulary:
        """The vocabulary that `arrays` wrote."""
        vocabulary = cls()
        vocabulary._ids = _Texts.from_arrays(arrays[f"{prefix}/utf8"][:-1], arrays[f"{prefix}/offsets"][1:])
        vocabulary.sightings = np.array(arrays[f"{prefix}/sightings"], np.int64)
        return vocabulary


class _Texts:
    """Distinct texts (UTF-8) by number, and their numbers by text; number 0 is the empty text.

    The texts lie in one buffer, `_ends` says where each ends. `_slots` is a table with open addressing: a text's number
    stands at the first free place from its hash on. Python's hash differs from process to process, so the table is made
    anew where texts come from arrays.
    """

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = np.zeros(_FEWEST_SLOTS, np.int64)
        self._size = 1
        self._slots = np.zeros(_FEWEST_SLOTS, np.int32)

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> _Texts:
        """Distinct texts, the empty one first."""
        return cls.from_arrays(np.frombuffer(b"".join(texts), np.uint8), np.cumsum([len(text) for text in texts]))

    @classmethod
    def from_arrays(cls, text: np.ndarray, ends: np.ndarray) -> _Texts:
        """What `arrays` gave."""
        made = cls()
        made._text, made._ends, made._size = bytearray(text.tobytes()), np.array(ends, np.int64), len(ends)
        made._place_all()
        return made

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The texts end to end, [bytes] uint8, and where each ends, [size] int64."""
        return np.frombuffer(bytes(self._text), np.uint8), self._ends[: self._size].copy()

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for part in range(0, self._size, _READ_AT_ONCE):
            for end in self._ends[part : min(part + _READ_AT_ONCE, self._size)].tolist():
                yield bytes(self._text[start:end])
                start = end

    def find(self, text: bytes) -> int:
        """The text's number; 0 if it is not there."""
        return int(self._slots[self._slot(text)])

    def add(self, text: bytes) -> int:
        """The text's number, the next one if it is not there."""
        slot = self._slot(text)
        if number := int(self._slots[slot]):
            return number
        number, self._size = self._size, self._size + 1
        if number == len(self._ends):
            self._ends.resize(number + max(number // 8, _FEWEST_SLOTS), refcheck=False)
        self._text += text
        self._ends[number], self._slots[slot] = len(self._text), number
        if self._size * _SLOTS_PER_ID > len(self._slots):
            self._place_all()
        return number

    def _slot(self, text: bytes) -> int:
        """Where the text's number stands, or would."""
        last = len(self._slots) - 1
        slot = hash(text) & last
        while number := int(self._slots[slot]):
            if self._text[self._ends[number - 1] : self._ends[number]] == text:
                break
            slot = (slot + 1) & last
        return slot

    def _place_all(self) -> None:
        """Makes the table anew, twice as large as it must be, and gives every number its place."""
        slots = max(_FEWEST_SLOTS, 1 << (self._size * _SLOTS_PER_ID).bit_length())
        self._slots = np.zeros(slots, np.int32)
        waiting = np.arange(1, self._size, dtype=np.int32)
        hashes = np.fromiter((hash(text) for text in self), np.int64, self._size)[1:]
        places = hashes & (slots - 1)
        while len(waiting):
            free = self._slots[places] == 0
            self._slots[places[free]] = waiting[free]  # of several that want one place the last gets it
            out = self._slots[places] != waiting
            waiting, places = waiting[out], (places[out] + 1) & (slots - 1)
