"""The plain method of text classification: TF-IDF of words and pairs of words under a logistic regression.

What every text model must not fall below (on banking77 it reaches 0.89 of the 0.93 of a pretrained encoder). It is
trained anew for each judgement on the newest labelled messages that are never judged by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.examples import TRAIN, parts
from pipeline.snapshot import Snapshot
from pipeline.tasks.contract import Examples, Scores
from pipeline.tasks.text_batches import places
from pipeline.tasks.text_scores import scores_of

_MOST_LEARNT = 4_000  # newest labelled messages; a second of fitting, twice an update
_MOST_READ = 20_000  # newest messages among which they are looked for
_WORD = re.compile(r"\w")
_COLUMNS = ("message_id", "hour", "text", "label", "sentiment")


def score_baseline(tables: Snapshot, examples: Examples, kinds: Mapping[str, str]) -> Scores:
    """The scores of TF-IDF with logistic regression on the examples; `kinds`: head -> column of messages."""
    rows = _newest(tables)
    rows = rows.filter(pc.invert(pc.is_in(rows["message_id"], value_set=examples.table["example_id"].combine_chunks())))
    rows = rows.filter(pa.array(parts(rows["message_id"], rows["hour"]) == TRAIN))
    texts = examples.table["text"].to_pylist()
    chances, targets, classes = {}, {}, {}
    for head, column in kinds.items():
        labelled = rows.filter(pc.is_valid(rows[column])).slice(0, _MOST_LEARNT)
        names, chances[head] = fitted(labelled["text"].to_pylist(), labelled[column].to_pylist(), texts)
        classes[head] = {name: place for place, name in enumerate(names)}
        targets[head] = places(examples.table[head].to_pylist(), classes[head])
    return scores_of(examples, chances, targets, classes)


def fitted(texts: list[str], labels: list[str], asked: list[str]) -> tuple[list[str], np.ndarray]:
    """The classes and their chances [asked, classes], learnt from labelled texts; a single class is certain.

    Where no text has a word (but signs alone), the chances are the classes' shares.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    names = sorted(set(labels))
    if len(names) < 2 or not asked:
        return names, np.ones((len(asked), len(names)))
    if not any(map(_WORD.search, texts)):
        shares = np.array([labels.count(name) for name in names]) / len(labels)
        return names, np.tile(shares, (len(asked), 1))
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    # C 10: the best of 1, 10 and 100 on banking77; the tolerance is far below what accuracy shows
    model = LogisticRegression(C=10.0, max_iter=200, tol=1e-3).fit(words.fit_transform(texts), labels)
    return list(model.classes_), model.predict_proba(words.transform(asked))


def _newest(tables: Snapshot) -> pa.Table:
    """The messages of the newest days, newest first, some `_MOST_READ` of them."""
    days = tables.rows_by_day("messages").sort_by([("landed_date", "descending")])
    if not len(days):
        return tables.arrow("messages", _COLUMNS)
    enough = int(np.searchsorted(np.cumsum(days["count_all"].to_numpy()), _MOST_READ)) + 1
    chosen = days["landed_date"].combine_chunks().slice(0, enough)
    rows = tables.arrow("messages", _COLUMNS, ds.field("landed_date").isin(chosen))
    return rows.sort_by([("hour", "descending"), ("message_id", "ascending")])
