"""Rows of numbers in a quarter of their memory: int8 with a scale for each row.

A row is rounded to 255 steps between minus and plus its largest value (symmetric quantisation, as LiteRT's of weights):
of a text's 128 directions that moves each by at most 0.4 % of the largest, and the cosine of two texts by 0.001.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .growing import lengthened, with_room

_MOST = 127.0


def to_int8(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n, width] float as [n, width] int8 and [n, 1] float32 scales; a row of zeros has the scale 1."""
    scale = np.abs(rows).max(axis=1, keepdims=True, initial=0.0).astype(np.float32) / np.float32(_MOST)
    scale = np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)
    return np.rint(rows / scale).astype(np.int8), scale


def from_int8(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """[n, width] float32."""
    return values.astype(np.float32) * scale


class Int8Rows:
    """A table of such rows that grows.

    Attributes:
        values: [rows, width] int8.
        scale: [rows, 1] float32.
    """

    def __init__(self, values: np.ndarray, scale: np.ndarray) -> None:
        """Takes both as they are."""
        self.values, self.scale = values, scale

    @classmethod
    def zeros(cls, rows: int, width: int) -> Int8Rows:
        """Rows that say nothing."""
        return cls(np.zeros((rows, width), np.int8), np.zeros((rows, 1), np.float32))

    @classmethod
    def of(cls, rows: np.ndarray) -> Int8Rows:
        """Rows [n, width] float, rounded."""
        return cls(*to_int8(rows))

    def __len__(self) -> int:
        """Rows."""
        return len(self.values)

    def __getitem__(self, index: np.ndarray) -> Int8Rows:
        """Some rows, a copy."""
        return Int8Rows(self.values[index], self.scale[index])

    def __setitem__(self, index: np.ndarray, rows: Int8Rows) -> None:
        """Writes rows as they are, without rounding them again."""
        self.values[index], self.scale[index] = rows.values, rows.scale

    def floats(self, index: np.ndarray) -> np.ndarray:
        """[n, width] float32, some rows."""
        return from_int8(self.values[index], self.scale[index])

    def grow(self, rows: int) -> None:
        """Makes room for so many rows in all."""
        self.values, self.scale = lengthened(self.values, rows), lengthened(self.scale, rows)

    def copy(self) -> Int8Rows:
        """Another table of the same rows."""
        return Int8Rows(self.values.copy(), self.scale.copy())

    def arrays(self, name: str, rows: int) -> dict[str, np.ndarray]:
        """The first `rows` rows as arrays, for a checkpoint; not copied."""
        return {name: self.values[:rows], f"{name}_scale": self.scale[:rows]}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> Int8Rows:
        """What `arrays` wrote, with room to grow; or the float16 rows of a checkpoint of before December 2026."""
        values, scale = arrays[name], arrays.get(f"{name}_scale")
        if scale is None:
            values, scale = to_int8(values.astype(np.float32))
        return cls(with_room(values), with_room(scale))
