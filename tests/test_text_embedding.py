"""A learner of messages reads by its own encoder, which a retrain teaches, updates keep, and retention forgets last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from models import text_openings
from models.text_encoder import load_saved
from pipeline.checkpoint import load_state, save_state
from pipeline.lake import Lake, open_lake
from pipeline.locking import locks_of
from pipeline.tasks.contract import AdaptsEncoder, Examples, KeepsVectors, Methods, State
from pipeline.tasks.sentiment import Sentiment
from pipeline.tasks.support import Support
from pipeline.tasks.text_learner import TextLearner
from pipeline.tasks.text_task import TextTask
from pipeline.texts import TextVectors, prune
from pipeline.training import fine_tune
from tests.small_shop import settings_of

T0 = datetime(2026, 1, 5, tzinfo=UTC)
MOODS = ("negative", "positive")
TEACHES = Methods(opening_steps=6)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(text_openings, "LEAST_MESSAGES", 16)
    monkeypatch.setattr(text_openings, "LEAST_TOKENS", 5)
    return open_lake(settings_of(tmp_path))


def messages(first: int, count: int, *, labelled: bool = True) -> pa.Table:
    """Of either mood in turn, as a task's context; `first` numbers them."""
    numbers = list(range(first, first + count))
    texts = [
        f"{('Awful refund.', 'Thank you!')[one % 2]} {('it fell apart', 'it is lovely')[one % 2]}, {one}"
        for one in numbers
    ]
    nothing = pa.nulls(count, pa.string())
    return pa.table({
        "message_id": [f"m{one}" for one in numbers], "hour": pa.array([T0] * count, pa.timestamp("us", "UTC")),
        "text": texts, "answer": nothing, "gone": pa.array([False] * count), "topic": nothing,
        "sentiment": pa.array([MOODS[one % 2] for one in numbers]) if labelled else nothing,
    })


def examples(context: pa.Table) -> Examples:
    ids, count = context["message_id"], len(context)
    return Examples(pa.table({
        "example_id": ids, "unit": ids, "time": context["hour"], "hour": context["hour"],
        "rows": np.ones(count, np.int64), "landed_window": context["hour"], "text": context["text"],
        "sentiment": context["sentiment"], "topic": context["topic"],
    }))


def retrained(task: TextTask, methods: Methods = TEACHES) -> TextLearner:
    learner, some = task.learner(7), messages(0, 40)
    learner.adapt(pa.concat_tables([some, messages(100, 8, labelled=False)]), examples(some), methods)
    learner.grow(some, examples(some))
    return learner


def kept(learner: TextLearner, folder: Path) -> State:
    save_state(learner.state(), folder)
    return load_state(folder)


def names_in(lake: Lake) -> dict[str, int]:
    counts = pc.value_counts(lake.arrow("text_vectors")["encoder"].cast(pa.string())).to_pylist()
    return {one["values"]: one["counts"] for one in counts}


@pytest.mark.slow
def test_a_checkpoint_an_update_and_a_package_keep_the_encoder_that_a_retrain_taught(
    lake: Lake, tmp_path: Path
) -> None:
    task = Sentiment(lake, "tiny")
    learner = retrained(task)
    assert isinstance(learner, AdaptsEncoder) and isinstance(learner, KeepsVectors)
    name, new = learner.vectors_name, messages(40, 20)
    other = task.restore(kept(learner, tmp_path / "checkpoint"))
    other.grow(new, examples(new))
    train, once = examples(new).marked(replayed=False), replace(task.update_schedule, epochs=2)
    after = fine_tune(other, task.restore, train, examples(messages(60, 8)), once, seed=1).learner
    assert isinstance(after, TextLearner)
    assert name.startswith("taught:") and after.vectors_name == name
    after.package(tmp_path / "package")
    served = load_saved(tmp_path / "package" / "text_encoder")
    texts = messages(0, 3)["text"].to_pylist()
    np.testing.assert_array_equal(served.embed(texts), learner._embedding.encoder.embed(texts))
    assert names_in(lake) == {name: 68}  # each once, and nothing by the encoder that was not taught


def test_a_lineage_of_before_goes_on_with_the_whole_encoder(lake: Lake) -> None:
    whole, task = Support(lake, "tiny")._encoder, Sentiment(lake, "tiny")
    state = retrained(task, Methods()).state()
    assert not [name for name in state.arrays if name.startswith("encoder/")]
    assert task.restore(state)._embedding.encoder.identity == task._encoder.cut(4 / 6).identity != whole.identity
    before = State(state.arrays, {key: value for key, value in state.meta.items() if key != "encoder_share"})
    old = task.restore(before)
    assert old._embedding.encoder.identity == whole.identity and old.vectors_name == ""
    assert old.state().meta["encoder_share"] == 1.0  # and so its children
    read = old._embedding.of(messages(0, 4))["text_vector"].combine_chunks().flatten().to_numpy().reshape(4, -1)
    np.testing.assert_array_equal(read, whole.embed(messages(0, 4)["text"].to_pylist()))


def test_what_messages_taught_one_encoder_is_not_put_on_another(lake: Lake) -> None:
    task = Sentiment(lake, "tiny")
    state = retrained(task).state()
    assert state.meta["encoder_changes_of"] == task._encoder.cut(4 / 6).identity
    other = task.restore(State(state.arrays, {**state.meta, "encoder_changes_of": "another"}))
    with pytest.raises(ValueError, match=r"must be the one that was taught \(another\).*EVERGREEN_ENCODER"):
        other.grow(messages(40, 2), examples(messages(40, 2)))


def test_support_reads_by_the_whole_encoder_that_nobody_taught(lake: Lake) -> None:
    task = Support(lake, "tiny")
    assert task.base_schedule.methods.opening_steps == task.update_schedule.methods.opening_steps == 0
    assert task.embedding.encoder is task._encoder


def test_a_retrain_is_due_when_twice_as_many_messages_have_come_as_taught_the_encoder(lake: Lake) -> None:
    task = Sentiment(lake, "tiny")
    assert [task.outgrown(1000, now) for now in (1999, 2000)] == [False, True]
    assert [task.outgrown(5, now) for now in (text_openings.LEAST_MESSAGES - 1, text_openings.LEAST_MESSAGES)] == [
        False, True,
    ]
    assert not Support(lake, "tiny").outgrown(1000, 9000)


def test_what_is_labelled_and_left_to_the_judges_teaches_no_encoder(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def remembered(encoder: Any, texts: Sequence[str], **given: Any) -> dict[str, np.ndarray]:
        seen.extend(texts)
        return {}

    monkeypatch.setattr(text_openings, "taught_changes", remembered)
    taught, judged, untold = messages(0, 4), messages(4, 4), messages(8, 4, labelled=False)
    gone = messages(12, 1, labelled=False)
    gone = gone.set_column(gone.schema.get_field_index("gone"), "gone", pa.array([True]))
    learner = Sentiment(lake, "tiny").learner(7)
    learner.adapt(pa.concat_tables([taught, judged, untold, gone]), examples(taught), TEACHES)
    assert seen == [*taught["text"].to_pylist(), *untold["text"].to_pylist()]
    assert learner.vectors_name == ""


@pytest.mark.slow
def test_vectors_of_taught_encoders_leave_when_no_model_in_use_has_them(lake: Lake) -> None:
    task = Sentiment(lake, "tiny")
    learner, texts = retrained(task), messages(0, 5)["text"].to_pylist()
    plain, own = TextVectors(lake, task._encoder), learner._embedding.encoder
    wanted = plain.of(texts)
    TextVectors(lake, own, "taught:earlier").of(texts)
    before = {learner.vectors_name: 40, "taught:earlier": 5, task._encoder.identity: 5}
    assert names_in(lake) == before
    assert prune(lake, {learner.vectors_name}, dry_run=True) == 5 and names_in(lake) == before
    assert prune(lake, {learner.vectors_name}) == 5
    assert names_in(lake) == {name: count for name, count in before.items() if name != "taught:earlier"}
    version = lake.version("text_vectors")
    assert prune(lake, {learner.vectors_name}) == 0 and lake.version("text_vectors") == version
    np.testing.assert_array_equal(TextVectors(lake, task._encoder).of(texts), wanted)  # read from what is left
    assert lake.version("text_vectors") == version


def test_a_lake_without_vectors_has_none_to_take_out(tmp_path: Path) -> None:
    assert prune(Lake(str(tmp_path / "lake"), locks_of(tmp_path, None)), set()) == 0
