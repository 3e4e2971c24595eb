"""The task `sentiment` on 23,486 clothing reviews: rating and recommendation, in 10 steps, a tenth labelled.

A fifth of the reviews, by a hash, are asked for at the end and never learnt; the others come in the file's order in ten
steps. The main head learns the rating (1 to 5), the second whether the buyer recommends the item; macro-F1 is the mean
of both heads'. The first step trains from the base, as does each by whose end the task has outgrown its last retrain
(steps 2, 4 and 9, of twice as many reviews and more), on all labels and reviews so far; the others are updates by the
task's own schedule with replayed labelled reviews. Nothing of a model outlives the retrain after it: what precedes the
last is run only where that model asks for labels, read by the last one's encoder. This is taught by what the reviews
open with that the retrain reads: no label is read, so all seeds and lineages have the same. All labelled is compared
with a tenth labelled by a hash, in every step, and this with a network for each head (what the heads' sharing gives,
and its cost in CPU-seconds); on the first seed alone with self-training on the others, and with a tenth that the model
asks for, as an operator labels what `labels_wanted` names. A tenth of the training reviews tunes and teaches the
encoder nothing; of those a tenth by a hash is labelled, or all. The surge alert is measured on simulated hours
(surge_simulation.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluation import interval
from pipeline.examples import _draw
from pipeline.tasks.contract import Examples, together
from pipeline.tasks.sentiment import Sentiment
from pipeline.tasks.text_batches import vectors_of
from pipeline.tasks.text_embedding import Embedding
from pipeline.tasks.text_learner import TextLearner
from pipeline.tasks.text_scores import macro_f1
from pipeline.tasks.text_wanted import most_worth_labelling
from pipeline.training import fine_tune
from tests.benchmarks.surge_simulation import measure_surges
from tests.benchmarks.text_data import data_set, embedded, examples_of, text_lake, tunes

PROTOCOL = " ".join((__doc__ or "").split("\n\n", 1)[-1].split())
SEEDS = (0, 1, 2)
STEPS = 10
ASKED, LABELLED = 0.2, 0.1
HEADS = tuple(Sentiment.kinds)


def measure(seeds: tuple[int, ...] = SEEDS) -> dict[str, float]:
    """Macro-F1 of each lineage in percent, the gap in points, and the surge alert's figures; means over the seeds."""
    reviews = examples()
    asked = np.array([_draw(f"asked|{one}") < ASKED for one in reviews.table["example_id"].to_pylist()])
    embedding, teaching = timed(lambda: _taught(reviews.keep(~asked)))
    reviews = embedded(reviews, embedding)
    read = reviews.keep(~asked), reviews.keep(asked)
    runs: list[dict[str, float]] = []
    for seed in seeds:
        runs.append(_run(read, seed))
        print(seed, runs[-1], flush=True)
    figures = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    gaps = np.array([run["f1_all_labels"] - run["f1_tenth"] for run in runs])
    figures["f1_gap"], figures["f1_gap_low"], figures["f1_gap_high"] = interval(gaps, list(range(len(gaps))), 0)
    extra = {
        "f1_tenth_first_seed": runs[0]["f1_tenth"],
        "f1_tenth_with_self_training": _lineage(*read, seeds[0], self_training=True),
        "f1_tenth_asked_for": _lineage(*read, seeds[0], asks=True),
        "teaching_cpu_s": teaching,
    }
    return {**figures, **extra, **measure_surges()}


def _run(read: tuple[Examples, Examples], seed: int) -> dict[str, float]:
    """All labelled, a tenth, and a tenth with a network for each head, by one encoder."""
    tenth, shared = timed(lambda: _lineage(*read, seed))
    each = [timed(lambda head=head: _lineage(*read, seed, heads=(head,))) for head in HEADS]
    return {
        "f1_all_labels": _lineage(*read, seed, share=1.0), "f1_tenth": tenth,
        "f1_tenth_heads_apart": float(np.mean([f1 for f1, _ in each])),
        "heads_apart_cost": sum(cost for _, cost in each) / shared,
    }


def examples() -> Examples:
    """The reviews that have words: title and text, rating and recommendation."""
    frame = data_set("clothing_reviews.parquet")
    texts = (frame["Title"].fillna("") + ". " + frame["Review Text"].fillna("")).str.strip(". ")
    there = (texts != "").to_numpy()
    frame, texts = frame[there], texts[there]
    recommended = next(name for name in frame.columns if name.lower().startswith("recommended"))
    return examples_of(
        texts.tolist(), sentiment=frame["Rating"].astype(str).tolist(),
        topic=["yes" if one else "no" for one in frame[recommended].astype(int)],
    )


def _step_of(learnt: Examples) -> np.ndarray:
    """[n] int: the step, from 0 on, in which each review comes."""
    return np.arange(len(learnt)) * STEPS // len(learnt)


def _retrains(task: Sentiment, learnt: Examples) -> list[int]:
    """The steps that train from the base, as the watch asks for them."""
    come = np.cumsum(np.bincount(_step_of(learnt)))
    found = [0]
    for step in range(1, STEPS):
        if task.outgrown(int(come[found[-1]]), int(come[step])):
            found.append(step)
    return found


def _taught(learnt: Examples) -> Embedding:
    """How messages are read by an encoder that those up to the last retrain have taught, but for those that tune."""
    task = Sentiment(text_lake(), "minilm")
    here = (_step_of(learnt) <= _retrains(task, learnt)[-1]) & ~tunes(learnt)
    steps = task.base_schedule.methods.opening_steps
    texts = learnt.keep(here).table["text"].to_pylist()
    return task.embedding.taught(texts, most_steps=steps, seed=0, report=lambda line: print(line, flush=True))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and its CPU-seconds."""
    began = time.process_time()
    return work(), time.process_time() - began


def _lineage(
    learnt: Examples, questions: Examples, seed: int, *, share: float = LABELLED, self_training: bool = False,
    asks: bool = False, heads: tuple[str, ...] = HEADS,
) -> float:
    """Macro-F1 of the heads in percent, their mean, after the last step of a network that has them."""
    task = Sentiment(text_lake(), "minilm")

    def base() -> TextLearner:
        return TextLearner(
            seed=seed, kinds={head: task.kinds[head] for head in heads}, embedding=task.embedding,
            text_dimension=learnt.table["text_vector"].type.list_size, self_training=self_training,
            balance=task.balance,
        )

    learner = base()
    ids = learnt.table["example_id"].to_pylist()
    labelled = np.array([_draw(f"label|{seed}|{one}") < share for one in ids])
    tuning, step_of, retrains = tunes(learnt), _step_of(learnt), _retrains(task, learnt)
    generator = np.random.default_rng(seed)
    for step in range(0 if asks else retrains[-1], STEPS):
        here = (step_of == step) & ~tuning
        if asks and step and share < 1.0:
            _ask(learner, learnt, here, labelled, int(share * here.sum()), np.random.default_rng([seed, step]))
        before = learnt.keep((step_of < step) & ~tuning & labelled)
        if step in retrains:
            learner, schedule = base(), task.base_schedule
            here |= (step_of < step) & ~tuning
            new, replayed = learnt.keep(here & labelled), before.take(np.zeros(0, np.int64))
        else:
            schedule, new = task.update_schedule, learnt.keep(here & labelled)
            wanted = schedule.replayed_beside(len(new))
            replayed = before.take(np.sort(generator.permutation(len(before))[:wanted]))
        learner.grow(_context(learnt.keep(here & ~labelled)), new)
        tune = learnt.keep((step_of <= step) & tuning & labelled)
        train = together(new.marked(replayed=False), replayed.marked(replayed=True))
        learner = fine_tune(learner, task.restore, train, tune, schedule, seed + step).learner  # type: ignore[assignment]
    return _f1(learner, questions)


def _ask(
    learner: TextLearner, learnt: Examples, here: np.ndarray, labelled: np.ndarray, count: int,
    generator: np.random.Generator,
) -> None:
    """Marks those of a step as `labelled` ([n] bool) that the model asks for, before it learns any of them."""
    rows = np.flatnonzero(here)
    came = learnt.take(rows)
    vectors = vectors_of(came.table)
    chances = learner.compact().probabilities(vectors, came.table["text"].to_pylist())["sentiment"]
    labelled[rows] = False
    labelled[rows[most_worth_labelling(chances, vectors, count, generator)]] = True


def _context(unlabelled: Examples) -> pa.Table:
    """Reviews that nobody has labelled, as a task's context."""
    table, count = unlabelled.table, len(unlabelled)
    nothing = pa.nulls(count, pa.string())
    return pa.table({
        "message_id": table["example_id"], "hour": table["hour"], "text": table["text"], "answer": nothing,
        "gone": pa.array(np.zeros(count, bool)), "text_vector": table["text_vector"], "sentiment": nothing,
        "topic": nothing,
    })


def _f1(learner: TextLearner, questions: Examples) -> float:
    compact = learner.compact()
    vectors = np.stack(questions.table["text_vector"].to_pylist()).astype(np.float32)
    chances = compact.probabilities(vectors, questions.table["text"].to_pylist())
    scores = []
    for head, names in compact.classes.items():
        said = np.array(names)[compact.told(head, chances[head])[0]]
        scores.append(macro_f1(said, np.array(questions.table[head].to_pylist())))
    return 100.0 * float(np.mean(scores))
