"""Every user has one row of the model's answers, however often and wherever the run was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from models.recommender_service import RecommenderService
from pipeline.batch_scoring import Answers, BatchRefused, Run, Scored, score_lake, score_users, source_version
from pipeline.lake import open_lake
from pipeline.locking import locks_of
from tests.benchmarks.bench_recommend import random_recommender
from tests.small_shop import settings_of

ITEMS, USERS, BUCKETS, K = 50, 90, 8, 5


@pytest.fixture(scope="module")
def service() -> RecommenderService:
    return RecommenderService(random_recommender(ITEMS, np.random.default_rng(0)), lambda: None)


def users(count: int = USERS, seed: int = 1) -> pa.Table:
    draw = np.random.default_rng(seed)
    bought = [draw.integers(0, ITEMS + 5, size=draw.integers(0, 9)) for _ in range(count)]
    histories = [[f"item-{item}" for item in items] for items in bought]
    return pa.table({
        "user_id": [f"{place:032x}" for place in range(count)], "history": histories,
        "history_days": [[float(place) for place in range(len(history))] for history in histories],
    })


def scored(service: RecommenderService, out: Path, source: Path, **given: Any) -> Scored:
    version = source_version(None, str(source))  # type: ignore[arg-type]
    wanted = Run(0, given.pop("version", 7), str(source), version, K, given.pop("exclude", False))
    answers: Callable[[Run], Answers] = given.pop(
        "answers", lambda run: lambda rows: service.many(rows, run.k, run.exclude_history)
    )
    return score_users(None, str(out), wanted, answers, buckets=BUCKETS, **given)


def table_of(out: Path) -> dict[str, dict]:
    rows = DeltaTable(out).to_pyarrow_table().to_pylist()
    assert len({row["user_id"] for row in rows}) == len(rows)  # nobody twice
    return {row["user_id"]: row for row in rows}


class Stopped(Exception):
    """What ends a run here."""


def stopping(service: RecommenderService, after: int) -> Callable[[Run], Answers]:
    """Answers that end the run at the batch after so many."""
    def of(run: Run) -> Answers:
        left = [after]

        def answers(rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return service.many(rows, run.k, run.exclude_history)

        return answers

    return of


@pytest.mark.parametrize("exclude", [False, True])
def test_many_are_answered_as_each_alone(service: RecommenderService, exclude: bool) -> None:
    rows = [*users().select(["history", "history_days"]).to_pylist(), {"history": ["item-3"] * 400, "history_days": []}]
    ids, scores = service.many(rows, 60, exclude)
    for place, row in enumerate(rows):
        there = np.isfinite(scores[place])
        own, values = service.one(row, 60, exclude)
        assert len(own) == there.sum() and sorted(own) == sorted(ids[place, there])
        np.testing.assert_allclose(scores[place, there], values, rtol=1e-4, atol=1e-4)
        if exclude:
            assert not set(own) & set(row["history"])


def test_each_user_has_the_models_answer_and_the_next_run_replaces_it(
    service: RecommenderService, tmp_path: Path
) -> None:
    source, out, told = tmp_path / "users.parquet", tmp_path / "out", []
    pq.write_table(users(), source)
    first = scored(service, out, source, progress=lambda done, whole: told.append((done, whole)))
    assert (first.users, first.run.number, first.buckets_before) == (USERS, 1, 0)
    assert told[0] == (0, USERS) and told[-1] == (USERS, USERS) and len(told) == BUCKETS + 1
    rows = table_of(out)
    for row in users().to_pylist():
        own, values = service.one(row, K)
        answered = rows[row["user_id"]]
        np.testing.assert_allclose(answered["scores"], values, rtol=1e-4, atol=1e-4)
        assert set(answered["item_ids"]) <= set(own) and answered["model_version"] == 7
    pq.write_table(users(60), source)
    again = scored(service, out, source, version=8)
    assert again.run.number == 2 and again.users == 60
    assert len(table_of(out)) == 60 and {row["model_version"] for row in table_of(out).values()} == {8}


@pytest.mark.parametrize("after", [0, 1, 4, BUCKETS - 1])
def test_a_stopped_run_goes_on_where_it_was_with_the_same_users(
    service: RecommenderService, tmp_path: Path, after: int
) -> None:
    source, out = tmp_path / "users", tmp_path / "out"
    write_deltalake(source, users())
    with pytest.raises(Exception, match="Stopped"):  # DeltaError, or what delta-rs makes of it: a plain one
        scored(service, out, source, answers=stopping(service, after))
    assert DeltaTable(out).version() == after  # no half bucket
    write_deltalake(source, users(5, seed=2).set_column(0, "user_id", pa.array([f"new{n}" for n in range(5)])),
                    mode="append")
    done = scored(service, out, source)
    assert (done.run.number, done.buckets_before) == (1, after)
    assert len(table_of(out)) == (USERS if after else USERS + 5)  # nothing was done: nothing to be true to
    assert scored(service, out, source).run.number == 2
    assert len(table_of(out)) == USERS + 5


def test_a_stopped_run_of_another_model_is_left_for_a_new_one(service: RecommenderService, tmp_path: Path) -> None:
    source, out = tmp_path / "users.parquet", tmp_path / "out"
    pq.write_table(users(), source)
    with pytest.raises(Exception, match="Stopped"):  # DeltaError, or what delta-rs makes of it: a plain one
        scored(service, out, source, answers=stopping(service, 3))
    done = scored(service, out, source, version=8)
    assert (done.run.number, done.buckets_before) == (2, 0)
    assert {row["model_version"] for row in table_of(out).values()} == {8} and len(table_of(out)) == USERS


def vacuum(out: Path) -> None:
    DeltaTable(out).vacuum(0, dry_run=False, enforce_retention_duration=False)
    assert "VACUUM" in DeltaTable(out).history(1)[0]["operation"]


def test_a_vacuum_between_two_runs_lets_the_next_one_score_all(service: RecommenderService, tmp_path: Path) -> None:
    source, out = tmp_path / "users.parquet", tmp_path / "out"
    pq.write_table(users(), source)
    scored(service, out, source, version=7)
    for run, version in ((2, 8), (3, 9), (4, 10)):
        done = scored(service, out, source, version=version)
        assert (done.run.number, done.users, done.buckets_before) == (run, USERS, 0)
        assert {row["model_version"] for row in table_of(out).values()} == {version}
        vacuum(out)


def test_a_run_that_was_stopped_goes_on_after_a_vacuum(service: RecommenderService, tmp_path: Path) -> None:
    source, out = tmp_path / "users.parquet", tmp_path / "out"
    pq.write_table(users(), source)
    for _ in range(2):  # what the second run replaces is there to be vacuumed
        scored(service, out, source)
    with pytest.raises(Exception, match="Stopped"):  # DeltaError, or what delta-rs makes of it: a plain one
        scored(service, out, source, version=8, answers=stopping(service, 3))
    vacuum(out)
    done = scored(service, out, source, version=8)
    assert (done.run.number, done.buckets_before) == (3, 3)
    assert {row["model_version"] for row in table_of(out).values()} == {8} and len(table_of(out)) == USERS


def test_what_cannot_be_scored_is_refused_and_said(service: RecommenderService, tmp_path: Path) -> None:
    source, out = tmp_path / "users.parquet", tmp_path / "out"
    with pytest.raises(BatchRefused, match="is not there"):
        scored(service, out, source)
    pq.write_table(users().drop(["history"]), source)
    with pytest.raises(BatchRefused, match="Add history"):
        scored(service, out, source)
    pq.write_table(pa.concat_tables([users(3), users(2)]), source)
    with pytest.raises(BatchRefused, match="2 rows too many"):
        scored(service, out, source)
    write_deltalake(tmp_path / "mine", users(3))
    with pytest.raises(BatchRefused, match="is another table"):
        scored(service, tmp_path / "mine", source)


def test_two_runs_at_once_into_one_table_are_refused(tmp_path: Path) -> None:
    import hashlib

    settings = replace(settings_of(tmp_path))
    pq.write_table(users(3), tmp_path / "users.parquet")
    name = "batch-" + hashlib.sha256(str(tmp_path / "out").encode()).hexdigest()[:16]
    with (
        locks_of(settings.home, None)(name),
        pytest.raises(BatchRefused, match="Another run writes"),
    ):
        score_lake(settings, str(tmp_path / "out"), 1, users=str(tmp_path / "users.parquet"))
    assert open_lake(settings).version("events") == -1
