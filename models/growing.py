"""Arrays that grow by rows: tables of a catalogue that gets new items every hour, weights of a network that got inputs.

Tables grow without a copy.
"""

from __future__ import annotations

import numpy as np

# Rows that an array from a checkpoint has room for: a sixteenth more, a large shop's new items of weeks. The system
# gives the pages only when they are written, so that room takes no memory.
_ROOM_SHARE = 16
_LEAST_ROOM = 1024


def with_room(array: np.ndarray) -> np.ndarray:
    """A copy of the array that `lengthened` makes longer at no cost, as long as the new rows are not too many."""
    rows = len(array)
    room = np.zeros((rows + max(rows // _ROOM_SHARE, _LEAST_ROOM), *array.shape[1:]), array.dtype)
    room[:rows] = array
    return room[:rows]


def lengthened(array: np.ndarray, size: int) -> np.ndarray:
    """The array with zeros at its end until it has `size` rows; the array given must not be used any more.

    Where there is no room left the kernel moves the pages of a large array (mremap), so that nothing is copied and a
    table never lies in memory twice. Nobody else holds one of these arrays or a view of it.
    """
    if size <= len(array):
        return array
    room: np.ndarray = array if array.base is None else array.base
    if size > len(room):
        room.resize((size, *array.shape[1:]), refcheck=False)
    return room[:size]


def fitted(held: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a checkpoint in `shape`: the inputs that its network did not have count for nothing at first.

    Raises:
        ValueError: it is larger, or differs in more than its first axis.
    """
    if held is None:
        return np.zeros(shape, np.float32)
    if held.shape[1:] != shape[1:] or (len(shape) and held.shape[0] > shape[0]):
        raise ValueError(
            f"A checkpoint's array must fit into {shape}; it is {held.shape}. Its network is another one: retrain."
        )
    return held if held.shape == shape else np.pad(held, [(0, shape[0] - len(held))] + [(0, 0)] * (held.ndim - 1))
