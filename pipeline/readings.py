"""What a learner reads off that which came, kept with the version whose job read it, then put into the lake's tables.

It goes the way of a version's quality: written beside the checkpoint before the version exists, appended to the lake
when the version is acted on, once, so that a process killed in between is simply run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipeline.lake import Lake

if TYPE_CHECKING:
    from pipeline.registry import Registry
    from pipeline.tasks.contract import Learner

TAG = "evergreen.read"  # names the tables of which a version's job read rows
_ENDING = ".read.parquet"
_SAID = ["message_id", "hour", "topic", "sentiment"]


def read_by(learner: Learner, context: pa.Table) -> Mapping[str, pa.Table]:
    """Table -> rows that the learner reads off the context; nothing where it is no Reader, or nothing came."""
    from pipeline.tasks.contract import Reader

    found = learner.read(context) if isinstance(learner, Reader) and len(context) else {}
    return {table: rows for table, rows in found.items() if len(rows)}


def keep(read: Mapping[str, pa.Table], folder: Path) -> None:
    """Writes what was read beside the checkpoint in `folder`."""
    for table, rows in read.items():
        pq.write_table(rows, folder / f"{table}{_ENDING}")


def publish(lake: Lake, registry: Registry, task_name: str, version: int) -> None:
    """Puts what a version's job read into the lake, once; of a retrain only if its model serves.

    While updates are held, each has the same champion read all that came since that one learnt: a message's reading is
    put there when it differs from what this champion said of it last, or the table would grow with the square of time.
    """
    tags = registry.tags(task_name, version)
    mine = (ds.field("task") == task_name) & (ds.field("version") == version)
    missing = [
        table for table in filter(None, tags.get(TAG, "").split(","))
        if not len(lake.arrow(table, columns=["version"], filter=mine))
    ]
    if not missing or not (tags["evergreen.parent"] or tags["evergreen.decision"] in ("promote", "first")):
        return
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        folder = registry.load_checkpoint(task_name, version, Path(scratch))
        for table in missing:
            rows = pq.read_table(folder / f"{table}{_ENDING}")
            if table == "readings" and tags["evergreen.parent"]:
                siblings = registry.children(task_name, int(tags["evergreen.parent"]))
                rows = _news(rows, lake, task_name, [one.number for one in siblings])
            if not len(rows):
                continue
            lake.append(table, pa.table({
                "task": pa.array([task_name] * len(rows), pa.string()),
                "version": pa.array([version] * len(rows), pa.int64()),
                **{name: rows[name] for name in rows.column_names},
            }))


def _news(rows: pa.Table, lake: Lake, task_name: str, same_reader: Collection[int]) -> pa.Table:
    """The readings less those whose message was read alike last, for one of the versions `same_reader`."""
    import pandas as pd  # takes half a second, which most promotions do without

    span = (ds.field("task") == task_name) & (ds.field("hour") >= pc.min(rows["hour"]))
    held = lake.arrow("readings", columns=["version", *_SAID], filter=span).to_pandas().sort_values("version")
    last = held.drop_duplicates("message_id", keep="last")
    known = pd.MultiIndex.from_frame(last.loc[last.version.isin(same_reader), _SAID])
    return rows.filter(pa.array(~pd.MultiIndex.from_frame(rows.select(_SAID).to_pandas()).isin(known)))
