"""The text classifier as a learner: it takes in new classes and answers, trains, reads, scores, and packs itself.

The network is models/text_classifier.py; what lies between it and the messages is here: classes that grow, labels and
pseudo-labels (text_batches.py), answers (text_answers.py), what a person should label (text_wanted.py), confidences.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

import models
from models import text_service
from models.compact_text import CompactTextClassifier, Threshold, fitted_temperature, fitted_threshold, softmax
from models.text_classifier import CAPACITY_STEP, ClassifierSizes, ClassifierTrainer, StepMethods
from pipeline.tasks.contract import Examples, Methods, Package, Scores, State
from pipeline.tasks.text_answers import Answers
from pipeline.tasks.text_batches import Batch, Pseudo, Texts, batches, vectors_of
from pipeline.tasks.text_embedding import Embedding
from pipeline.tasks.text_wanted import WANTED, most_worth_labelling

# A shop answers by itself where nineteen of twenty answers are right; that this is so on held-out messages is shown
# with an error rate of one in ten, because the threshold is fitted anew with every update.
PRECISION, THRESHOLD_ERROR_RATE = 0.95, 0.1
SURE = 0.8  # what the model says with this confidence is learnt as if a person had said so; see task_sentiment
PSEUDO_WEIGHT = 0.5  # beside a person's word
MOST_UNLABELLED = 20_000  # newest: all are read before each pass, 2 s
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "tensorflow", "keras", "keras-hub", "tokenizers")


class TextLearner:
    """Fulfils `Learner`, `AdaptsEncoder`, `KeepsVectors`, `Calibrated` and `Reader` of `pipeline.tasks.contract`."""

    def __init__(
        self, *, seed: int, kinds: Mapping[str, str], text_dimension: int, embedding: Embedding,
        self_training: bool, balance: float = 0.0, sizes: ClassifierSizes | None = None,
        capacity: Mapping[str, int] | None = None,
    ) -> None:
        """An untrained classifier that knows no class.

        Args:
            seed: of every random weight.
            kinds: head -> the column of messages that a person fills with it; the main head first.
            text_dimension: length of a text vector.
            embedding: gives the vectors of texts; not asked where a table brings its own.
            self_training: whether what nobody has labelled teaches.
            balance: how far rare classes are favoured in what is told: 0: not, 1: as if all were as frequent.
            sizes, capacity: of the network; None: the default ones.
        """
        self._seed, self._kinds, self._embedding, self._self_training = seed, dict(kinds), embedding, self_training
        self._balance = balance
        self._sizes = sizes or ClassifierSizes(text_dimension, tuple(kinds))
        self._classes: dict[str, dict[str, int]] = {head: {} for head in kinds}
        self._counts: dict[str, dict[str, int]] = {head: {} for head in kinds}  # examples learnt, by class
        self._trainer = ClassifierTrainer(self._sizes, capacity or dict.fromkeys(kinds, CAPACITY_STEP), seed)
        self._temperature = dict.fromkeys(kinds, 1.0)
        self._threshold = Threshold(precision=PRECISION)
        self._answers = Answers(text_dimension)
        self._methods = Methods()
        self._learnt = 0  # examples, in all
        self._unlabelled: pa.Table | None = None  # what this job's context brought; a restored learner has none
        self._read_texts: list[tuple[Any, int, Texts]] = []

    # --- growth ---

    def adapt(
        self, context: pa.Table, examples: Examples, methods: Methods,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Teaches the text encoder by messages, where the methods ask for it: those taught, and those without a label.

        What is labelled and not among the examples is left to the judges, its words too.
        """
        if not methods.opening_steps:
            return
        untold = [pc.is_null(context[head]) for head in self._kinds]
        messages = context.filter(pc.and_(reduce(pc.and_, untold), pc.invert(context["gone"])))
        texts = [*examples.table["text"].to_pylist(), *messages["text"].to_pylist()]
        self._embedding = self._embedding.taught(
            [text for text in texts if text], most_steps=methods.opening_steps, seed=self._seed, report=report
        )

    @property
    def vectors_name(self) -> str:
        """The name of the vectors of its own encoder in the lake; empty: it has the task's."""
        return self._embedding.vectors_name

    def grow(self, context: pa.Table, examples: Examples) -> Mapping[str, int]:
        """Takes in answers, what nobody has labelled, and the classes that the examples bring.

        Args:
            context: `message_id`, `text`, `answer`, `gone`, and a column per head.
            examples: `text` and a column per head.
        """
        context = self._embedding.of(context)
        answers = self._answers.update(context)
        there = context.filter(pc.invert(context["gone"])) if len(context) else context
        if self._self_training and len(there):
            missing = np.zeros(len(there), bool)
            for head in self._kinds:
                missing |= pc.is_null(there[head]).to_numpy()
            self._unlabelled = there.filter(pa.array(missing)).slice(max(0, int(missing.sum()) - MOST_UNLABELLED))
        known = sum(map(len, self._classes.values()))
        for head in self._kinds:
            self._add_classes(head, examples)
            for said in pc.value_counts(examples.table[head].drop_null()).to_pylist():
                self._counts[head][said["values"]] = self._counts[head].get(said["values"], 0) + said["counts"]
        self._learnt += len(examples)
        classes = sum(map(len, self._classes.values()))
        return {
            "classes": classes, "classes_new": classes - known, "answers": len(self._answers), "answers_new": answers,
            "unlabelled": 0 if self._unlabelled is None else len(self._unlabelled),
        }

    def _add_classes(self, head: str, examples: Examples) -> None:
        classes, names = self._classes[head], examples.table[head].to_pylist()
        new = sorted({name for name in names if name is not None} - set(classes))
        if not new:
            return
        places = {name: place for place, name in enumerate(new)}
        of = np.array([places.get(name, -1) for name in names], np.int64)
        rows = np.flatnonzero(of >= 0)
        texts = Texts.of(self._embedding.of(examples.table.take(pa.array(rows))), {}, self._sizes.buckets)
        means = [
            np.stack([array[of[rows] == place].mean(axis=0) for place in range(len(new))])
            for array in (texts.vectors, texts.ngrams.dense(np.arange(len(rows))))
        ]
        self._trainer.add_classes(head, len(classes), *means)
        classes.update({name: len(classes) + place for place, name in enumerate(new)})

    # --- training ---

    def use(self, methods: Methods, train: Examples) -> None:
        """From now on trains by these methods.

        Raises:
            ValueError: methods that this learner does not have.
        """
        others = (
            "ewc", "adversarial_radius", "ensemble", "text_crop", "text_mask", "text_synonym", "title_queries",
            "lora_rank", "history_mask", "history_crop", "copy_pace",
        )
        lacking = [name for name in others if getattr(methods, name) != getattr(Methods, name)]
        if lacking:
            raise ValueError(f"A text classifier has no {', '.join(lacking)}; received {methods}. Leave them out.")
        self._methods = methods
        self._trainer.use(StepMethods(
            distillation=methods.distillation, l2_pull=methods.l2_pull, optimizer=methods.optimizer,
            weight_decay=methods.weight_decay, dropout=methods.dropout,
        ))

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Shuffled batches; where self-training is on, half of each is what the model is sure of as the pass begins."""
        yield from batches(
            self._texts(examples), examples.replayed, self._trainer.network.capacity, batch_size, generator,
            self._pseudo(),
        )

    def train_step(self, batch: Batch, learning_rate: float) -> float:
        """One step of the optimizer; the batch's mean loss before it."""
        return self._trainer.train_step(batch, learning_rate)

    def loss(self, examples: Examples, batch_size: int) -> float:
        """The mean loss over the examples with a class that is known; 0 for none."""
        losses = self.losses(examples, batch_size, learnt=False)
        return float(losses.mean()) if len(losses) else 0.0

    def losses(self, examples: Examples, batch_size: int, *, learnt: bool) -> np.ndarray:
        """[n] float64: each example's cross-entropy, summed over what is labelled; an unknown class counts nothing."""
        texts, compact = self._texts(examples), self.compact()
        logits = compact.logits_of(texts.vectors, texts.ngrams)
        total = np.zeros(len(examples))
        for head, targets in texts.targets.items():
            rows = np.flatnonzero(targets >= 0)
            if len(rows):
                chances = softmax(logits[head][rows])[np.arange(len(rows)), targets[rows]]
                total[rows] -= np.log(np.maximum(chances, 1e-12))
        return total

    def weights(self) -> Collection[str]:
        """The network's weights."""
        return self._trainer.weight_names()

    def calibrate(self, held_out: Examples) -> None:
        """Fits each head's temperature, and the main head's threshold, on held-out examples."""
        texts, compact = self._texts(held_out), self.compact()
        logits = compact.logits_of(texts.vectors, texts.ngrams)
        for head, targets in texts.targets.items():
            rows = targets >= 0
            self._temperature[head] = fitted_temperature(logits[head][rows], targets[rows])
        main = next(iter(self._kinds))
        judged = texts.targets[main] != -1
        chances = softmax(logits[main][judged] / self._temperature[main])
        if chances.shape[1]:
            told, sure = compact.told(main, chances)
            right = told == texts.targets[main][judged]
            self._threshold = fitted_threshold(sure, right, PRECISION, THRESHOLD_ERROR_RATE)

    def _pseudo(self) -> Pseudo | None:
        """What the model, as it is, is sure of."""
        if self._unlabelled is None or not len(self._unlabelled):
            return None
        texts = self._texts(Examples(self._unlabelled))
        logits = self.compact().logits_of(texts.vectors, texts.ngrams)
        targets, weights = {}, {}
        sure = np.zeros(len(texts), bool)
        for head, said in texts.targets.items():
            chances = softmax(logits[head] / self._temperature[head])
            if chances.shape[1] < 2:
                chances = np.zeros_like(chances)
            best = chances.max(axis=1, initial=0.0)
            weights[head] = (PSEUDO_WEIGHT * ((best >= SURE) & (said == -1))).astype(np.float32)
            targets[head] = (chances == best[:, None]).astype(np.float32)
            sure |= weights[head] > 0
        return Pseudo(texts, targets, weights, np.flatnonzero(sure))

    def _texts(self, examples: Examples) -> Texts:
        """The examples as arrays; those of the last few calls are kept, because each pass asks for the same ones."""
        known = sum(map(len, self._classes.values()))
        for table, classes, texts in self._read_texts:
            if table is examples.table and classes == known:
                return texts
        texts = Texts.of(self._embedding.of(examples.table), self._classes, self._sizes.buckets)
        self._read_texts = [*self._read_texts[-2:], (examples.table, known, texts)]
        return texts

    # --- judging and reading ---

    def score(self, examples: Examples) -> Scores:
        """accuracy, macro_recall and calibration of each labelled example; see text_scores.py."""
        from pipeline.tasks.text_scores import scores_of

        texts = self._texts(examples)
        chances, compact = self._chances(texts), self.compact()
        told = {head: compact.told(head, values)[0] for head, values in chances.items()}
        return scores_of(examples, chances, texts.targets, self._classes, told)

    def _chances(self, texts: Texts) -> dict[str, np.ndarray]:
        logits = self.compact().logits_of(texts.vectors, texts.ngrams)
        return {head: softmax(values / self._temperature[head]) for head, values in logits.items()}

    def read(self, context: pa.Table) -> Mapping[str, pa.Table]:
        """`labels_wanted`, and `readings` where topic and sentiment are told, of what came."""
        there = self._embedding.of(context.filter(pc.invert(context["gone"])))
        main = next(iter(self._kinds))
        if not len(there) or not all(self._classes.values()):
            return {}
        chances = self._chances(self._texts(Examples(there)))
        found = {"labels_wanted": self._wanted(there, main, chances[main])}
        if {"sentiment", "topic"} <= set(self._kinds):
            compact = self.compact()
            told = {head: compact.told(head, values) for head, values in chances.items()}
            found["readings"] = pa.table({
                "message_id": there["message_id"], "hour": there["hour"],
                **{head: self._said(there, head, told[head][0]) for head in ("topic", "sentiment")},
                "confidence": told["sentiment"][1],
            })
        return found

    def _said(self, table: pa.Table, head: str, told: np.ndarray) -> pa.Array:
        """What a person has said of each message, or else the model."""
        names = pa.array(list(self._classes[head])).take(pa.array(told))
        return pc.coalesce(table[head].combine_chunks(), names)

    def _wanted(self, table: pa.Table, head: str, chances: np.ndarray) -> pa.Table:
        rows = np.flatnonzero(pc.is_null(table[head]).to_numpy())
        vectors = vectors_of(table)[rows]
        generator = np.random.default_rng([self._seed, self._learnt])
        chosen = rows[most_worth_labelling(chances[rows], vectors, WANTED, generator)]
        names = np.array(list(self._classes[head]), object)
        taken = table.take(pa.array(chosen, pa.int64()))
        return pa.table({
            "message_id": taken["message_id"], "hour": taken["hour"],
            "kind": pa.array([self._kinds[head]] * len(chosen), pa.string()),
            "guess": pa.array(names[chances[chosen].argmax(axis=1)].tolist(), pa.string()),
            "confidence": chances[chosen].max(axis=1), "rank": np.arange(1, len(chosen) + 1),
        })

    # --- state ---

    def state(self) -> State:
        """Weights, slots, answered messages; classes, confidences and counts."""
        arrays = self._trainer.arrays() | self._answers.arrays() | self._embedding.arrays()
        return State(arrays, {
            "seed": self._seed, "kinds": self._kinds, "sizes": asdict(self._sizes),
            "capacity": self._trainer.network.capacity, "self_training": self._self_training,
            "balance": self._balance, "counts": self._counts,
            "classes": {head: list(names) for head, names in self._classes.items()},
            "temperature": self._temperature, "threshold": asdict(self._threshold), "learnt": self._learnt,
            "answered": self._answers.notes(), "optimizer": self._methods.optimizer,
            "encoder_share": self._embedding.share, "encoder_changes_of": self._embedding.changes_of,
        })

    @classmethod
    def restore(cls, state: State, embedding: Embedding) -> TextLearner:
        """The learner that `state` was taken from, but for what nobody has labelled: that comes with each job.

        Args:
            state: with all of the encoder's blocks where it was taken before some were cut off.
            embedding: any of the same pretrained encoder.
        """
        meta = state.meta
        sizes = ClassifierSizes(**{**meta["sizes"], "heads": tuple(meta["sizes"]["heads"])})
        learner = cls(
            seed=meta["seed"], kinds=meta["kinds"], text_dimension=sizes.text_dimension,
            embedding=embedding.restored(
                state.arrays, meta.get("encoder_share", 1.0), meta.get("encoder_changes_of", "")
            ),
            self_training=meta["self_training"], balance=meta.get("balance", 0.0), sizes=sizes,
            capacity=meta["capacity"],
        )
        learner._counts = {head: dict(meta.get("counts", {}).get(head, {})) for head in meta["kinds"]}
        learner._classes = {
            head: {name: place for place, name in enumerate(names)} for head, names in meta["classes"].items()
        }
        learner._temperature, learner._threshold = dict(meta["temperature"]), Threshold(**meta["threshold"])
        learner._learnt = meta["learnt"]
        learner._answers = Answers.restore(state.arrays, meta["answered"])
        learner.use(Methods(optimizer=meta["optimizer"]), Examples(pa.table({})))
        learner._trainer.assign(state.arrays)
        return learner

    # --- for consumers ---

    def compact(self) -> CompactTextClassifier:
        """The classifier in plain arrays, as consumers use it."""
        weights = {name: array for name, array in self._trainer.arrays().items() if not name.startswith("optimizer/")}
        arrays = {name: weights[name] for name in ("adapter_in", "adapter_bias", "adapter_out")}
        for head, classes in self._classes.items():
            for part in ("vectors", "ngrams", "bias"):
                arrays[f"{head}_{part}"] = np.ascontiguousarray(weights[f"{head}_{part}"][..., : len(classes)])
        answers, arrays["answer_vectors"], arrays["answer_of"] = self._answers.compact()
        names = {head: tuple(classes) for head, classes in self._classes.items()}
        handicaps = {head: self._handicaps(head) for head in names if self._balance}
        return CompactTextClassifier(arrays, names, dict(self._temperature), self._threshold, answers, handicaps)

    def _handicaps(self, head: str) -> tuple[float, ...]:
        """`balance` times the log of each class's share of what was learnt, a message more of each (Laplace)."""
        counts = np.array([self._counts[head].get(name, 0) + 1.0 for name in self._classes[head]])
        return tuple((self._balance * np.log(counts / max(counts.sum(), 1.0))).tolist())

    def package(self, folder: Path) -> Package:
        """Writes the compact arrays and the text encoder below `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        compact = self.compact()
        compact.save(folder / "classifier")
        encoder = self._embedding.encoder
        encoder.save(folder / "text_encoder")
        service = text_service.TextService(compact, lambda: encoder)
        example = pd.DataFrame({"text": ["Where is my parcel?", "The lamp came broken, I want my money back."]})
        return Package(
            model_code=Path(text_service.__file__),
            code_folders=(Path(models.__file__).parent,),
            artifacts={"classifier": folder / "classifier"},
            config={"code_package": "models"},
            requirements=tuple(f"{name}=={version(name)}" for name in _REQUIREMENTS),
            input_example=example,
            output_example=service.answer(example, text_service.PARAMETERS),
            parameters=text_service.PARAMETERS,
            shared={"text_encoder": folder / "text_encoder"},
        )
