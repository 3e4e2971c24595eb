"""A vocabulary that grows: ids get the next free index for good, and earn their own row by being seen.

A row of its own for an id seen once or twice learns noise and costs memory; until `ADMISSION_SIGHTINGS` a new
item lives from its text alone (DESIGN.md, decision 6; counting filters before admission are what Monolith,
Liu et al. 2022, does for the same reason).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

ADMISSION_SIGHTINGS = 3


class Vocabulary:
    """Ids and their indices, 0 being nobody's.

    Attributes:
        sightings: [size] int64, how often each index was seen.
    """

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._ids: list[str] = [""]
        self._index: dict[str, int] = {}
        self.sightings = np.zeros(1, np.int64)

    def __len__(self) -> int:
        """Indices in use, 0 included."""
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        """The ids by index; ids[0] is empty."""
        return self._ids

    @property
    def admitted(self) -> np.ndarray:
        """[size] bool: seen often enough for a row of its own."""
        return self.sightings >= ADMISSION_SIGHTINGS

    def admitted_of(self, indices: np.ndarray) -> np.ndarray:
        """[n] bool: the same for some indices."""
        return self.sightings[indices] >= ADMISSION_SIGHTINGS

    def keep(self, kept: np.ndarray) -> None:
        """Drops all ids but those at `kept` ([m] int, 0 first); they move up in that order."""
        self._ids = [self._ids[place] for place in kept]
        self._index = {identifier: place for place, identifier in enumerate(self._ids) if place}
        self.sightings = self.sightings[kept]

    def index_of(self, identifier: str | None) -> int:
        """The id's index; 0 if it is unknown."""
        return self._index.get(identifier, 0) if identifier is not None else 0

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
            if identifier not in self._index:
                self._index[identifier] = len(self._ids)
                self._ids.append(identifier)
        self.sightings = np.pad(self.sightings, (0, len(self._ids) - len(self.sightings)))
        return np.array([self._index[identifier] for identifier in identifiers], np.int32)

    def see(self, indices: np.ndarray) -> int:
        """Counts one sighting for each entry of `indices` [n] (0 is passed over); how many were newly admitted."""
        before = int(self.admitted.sum())
        self.sightings += np.bincount(indices[indices > 0], minlength=len(self)).astype(np.int64)
        return int(self.admitted.sum()) - before

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        encoded = [identifier.encode() for identifier in self._ids]
        return {
            f"{prefix}/utf8": np.frombuffer(b"".join(encoded) + b"\0", np.uint8).copy(),
            f"{prefix}/offsets": np.cumsum([0, *(len(item) for item in encoded)], dtype=np.int64),
            f"{prefix}/sightings": self.sightings.copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> Vocabulary:
        """The vocabulary that `arrays` wrote."""
        text, offsets = arrays[f"{prefix}/utf8"].tobytes(), arrays[f"{prefix}/offsets"]
        vocabulary = cls()
        vocabulary.grow([text[start:end].decode() for start, end in zip(offsets[1:-1], offsets[2:], strict=True)])
        vocabulary.sightings = np.array(arrays[f"{prefix}/sightings"], np.int64)
        return vocabulary
