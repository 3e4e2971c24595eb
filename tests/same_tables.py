"""Whether two lakes hold the same rows, whatever the order and the number of the commits that brought them."""

from __future__ import annotations

import json
from collections import Counter

from pipeline.lake import Lake
from pipeline.schema import FEEDS

TABLES = (*FEEDS, *(f"duplicates_{feed}" for feed in FEEDS), "quarantine", "windows")
# Of the window log: a version counts commits, and a window's volume is judged by what had landed before it.
_OF_THE_ORDER = ("table_version", "warnings")


def rows_of(lake: Lake, table: str) -> Counter[str]:
    """Each row of a table as text, with how often it is there; nothing of a table that is not there."""
    if lake.version(table) < 0:
        return Counter()
    rows = lake.arrow(table).to_pylist()
    return Counter(
        json.dumps({name: value for name, value in row.items() if name not in _OF_THE_ORDER}, default=str,
                   sort_keys=True)
        for row in rows
    )


def rows_differing(found: Lake, wanted: Lake) -> dict[str, tuple[int, int]]:
    """Table -> rows that `found` lacks and rows that it has too many; tables that are the same are left out."""
    differing = {}
    for table in TABLES:
        has, should = rows_of(found, table), rows_of(wanted, table)
        if has != should:
            differing[table] = ((should - has).total(), (has - should).total())
    return differing
