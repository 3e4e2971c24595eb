"""Adam for the rows of large tables: a step touches the rows in it and no others; and the dense weights' optimizers.

Keras' Adam is dense on tables even where gradients are sparse (keras issue 19992): a step costs the whole table.
This is the lazy variant, as in TensorFlow Addons' LazyAdam: moments of rows that a step does not touch stay as they
are. The second moment is one number a row (the mean over its columns), as in row-wise Adagrad of FBGEMM and DLRM
(Mudigere et al., ISCA 2022), and the first is kept as int8 with a scale a row (Dettmers et al., "8-bit Optimizers via
Block-wise Quantization", ICLR 2022, with a row as the block), which is plenty beside a mean that forgets a tenth a
step: together a seventh of Adam's own memory. The tables lie in the host's memory, so that they grow without a new
trace of the compiled step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras
import numpy as np

from .growing import lengthened, with_room
from .int8_rows import Int8Rows

FIRST_DECAY, SECOND_DECAY, EPSILON = 0.9, 0.999, 1e-7  # Keras' Adam


@dataclass
class RowMoments:
    """Adam's moments of a table of rows.

    Attributes:
        first: [rows, width] as int8.
        second: [rows] float32, mean over the columns.
        steps: [rows] int32, how many steps have touched the row.
        weight_decay: times the learning rate, the share of itself that a row loses when it is touched (AdamW).
    """

    first: Int8Rows
    second: np.ndarray
    steps: np.ndarray
    weight_decay: float = field(default=0.0, init=False)

    @classmethod
    def zeros(cls, rows: int, width: int) -> RowMoments:
        """Moments of rows that no step has touched."""
        return cls(Int8Rows.zeros(rows, width), np.zeros(rows, np.float32), np.zeros(rows, np.int32))

    def grow(self, rows: int) -> None:
        """Makes room for so many rows in all."""
        self.first.grow(rows)
        self.second, self.steps = lengthened(self.second, rows), lengthened(self.steps, rows)

    def __getitem__(self, index: np.ndarray) -> RowMoments:
        """Those of some rows, a copy."""
        some = RowMoments(self.first[index], self.second[index], self.steps[index])
        some.weight_decay = self.weight_decay
        return some

    def arrays(self, name: str, rows: int) -> dict[str, np.ndarray]:
        """Those of the first `rows` rows as arrays, for a checkpoint; not copied."""
        rest = {f"{name}/second": self.second[:rows], f"{name}/steps": self.steps[:rows]}
        return self.first.arrays(f"{name}/first", rows) | rest

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> RowMoments:
        """What `arrays` wrote, with room to grow; or what a checkpoint of before December 2026 holds."""
        first = arrays[f"{name}/first"]
        if first.dtype == np.uint16:  # the bits of a bfloat16
            arrays = {**arrays, f"{name}/first": (first.astype(np.uint32) << 16).view(np.float32)}
        return cls(
            Int8Rows.from_arrays(arrays, f"{name}/first"), with_room(arrays[f"{name}/second"]),
            with_room(arrays[f"{name}/steps"]),
        )

    def step(self, table: np.ndarray, index: np.ndarray, gradient: np.ndarray, learning_rate: float) -> None:
        """Moves the rows `index` (distinct) of `table` in place.

        Args:
            table: [rows, width] float32.
            index: [touched] int.
            gradient: [touched, width] float32.
            learning_rate: of Adam.
        """
        if self.weight_decay:
            table[index] *= np.float32(1.0 - learning_rate * self.weight_decay)
        self.steps[index] += 1
        steps = self.steps[index].astype(np.float32)
        first = self.first.floats(index)
        first += np.float32(1.0 - FIRST_DECAY) * (gradient - first)
        self.first[index] = Int8Rows.of(first)
        second = self.second[index]
        squares = np.einsum("ij,ij->i", gradient, gradient) / gradient.shape[1]
        second += np.float32(1.0 - SECOND_DECAY) * (squares - second)
        self.second[index] = second
        corrected = np.sqrt(second / (1.0 - np.float32(SECOND_DECAY) ** steps)) + np.float32(EPSILON)
        pace = np.float32(learning_rate) / ((1.0 - np.float32(FIRST_DECAY) ** steps) * corrected)
        table[index] -= pace[:, None] * first


def dense_optimizer(
    kind: str, variables: Sequence[keras.Variable], weight_decay: float = 0.0
) -> keras.optimizers.Optimizer:
    """The optimizer of weights that every step moves, with its slots.

    Args:
        kind: "adam", "adamw" or "adafactor" (Shazeer and Stern, ICML 2018; its steps are relative to the weights'
            size, the learning rate is the schedule's alone).
        variables: what it moves.
        weight_decay: of "adamw" and "adafactor", decoupled; vectors and scalars (biases, gates) do not decay.
    """
    made: keras.optimizers.Optimizer
    if kind == "adam":
        made = keras.optimizers.Adam(learning_rate=1e-3)
    elif kind == "adamw":
        made = keras.optimizers.AdamW(learning_rate=1e-3, weight_decay=weight_decay)
    else:
        made = keras.optimizers.Adafactor(learning_rate=1e-3, weight_decay=weight_decay, relative_step=False)
    if kind != "adam":
        made.exclude_from_weight_decay(var_list=[one for one in variables if len(one.shape) < 2])
    made.build(variables)
    return made
