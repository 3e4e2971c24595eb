"""Searches that nobody made: a part of a chosen item's title, and that item for answer.

A shop without a log of searches teaches its model nothing of words; its titles do. Making queries from the documents
that they should find is how dense retrievers are trained without any (inverse cloze task: Lee, Chang and Toutanova, ACL
2019; random crops: Izacard et al., TMLR 2022). Which titles is decided by what is chosen, so that the answer to an
ambiguous word is what is wanted most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.snapshot import Snapshot
from pipeline.tasks.known_items import catalogue
from pipeline.tasks.recommend_examples import EXAMPLES_SCHEMA
from pipeline.tasks.wordings import fragment


def searches_of_titles(
    tables: Snapshot, learnt: pa.Table, share: float, generator: np.random.Generator
) -> pa.Table:
    """Made-up searches (EXAMPLES_SCHEMA): they teach no row, and have no history.

    Args:
        tables: whose catalogue has the titles.
        learnt: examples of choices and others; only what was chosen without a search is taken.
        share: searches for each of these.
        generator: draws examples, items and words.
    """
    chose = pc.and_(pc.is_null(learnt["query"]), pc.greater(pc.list_value_length(learnt["targets"]), 0))
    choices = learnt.filter(chose)
    wanted = round(share * len(choices))
    if not wanted:
        return EXAMPLES_SCHEMA.empty_table()
    drawn = choices.take(generator.integers(len(choices), size=wanted))
    items = [one[int(generator.integers(len(one)))] for one in drawn["targets"].to_pylist()]
    titles = _titles(tables, items)
    words = [fragment(titles.get(item) or "", generator) for item in items]
    columns = _columns(drawn, items, words)
    return pa.table(columns, schema=EXAMPLES_SCHEMA).filter(pa.array([bool(one) for one in words]))


def _columns(drawn: pa.Table, items: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    count = len(drawn)
    empty = {
        name: pa.array([[]] * count, EXAMPLES_SCHEMA.field(name).type)
        for name in ("history_items", "history_counts", "history_views", "history_days", "history_habits")
    }
    ids = [f"title|{place}|{one}" for place, one in enumerate(drawn["example_id"].to_pylist())]
    return {
        **{name: drawn[name] for name in ("unit", "time", "hour", "landed_window")},
        "example_id": ids, "rows": np.zeros(count, np.int64), **empty,
        "targets": pa.array([[item] for item in items], pa.list_(pa.string())), "query": list(words),
        "rating_item": pa.nulls(count, pa.string()), "rating": pa.nulls(count, pa.float32()),
    }


def _titles(tables: Snapshot, items: Sequence[str]) -> dict[str, str]:
    asked = pa.table({"item_id": pa.array(sorted(set(items)), pa.string())})
    known = catalogue(tables, asked)
    return dict(zip(known["item_id"].to_pylist(), known["title"].to_pylist(), strict=True))
