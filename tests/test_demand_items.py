"""What the demand learner goes on with between two lessons of an item is what a look at the tables would say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.lake import open_lake
from pipeline.schema import EVENTS, ITEMS
from pipeline.snapshot import Snapshot
from pipeline.tasks.demand import DemandTask
from pipeline.tasks.demand_items import SERIES, DemandItems
from pipeline.window import Window
from tests.small_shop import publish, settings_of
from tests.test_demand_examples import START, change, sale


def test_an_items_last_sale_price_and_stock_are_told_though_nothing_happens_to_it_any_more(tmp_path: Path) -> None:
    """On day 3 the last one is sold and its price is raised; then other items alone are sold, until day 6 is over."""
    lake = open_lake(settings_of(tmp_path))
    task = DemandTask(lake, "tiny")

    def land(day: int, hour: int, *rows: dict) -> Snapshot:
        for row in rows:
            feed = EVENTS if "event_id" in row else ITEMS
            window = Window(START + timedelta(days=day, hours=hour))
            publish(lake, feed, [window], pa.Table.from_pylist([row], schema=feed.table_schema))
        return Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})

    def told(items: DemandItems, tables: Snapshot, since: Mapping[str, int] | None) -> list[str]:
        context = task.context(tables, since)
        items.take_in(context, np.zeros((len(context), 1), np.float32))
        return context["item_id"].to_pylist()

    begun = [change("slow", 0, price=10.0, stock=1.0), change("fast", 0, price=5.0)]
    items, since, named = DemandItems(1), None, []
    for tables in (
        land(2, 9, *begun, sale("fast", 2)),
        land(3, 13, sale("slow", 3, hour=13), change("slow", 3, hour=13, price=12.0, stock=0.0)),
        *(land(day, 9, sale("fast", day)) for day in range(4, 8)),
    ):
        named.append(told(items, tables, since))
        since = tables.versions
    assert named[-2:] == [["fast"], ["fast"]], "an item is told anew for two days and no longer"
    anew = DemandItems(1)
    told(anew, tables, None)
    gone_on, wanted, row = items.sales(), anew.sales(), items.rows_of(["slow"])[0]
    for name in SERIES:
        np.testing.assert_array_equal(getattr(gone_on, name)[row], getattr(wanted, name)[row], name)
    assert gone_on.units[row, -4] == 1 and not gone_on.in_stock[row, -3:].any()
    np.testing.assert_allclose(gone_on.log_price[row, -1], np.log(12.0), rtol=1e-6)
