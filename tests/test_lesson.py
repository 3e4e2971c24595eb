"""What a job learns, on a real lake: each row once along a lineage, none that judges, and all accounted for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.checkpoint import Ledger
from pipeline.lake import Lake
from pipeline.lesson import Lesson, NothingToLearn, lesson_of_change, lesson_of_everything
from pipeline.locking import file_locks
from pipeline.schema import EVENTS
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples
from tests.price_task import PriceTask
from tests.small_shop import hour, publish, publish_purchases, purchases

SPAN = 672  # a shop of sixty customers never has the thousand that the gate wants: the longest span
STEP = 12


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"), file_locks(tmp_path / "locks"))


@dataclass
class Lineage:
    """A line of models, each promoted, without the models."""

    lake: Lake
    ledgers: list[Ledger]
    lessons: list[Lesson]

    @classmethod
    def base(cls, lake: Lake) -> Lineage:
        task = PriceTask(lake, "")
        lesson = lesson_of_everything(task, Snapshot(lake, {"events": lake.version("events")}), None, None)
        return cls(lake, [lesson.ledger], [lesson])

    def update(self, start: int | None = None) -> Lesson:
        tables = Snapshot(self.lake, {"events": self.lake.version("events")})
        ledger = self.ledgers[-1]
        lesson = lesson_of_change(
            PriceTask(self.lake, ""), tables, len(self.ledgers), ledger,
            ledger.versions["events"] if start is None else start, seed=7,
        )
        self.ledgers.append(lesson.ledger)
        self.lessons.append(lesson)
        return lesson

    @property
    def learnt(self) -> list[str]:
        return [one for lesson in self.lessons for one in ids(lesson.new)]


def ids(examples: Examples) -> list[str]:
    return examples.table["example_id"].to_pylist()


def with_price(rows: pa.Table, places: Sequence[int], price: float) -> pa.Table:
    prices = rows["price"].to_pylist()
    for place in places:
        prices[place] = price
    return rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(prices, pa.float64()))


def test_an_empty_table_cannot_be_learnt_and_says_what_to_do(lake: Lake) -> None:
    with pytest.raises(NothingToLearn, match=r"'events'.*ingest"):
        Lineage.base(lake)


def test_every_row_is_learnt_once_and_what_judges_is_not_learnt_before_its_span_has_passed(lake: Lake) -> None:
    publish_purchases(lake, *range(0, 800, STEP))
    line = Lineage.base(lake)
    assert line.ledgers[0].joined_until == hour(792 + 1 - SPAN).start
    for number in range(804, 980, 2 * STEP):
        publish_purchases(lake, number, number + STEP)
        lesson = line.update()
        assert lesson.ledger.joined_until == hour(number + STEP + 1 - SPAN).start
        judging = set(ids(lesson.tune)) | set(ids(lesson.gate))
        assert not set(ids(lesson.replayed)) & set(ids(lesson.new))
        assert judging and not judging & set(line.learnt) and not judging & set(ids(lesson.replayed))
        assert not set(ids(lesson.tune)) & set(ids(lesson.gate))
    learnt = line.learnt
    assert len(learnt) == len(set(learnt))
    events = lake.arrow("events")
    teaching = events.filter(pc.equal(events["event_type"], "purchase"))
    open_ones = {*ids(lesson.tune), *ids(lesson.gate)}
    assert set(learnt) | open_ones == set(teaching["event_id"].to_pylist()) and not set(learnt) & open_ones
    rows = line.ledgers[-1].rows
    assert sum(one.own_rows.joined for one in line.ledgers) == rows.joined > 20
    assert rows.held_out - rows.joined == len(open_ones) and rows.context == len(events) - len(teaching)


@pytest.mark.slow
def test_what_a_lineage_has_learnt_from_has_no_gap_and_its_counts_balance(lake: Lake) -> None:
    """Hours that are inserted, corrected, emptied and refilled, in any order, several between two updates."""
    publish_purchases(lake, *range(10))
    line, draw = Lineage.base(lake), np.random.default_rng(5)
    for number in range(10, 22):
        publish_purchases(lake, number)
        for other in draw.integers(0, number, 1):
            rows = purchases(int(other))
            kept = rows.slice(0, int(draw.integers(0, len(rows) + 1)))
            publish(lake, EVENTS, [hour(int(other))], with_price(kept, range(min(2, len(kept))), float(number)))
        if draw.random() < 0.5:
            continue
        before = line.ledgers[-1]
        lesson = line.update()
        assert lesson.ledger.learnt_from == before.versions
        assert lesson.ledger.own_rows.balanced and lesson.ledger.rows.balanced
        counts = lesson.ledger.rows
        assert counts.inserted - counts.deleted == lake.arrow("events", lesson.ledger.versions["events"]).num_rows
        assert lesson.ledger.parent == len(line.ledgers) - 1 and lesson.ledger.base == 1
    assert line.ledgers[-1].rows.updated > 3 and line.ledgers[-1].rows.deleted > 20
    assert line.ledgers[-1].updates == len(line.ledgers) - 1 >= 4


def test_a_corrected_hour_is_learnt_once_and_only_in_the_rows_that_differ(lake: Lake) -> None:
    publish_purchases(lake, *range(0, 800, STEP))
    line = Lineage.base(lake)
    publish(lake, EVENTS, [hour(48)], with_price(purchases(48), [2, 5], 99.0))
    lesson = line.update()
    assert ids(lesson.arrived) == ids(lesson.new) == ["e48-2", "e48-5"]  # older than the span: even what once judged
    assert lesson.new.table["price"].to_pylist() == [99.0, 99.0]
    publish(lake, EVENTS, [hour(48)], with_price(purchases(48), [2, 5], 99.0))
    publish_purchases(lake, 804)
    assert not {"e48-2", "e48-5"} & set(ids(line.update().new))


def test_a_validation_row_that_is_corrected_as_its_span_passes_is_learnt_once(lake: Lake) -> None:
    publish_purchases(lake, *range(0, 800, STEP))
    line = Lineage.base(lake)
    publish(lake, EVENTS, [hour(132)], with_price(purchases(132), range(10), 99.0))
    publish_purchases(lake, 804)
    lesson = line.update()
    assert line.ledgers[0].joined_until <= hour(132).start < lesson.ledger.joined_until
    corrected = sorted(one for one in ids(lesson.new) if one.startswith("e132-"))
    assert corrected == [f"e132-{place}" for place in range(10)]


def test_a_late_row_of_an_hour_whose_span_has_passed_is_learnt_at_once(lake: Lake) -> None:
    publish_purchases(lake, *range(0, 800, STEP))
    line = Lineage.base(lake)
    late = purchases(36, count=30, name="late").slice(0, 30)
    late = late.set_column(late.schema.get_field_index("landed_window"), late.schema.field("landed_window"),
                           [[hour(804).start] * 30])
    late = late.set_column(late.schema.get_field_index("landed_date"), late.schema.field("landed_date"),
                           [[hour(804).start.date()] * 30])
    publish(lake, EVENTS, [hour(804)], late)
    lesson = line.update()
    assert sorted(ids(lesson.new)) == sorted({*late["event_id"].to_pylist(), *ids(lesson.new)})
    assert set(late["event_id"].to_pylist()) <= set(ids(lesson.new))
    assert lesson.ledger.own_rows.held_out == 0
    assert not set(ids(line.update().new))


def test_an_hour_set_aside_neither_teaches_nor_judges_until_it_is_corrected(lake: Lake) -> None:
    publish_purchases(lake, *range(60))
    line = Lineage.base(lake)
    publish_purchases(lake, 60, count=50, factor=4.0)  # version 2 of the table
    publish_purchases(lake, 61)
    poisoned = set(purchases(60, count=50)["event_id"].to_pylist())
    key = hour(60).start.isoformat()
    lesson = line.update(start=2)
    assert lesson.ledger.set_aside == {key: ((1, 2),)}
    assert lesson.ledger.own_rows.set_aside == 60 and lesson.ledger.rows.balanced
    for number in range(62, 66):
        used = [*ids(lesson.train), *ids(lesson.tune), *ids(lesson.gate)]
        assert used and not poisoned & set(used)
        publish_purchases(lake, number)
        lesson = line.update()
        assert lesson.ledger.set_aside == {key: ((1, 2),)}
    tables = Snapshot(lake, {"events": lake.version("events")})
    retrain = lesson_of_everything(PriceTask(lake, ""), tables, None, lesson.ledger)
    assert not poisoned & {*ids(retrain.new), *ids(retrain.tune), *ids(retrain.gate)}
    assert list(retrain.ledger.set_aside) == [key] and retrain.ledger.own_rows.set_aside == 60
    assert retrain.ledger.rows.balanced
    # a correction of one row brings back the others too, which it left as they were
    publish(lake, EVENTS, [hour(60)], with_price(purchases(60, count=50, factor=4.0), [7], 26.0))
    for ledger in (lesson.ledger, retrain.ledger):
        line.ledgers.append(ledger)
        lesson = line.update()
        assert lesson.ledger.set_aside == {}
        assert (lesson.ledger.own_rows.updated, lesson.ledger.own_rows.set_aside) == (1, -59)
        assert lesson.ledger.rows.set_aside == 1 and lesson.ledger.rows.balanced
        assert sorted(ids(lesson.arrived)) == sorted(f"e60-{place}" for place in range(50))


def test_a_retrain_judges_by_nothing_that_the_champion_has_learnt(lake: Lake) -> None:
    publish_purchases(lake, *range(0, 800, STEP))
    line = Lineage.base(lake)
    champion = replace(line.ledgers[0], joined_until=hour(700).start)
    tables = Snapshot(lake, {"events": lake.version("events")})
    lesson = lesson_of_everything(PriceTask(lake, ""), tables, 10, champion)
    assert min(lesson.gate.table["hour"].to_pylist()) >= hour(700).start
    assert min(lesson.new.table["hour"].to_pylist()) >= hour(793).start - timedelta(days=10)
    assert (lesson.ledger.kind, lesson.ledger.parent, lesson.ledger.learnt_from) == ("retrain", None, {"events": -1})
    assert lesson.ledger.rows.balanced and lesson.ledger.rows.context > 400


def test_the_same_versions_give_the_same_lesson(lake: Lake) -> None:
    publish_purchases(lake, *range(0, 300, STEP))
    line = Lineage.base(lake)
    publish_purchases(lake, 300)
    one = line.update()
    line.ledgers.pop()
    publish_purchases(lake, 312)  # a later commit is not seen by a lesson at the versions before
    tables = Snapshot(lake, {"events": 2})
    other = lesson_of_change(PriceTask(lake, ""), tables, 1, line.ledgers[-1], 1, seed=7)
    for name in ("new", "replayed", "tune", "gate", "arrived"):
        assert getattr(one, name).table.equals(getattr(other, name).table), name
    assert ids(one.arrived) == sorted(ids(one.arrived))  # a change feed comes in no order
    assert one.ledger == other.ledger and one.context.equals(other.context)
