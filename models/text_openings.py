"""Teaches a text encoder's last blocks without a label: what follows in a message foretells the words it opens with.

People open with what they mean (a review's title, a complaint's first sentence) and then say why. So the vector of the
message without its first sentence is taught to tell that sentence's words: a label that every message brings along, in
the manner of skip-thought vectors (Kiros et al., NeurIPS 2015) and of their bag of words (Hill, Cho and Korhonen, NAACL
2016). What is kept is how far the blocks' weights have moved; with that the encoder is made anew anywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .text_encoder import TextEncoder

# Fewer messages hold few openings of each word, and 100 steps would be many passes over the same ones. The fewest that
# were measured are 1,600 clothing reviews (a study); tests/benchmarks/task_sentiment.py teaches by ten times as many.
LEAST_MESSAGES = 1000
LEAST_TOKENS = 24  # of what follows: a line or two of small talk foretells nothing
PASSES = 4  # at most: then steps follow from the number of messages
BATCH = 16
MOST_TOKENS = 64  # of them are read: twice as many cost two and a half times as much
TAUGHT_BLOCKS = 2  # a tenth of the clothing reviews labelled (a study): macro-F1 65.4, with four blocks 63.4
LEAST_OPENINGS = 3  # that a word must be in: what one customer writes foretells nothing
# Clothing reviews, 200 steps on those of the first step, then logistic regression on the tuning tenth in five folds:
# log loss of rating and recommendation 0.893 and 0.243 before, 0.854 and 0.232 at 1e-4, 0.847 and 0.228 at 3e-4; at
# 1e-4 with words' weights that had learnt beside the encoder as it was 0.887 and 0.229.
RATE = 3e-4
TEMPERATURE = 0.05  # by which the words' logits are divided: their weights take longer steps than the blocks'
_WARMUP_STEPS = 10
_CENTRED_ON = 256  # messages, whose mean vector is taken away
_DRAWN = 2  # times as many messages are looked at as all steps read: not each has an opening
_REPORT_EVERY = 25
_OPENING = re.compile(r"\s*(.+?(?:[.!?\u2026]+(?=\s)|\n|[\u3002\uff01\uff1f]))\s*(\S.*)", re.DOTALL)


def parted(text: str) -> tuple[str, str] | None:
    """A message's first sentence or line, and what follows; None where nothing follows."""
    found = _OPENING.match(text)
    return (found[1].strip(), found[2]) if found else None


def taught_changes(
    encoder: TextEncoder, texts: Sequence[str], *, most_steps: int, seed: int,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, np.ndarray]:
    """How far the weights of the last blocks move, by Keras' path, float16.

    Args:
        encoder: stays as it is.
        texts: messages; copies count once.
        most_steps: fewer are made where PASSES over the messages end before.
        seed: of the draws.
        report: takes a line for people now and then.

    Returns:
        Nothing where fewer than LEAST_MESSAGES open with known words, or the encoder has no such blocks.
    """
    generator, messages = np.random.default_rng(seed), list(dict.fromkeys(texts))
    drawn = generator.permutation(len(messages))[: _DRAWN * most_steps * BATCH]
    rest, openings = _followed(encoder, [messages[place] for place in drawn])
    if len(rest) < LEAST_MESSAGES or not _moving(encoder.backbone):
        report(f"the text encoder stays as it is: {len(rest)} messages have an opening, {LEAST_MESSAGES} are needed")
        return {}
    steps = min(most_steps, PASSES * len(rest) // BATCH)
    copy = encoder.copy()
    step = _compiled(copy, openings.usual(), encoder.embed(rest[:_CENTRED_ON]).mean(axis=0))
    order = np.concatenate([generator.permutation(len(rest)) for _ in range(PASSES)])
    for made in range(steps):
        chosen = order[made * BATCH : (made + 1) * BATCH]
        rate = RATE * min(1.0, (made + 1) / _WARMUP_STEPS) * (1.0 - made / steps)
        ids, mask = _read(copy, [rest[place] for place in chosen])
        loss = step(ids, mask, tf.constant(openings.shares(chosen)), tf.constant(rate, tf.float32))
        if made % _REPORT_EVERY == 0 or made == steps - 1:
            report(f"the text encoder learns openings: step {made + 1} of {steps}, loss {float(loss):.3f}")
    before, after = _moving(encoder.backbone), _moving(copy.backbone)
    return {path: (after[path].numpy() - before[path].numpy()).astype(np.float16) for path in before}


def changed(encoder: TextEncoder, changes: Mapping[str, np.ndarray]) -> TextEncoder:
    """The encoder with its weights moved by `changes`; one like any other, with its own identity."""
    copy = encoder.copy()
    for path, variable in _moving(copy.backbone).items():
        variable.assign_add(changes[path].astype(np.float32))
    return copy.renewed()


def _read(encoder: TextEncoder, texts: Sequence[str]) -> tuple[tf.Tensor, tf.Tensor]:
    ids, mask = encoder.tokens(texts)
    return tf.constant(ids[:, :MOST_TOKENS]), tf.constant(mask[:, :MOST_TOKENS])


def _compiled(encoder: TextEncoder, usual: np.ndarray, centre: np.ndarray) -> Any:
    """A step of the encoder's last blocks and of the words' weights, which begin at nothing beside the usual shares.

    Args:
        encoder: which is moved.
        usual: [words] float32, the shares of the words in all openings.
        centre: [dimension] float32, what the vectors of all messages have in common: it foretells no word.
    """
    words = keras.Variable(np.zeros((encoder.dimension, len(usual)), np.float32), name="words")
    variables = [*_moving(encoder.backbone).values(), words]
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build(variables)
    ids = tf.TensorSpec((BATCH, None), tf.int32)
    signature = [ids, ids, tf.TensorSpec((BATCH, len(usual)), tf.float32), tf.TensorSpec((), tf.float32)]

    def step(ids: tf.Tensor, mask: tf.Tensor, targets: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        values = [one.value for one in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            logits = (encoder.pooled(ids, mask) - centre) @ words.value / TEMPERATURE + np.log(usual)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
        optimizer.learning_rate.assign(rate)
        optimizer.apply(tape.gradient(loss, values), variables)
        return loss

    return tf.function(step, input_signature=signature)


@dataclass(frozen=True)
class _Openings:
    """Openings by their words; as a table, of 60,000 by 8,000 words, they would take gigabytes.

    Attributes:
        words: of each, [words] int, the places of its different words.
        size: how many words there are.
    """

    words: Sequence[np.ndarray]
    size: int

    def shares(self, chosen: np.ndarray) -> np.ndarray:
        """[chosen, size] float32: the words' shares in the openings at `chosen`, which sum to 1 in each."""
        table = np.zeros((len(chosen), self.size), np.float32)
        for row, place in enumerate(chosen):
            table[row, self.words[place]] = np.float32(1.0) / np.float32(len(self.words[place]))
        return table

    def usual(self) -> np.ndarray:
        """[size] float32: the mean of all shares."""
        total = np.zeros(self.size)
        for one in self.words:
            total[one] += 1.0 / len(one)
        return (total / max(len(self.words), 1)).astype(np.float32)


def _followed(encoder: TextEncoder, messages: Sequence[str]) -> tuple[list[str], _Openings]:
    """What follows in the messages that open with known words and go on for long enough, and those openings."""
    both = [found for found in map(parted, messages) if found is not None]
    if not both:
        return [], _Openings([], 0)
    spoken = [encoder.words(opening) for opening, _ in both]
    seen = Counter(word for one in spoken for word in one)
    spoken = [{word for word in one if seen[word] >= LEAST_OPENINGS} for one in spoken]
    lengths = encoder.tokens([rest for _, rest in both])[1].sum(axis=1)
    rows = [row for row, one in enumerate(spoken) if one and lengths[row] >= LEAST_TOKENS]
    places = {word: place for place, word in enumerate(sorted({word for row in rows for word in spoken[row]}))}
    words = [np.array([places[word] for word in sorted(spoken[row])], np.int64) for row in rows]
    return [both[row][1] for row in rows], _Openings(words, len(places))


def _moving(backbone: keras.Model) -> dict[str, Any]:
    """The weights of the last blocks, by Keras' path."""
    blocks = [layer for layer in backbone.layers if hasattr(layer, "_self_attention_layer")][-TAUGHT_BLOCKS:]
    held = [variable for block in blocks for variable in block.variables]
    return {one.path: one for one in held if not one.path.endswith("seed_generator_state")}
