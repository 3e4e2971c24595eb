"""The text classifier learns classes as they come, keeps the old ones, and goes on bit for bit after a checkpoint.

A tiny world: a text's vector points along the axis of its class, with noise; its words say nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.text_classifier import ClassifierSizes, ClassifierTrainer
from pipeline.checkpoint import Checkpoint, Ledger, load, save
from pipeline.tasks.contract import Calibrated, Examples, Methods, Reader, Schedule, together
from pipeline.tasks.text_answers import Answers
from pipeline.tasks.text_embedding import Embedding
from pipeline.tasks.text_learner import TextLearner
from pipeline.tasks.text_scores import macro_f1
from pipeline.tasks.text_wanted import most_worth_labelling
from pipeline.training import fine_tune

T0 = datetime(2026, 1, 5, tzinfo=UTC)
DIMENSION, NAMES = 12, ("a", "b", "c", "d", "e")
SIZES = ClassifierSizes(DIMENSION, ("intent",), buckets=32, hidden=8)
NO_ENCODER = Embedding(lambda: None, lambda *_: None)  # type: ignore[arg-type, return-value]  # tables bring vectors
SCHEDULE = Schedule(learning_rate=3e-3, warmup_steps=1, epochs=3, patience_epochs=3, batch_size=32)


def vectors(classes: np.ndarray, seed: int, noise: float = 0.35) -> np.ndarray:
    rows = np.eye(DIMENSION, dtype=np.float32)[classes]
    rows = rows + np.random.default_rng(seed).normal(0, noise, rows.shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def column(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIMENSION)


def examples(classes: list[int], seed: int = 0, labelled: bool = True) -> Examples:
    ids, count = [f"x{seed}-{place}" for place in range(len(classes))], len(classes)
    hour = pa.array([T0] * count, pa.timestamp("us", "UTC"))
    return Examples(pa.table({
        "example_id": ids, "unit": ids, "time": hour, "hour": hour, "landed_window": hour,
        "rows": np.ones(count, np.int64), "text": ["hello"] * count,
        "text_vector": column(vectors(np.array(classes, int), seed)),
        "intent": pa.array([NAMES[one] if labelled else None for one in classes], pa.string()),
    }))


def context(messages: Examples, answers: list[str | None] | None = None, gone: bool = False) -> pa.Table:
    table, count = messages.table, len(messages)
    return pa.table({
        "message_id": table["example_id"], "hour": table["hour"], "text": table["text"],
        "answer": pa.array(answers or [None] * count, pa.string()), "gone": pa.array([gone] * count),
        "text_vector": table["text_vector"], "intent": table["intent"],
    })


def learner(self_training: bool = False, balance: float = 0.0) -> TextLearner:
    return TextLearner(
        seed=3, kinds={"intent": "label"}, text_dimension=DIMENSION, embedding=NO_ENCODER,
        self_training=self_training, balance=balance, sizes=SIZES,
    )


def restored(state: object) -> TextLearner:
    return TextLearner.restore(state, NO_ENCODER)  # type: ignore[arg-type]


def accuracy(of: TextLearner, asked: Examples) -> float:
    return float(of.score(asked).frame["accuracy"].mean())


def taught(one: TextLearner, new: Examples, replayed: Examples, tune: Examples, **methods: float) -> TextLearner:
    one.grow(context(new), new)
    train = together(new.marked(replayed=False), replayed.marked(replayed=True))
    schedule = Schedule(**{**vars(SCHEDULE), "methods": Methods(**methods)})  # type: ignore[arg-type]
    return fine_tune(one, restored, train, tune, schedule, seed=1).learner  # type: ignore[return-value]


def test_a_new_class_is_told_before_any_step_and_the_old_ones_as_before() -> None:
    one, old = learner(), examples([0, 1] * 30)
    one.grow(context(old), old)
    before = one.compact().logits(vectors(np.array([0, 1]), 9), ["hello"] * 2)["intent"]
    new = examples([2] * 10, seed=1)
    assert one.grow(context(new), new)["classes_new"] == 1
    after = one.compact().logits(vectors(np.array([0, 1]), 9), ["hello"] * 2)["intent"]
    np.testing.assert_array_equal(after[:, :2], before)
    assert accuracy(one, examples([0, 1, 2] * 30, seed=5)) > 0.8


def test_classes_beyond_the_room_keep_weights_and_slots() -> None:
    trainer = ClassifierTrainer(SIZES, {"intent": 32}, seed=0)
    rows = np.random.default_rng(0).normal(size=(31, DIMENSION)).astype(np.float32)
    trainer.add_classes("intent", 0, rows, np.zeros((31, 32), np.float32))
    batch = {
        "vectors": rows, "ngrams": np.zeros((31, 32), np.float32), "seed": np.array([1, 2], np.int32),
        "replayed": np.zeros(31, np.float32), "intent_target": np.eye(31, 32, dtype=np.float32),
        "intent_weight": np.ones(31, np.float32),
    }
    trainer.train_step(batch, 1e-3)
    before = trainer.arrays()
    trainer.add_classes("intent", 31, rows[:2], np.zeros((2, 32), np.float32))
    after = trainer.arrays()
    assert trainer.network.capacity == {"intent": 64}
    for name in before:
        kept = after[name] if after[name].shape == before[name].shape else after[name][..., : before[name].shape[-1]]
        known = slice(0, 31) if name.startswith("intent") else slice(None)
        np.testing.assert_array_equal(kept[..., known], before[name][..., known]) if kept.ndim else None


def test_the_network_and_the_consumers_arrays_say_the_same() -> None:
    one, some = learner(), examples([0, 1, 2] * 20)
    one = taught(one, some, some.keep(np.zeros(len(some), bool)), examples([0, 1, 2] * 5, seed=2))
    asked = vectors(np.array([0, 1, 2]), 7)
    ngrams = one._texts(some).ngrams.dense(np.array([0, 0, 0]))
    logits = one._trainer.network(asked, ngrams)["intent"].numpy()
    np.testing.assert_allclose(one.compact().logits(asked, ["hello"] * 3)["intent"], logits[:, :3], atol=1e-4)
    assert (logits[:, 3:] < -1e8).all()


def test_replayed_examples_and_distillation_keep_old_classes() -> None:
    old, new, tune = examples([0, 1, 2] * 30), examples([3, 4] * 40, seed=1), examples([0, 1, 2, 3, 4] * 6, seed=2)
    one = taught(learner(), old, old.keep(np.zeros(len(old), bool)), examples([0, 1, 2] * 5, seed=3))
    one = taught(one, new, old.take(np.arange(40)), tune, distillation=1.0)
    assert accuracy(one, examples([0, 1, 2] * 40, seed=8)) > 0.85
    assert accuracy(one, examples([3, 4] * 40, seed=9)) > 0.85


def test_training_goes_on_bit_for_bit_after_a_checkpoint(tmp_path: Path) -> None:
    old, new, tune = examples([0, 1] * 20), examples([2] * 20, seed=1), examples([0, 1, 2] * 4, seed=2)
    one = taught(learner(), old, old.keep(np.zeros(len(old), bool)), examples([0, 1] * 4, seed=3))
    ledger = Ledger("base", None, {"messages": 1}, {"messages": -1}, T0, T0, 24)
    save(Checkpoint(one.state(), ledger), tmp_path / "checkpoint")
    other = restored(load(tmp_path / "checkpoint").state)
    ends = [taught(which, new, old, tune).state() for which in (one, other)]
    assert ends[0].meta == ends[1].meta
    for name, array in ends[0].arrays.items():
        np.testing.assert_array_equal(array, ends[1].arrays[name], err_msg=name)


def test_what_the_model_is_sure_of_teaches_where_self_training_is_on() -> None:
    few, many = examples([0, 1] * 4), examples([0, 1] * 60, seed=1, labelled=False)
    counts = {}
    for self_training in (False, True):
        one = learner(self_training)
        one.grow(pa.concat_tables([context(few), context(many)]), few)
        batch = next(iter(one.batches(few.marked(replayed=False), 8, np.random.default_rng(0))))
        counts[self_training] = len(batch["vectors"])
        if self_training:
            assert (batch["intent_weight"][8:] == np.float32(0.5)).all()
            sure = batch["intent_target"][8:, :2].argmax(axis=1) == batch["vectors"][8:, :2].argmax(axis=1)
            assert sure.mean() > 0.8
    assert counts == {False: 8, True: 16}


def test_a_class_that_the_model_does_not_know_is_told_wrongly_and_named_as_new() -> None:
    one, old = learner(), examples([0, 1] * 20)
    one.grow(context(old), old)
    frame = one.score(examples([0, 1, 2, 2], seed=4)).frame
    assert frame["slice:new_class"].tolist() == [False, False, True, True]
    assert frame["accuracy"].tolist()[2:] == [0.0, 0.0]
    assert (frame["calibration"] <= 0.5).tolist()[2:] == [True, True]


def test_rare_classes_are_favoured_by_what_was_learnt_and_the_likeliest_stays_what_accuracy_counts() -> None:
    plain, fair = learner(), learner(balance=1.0)
    for one in (plain, fair):
        for some in (examples([0] * 60 + [1] * 9), examples([0] * 30, seed=1)):
            one.grow(context(some), some)
    assert plain.compact().handicaps == {}
    shares = np.log(np.array([91, 10]) / 101)
    for one in (fair, restored(fair.state())):
        np.testing.assert_allclose(one.compact().handicaps["intent"], shares, rtol=1e-6)
    vague = examples([0, 1] * 200, seed=7)
    scores = {one: one.score(vague).frame for one in (plain, fair)}
    assert (scores[plain]["accuracy"] == scores[fair]["accuracy"]).all()
    rare = np.arange(len(vague)) % 2 == 1
    assert scores[fair]["macro_recall"][rare].mean() > scores[plain]["macro_recall"][rare].mean()
    assert scores[fair]["macro_recall"][~rare].mean() < scores[plain]["macro_recall"][~rare].mean()


def test_it_reads_what_came_and_asks_for_labels_of_what_has_none() -> None:
    one, old = learner(), examples([0, 1] * 20)
    assert isinstance(one, Reader)
    assert isinstance(one, Calibrated)
    one.grow(context(old), old)
    unlabelled = examples([0, 1] * 20, seed=2, labelled=False)
    came = pa.concat_tables([context(examples([0] * 3, seed=1)), context(unlabelled)])
    wanted = one.read(came)["labels_wanted"]
    assert len(wanted) == 20
    assert all(name.startswith("x2-") for name in wanted["message_id"].to_pylist())
    assert wanted["rank"].to_pylist() == list(range(1, 21))
    assert set(wanted["kind"].to_pylist()) == {"label"}
    assert one.read(came.set_column(4, "gone", pa.array([True] * len(came)))) == {}


@pytest.mark.parametrize("name", ["ewc", "history_mask", "copy_pace"])
def test_methods_that_it_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no {name}; received"):
        learner().use(Methods(**{name: 0.5}), examples([0]))  # type: ignore[arg-type]


def test_answers_follow_their_messages() -> None:
    answers, some = Answers(DIMENSION), examples([0, 1, 2])
    assert answers.update(context(some, ["yes", None, "no"])) == 2
    changed = examples([0, 1, 2])
    answers.update(context(changed.take(np.array([0])), ["maybe"]))
    answers.update(context(changed.take(np.array([2])), ["no"], gone=True))
    texts, rows, of = answers.compact()
    assert (texts, of.tolist(), rows.shape) == (("maybe",), [0], (1, DIMENSION))
    again = Answers.restore(answers.arrays(), answers.notes())
    assert again.compact()[0] == ("maybe",)


def test_the_least_certain_comes_first_and_copies_are_asked_once() -> None:
    rows = np.eye(4)[[0, 0, 0, 1, 2]]
    chances = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.55, 0.45]])
    chosen = most_worth_labelling(chances, rows, 5, np.random.default_rng(0))
    assert chosen[0] == 0
    assert sorted(chosen.tolist()) == [0, 3, 4]
    assert not len(most_worth_labelling(chances[:0], rows[:0], 5, np.random.default_rng(0)))


def test_macro_f1_counts_each_class_alike() -> None:
    said, right = np.array(list("aaab")), np.array(list("aabb"))
    assert macro_f1(said, right) == pytest.approx((0.8 + 2 / 3) / 2)
