"""A few rows of a long table: Arrow's own `take` puts all chunks of a text column together first.

Of a million lines, 7,000 cost 0.2 s that way and 0.01 s by a filter with a mask in one piece (one in chunks is
five times as slow).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import pyarrow as pa

Rows = TypeVar("Rows", pa.Table, pa.ChunkedArray)


def picked(rows: Rows, places: np.ndarray) -> Rows:
    """The rows at `places` (`[picked]` int64, each at most once), in the order of `places`."""
    mask = np.zeros(len(rows), bool)
    mask[places] = True
    found = rows.filter(pa.array(mask))
    if (np.diff(places) > 0).all():
        return found
    return found.take(pa.array(np.searchsorted(np.sort(places), places)))
