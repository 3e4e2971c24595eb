"""What is measured of a text classifier: by the classes that there are, not by those that it knows."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tasks.contract import Examples
from pipeline.tasks.text_batches import places
from pipeline.tasks.text_scores import scores_of

SAID = [*"aaaaaabbccdd", None]


@pytest.mark.parametrize(("known", "expected"), [("", 0.0), ("a", 0.25), ("ab", 0.5), ("abcd", 1.0)])
def test_each_class_that_a_model_does_not_know_counts_as_a_class_of_its_own(known: str, expected: float) -> None:
    """Each model is right of all that it knows: of four classes that is as many quarters, whatever it knows."""
    classes = {name: place for place, name in enumerate(known)}
    ids = [f"m{place}" for place in range(len(SAID))]
    examples = Examples(pa.table({
        "example_id": ids, "unit": ids, "intent": pa.array(SAID, pa.string()),
        "hour": pa.array([datetime(2026, 1, 5, tzinfo=UTC)] * len(SAID), pa.timestamp("us", "UTC")),
    }))
    targets = places(SAID, classes)
    chances = np.eye(len(classes))[np.maximum(targets, 0)] if known else np.zeros((len(SAID), 0))
    frame = scores_of(examples, {"intent": chances}, {"intent": targets}, {"intent": classes}).frame
    assert len(frame) == 12 and frame["macro_recall"].mean() == pytest.approx(expected)
