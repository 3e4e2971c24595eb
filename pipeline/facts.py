"""The facts of a window: what is counted of an hour, the shares that are judged, and both in words.

They are apart from the rules, which live in expectations/: here is only when there is enough to judge by.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.schema import TIME

WINDOW_FACTS = pa.schema(  # one row a window: what the window suites judge
    [
        pa.field("landed_window", TIME, nullable=False),
        pa.field("files", pa.int64(), nullable=False),
        pa.field("rows_in", pa.int64(), nullable=False),
        pa.field("readable", pa.int64(), nullable=False),  # typed rows, before duplicates and row checks
        pa.field("quarantined", pa.int64(), nullable=False),  # by landing and cleaning
        pa.field("duplicates", pa.int64(), nullable=False),
        pa.field("late", pa.int64(), nullable=False),
        pa.field("usual_rows", pa.float64()),  # median rows_in of the same hour before; null: no history
        pa.field("newest_minutes", pa.float64()),  # from the newest row's time to the window's end; null: no rows
        pa.field("item_rows", pa.int64(), nullable=False),  # rows that name an item
        pa.field("unknown_items", pa.int64(), nullable=False),  # of those, rows whose item nobody has described
        pa.field("hour_of_week", pa.int64(), nullable=False),  # 0: Monday 00:00 UTC
    ]
)

# With a fifth of the rows usually bad, more than half of 50 are bad by chance once in 2 million hours (binomial)
_SHARE_ROWS = 50
# With a fifth of the rows usually bad, 20 of 20 are never bad by chance (1e-14); the largest hour of Online
# Retail in which every row breaks a rule has 16 rows
_USABLE_ROWS = 20
# Quiet hours of Online Retail have 3 rows and one order may have 1,114: taken as 250, such an hour is far below
# the 20 times that stop it; the busiest of its year reaches 8 times
_USUAL_AT_LEAST = 250.0
_USUAL_JUDGED = 100.0  # a tenth of 100 is ten rows; below that an hour is too quiet for its rows to mean anything


def derived_facts(facts: pa.Table, rejected: np.ndarray) -> pa.Table:
    """WINDOW_FACTS and what the window suites judge beside them; null where there is too little to judge by.

    `rejected` rows breaking a rule; `unreadable_share` of the rows that landed; `rejected_share`, `duplicate_share`
    and `late_share` of the readable rows; `unknown_item_share` of the rows that name an item; `usable_rows`;
    `times_usual` and `share_of_usual`: rows_in by the usual rows, against too many and too few.
    """
    held = {name: facts[name].to_numpy() for name in facts.column_names if name != "landed_window"}
    usual = held["usual_rows"]
    usable = held["readable"] - held["duplicates"] - rejected
    derived = {
        "rejected": rejected,
        "unreadable_share": _share(held["quarantined"], held["rows_in"]),
        "rejected_share": _share(rejected, held["readable"] - held["duplicates"]),
        "duplicate_share": _share(held["duplicates"], held["readable"]),
        "late_share": _share(held["late"], held["readable"]),
        "unknown_item_share": _share(held["unknown_items"], held["item_rows"]),
        "usable_rows": np.where((held["rows_in"] >= _USABLE_ROWS) & (held["duplicates"] == 0), usable, np.nan),
        "times_usual": held["rows_in"] / np.maximum(usual, _USUAL_AT_LEAST),
        "share_of_usual": np.divide(
            held["rows_in"], usual, out=np.full(len(usual), np.nan),
            where=(usual >= _USUAL_JUDGED) & (held["files"] > 0),
        ),
    }
    for name, values in derived.items():
        facts = facts.append_column(name, pa.array(values, from_pandas=True))
    return facts


def _share(part: np.ndarray, of: np.ndarray) -> np.ndarray:
    """`part / of`, NaN where `of` is below `_SHARE_ROWS`: a share of a few rows is chance."""
    return np.divide(part, of, out=np.full(len(of), np.nan), where=of >= _SHARE_ROWS)


def fact_in_words(facts: pa.Table, column: str, place: int) -> str:
    """What a window held, in words, by the column that a rule judges; `place`: its row in the derived facts."""
    fact = {name: facts[name][place].as_py() for name in facts.column_names}
    readable, value = fact["readable"], fact.get(column)
    phrases = {
        "unreadable_share": f"{_percent(value)} of the rows unreadable ({fact['quarantined']:,} of "
                            f"{fact['rows_in']:,})",
        "rejected_share": f"{_percent(value)} of the readable rows break a rule ({fact['rejected']:,} of "
                          f"{readable - fact['duplicates']:,})",
        "duplicate_share": f"{_percent(value)} of the rows are duplicates ({fact['duplicates']:,} of {readable:,})",
        "late_share": f"{_percent(value)} of the rows are late ({fact['late']:,} of {readable:,})",
        "unknown_item_share": f"{_percent(value)} of the rows are on unknown items ({fact['unknown_items']:,} of "
                              f"{fact['item_rows']:,})",
        "usable_rows": f"{value} usable rows of {fact['rows_in']:,}",
        "times_usual": f"{fact['rows_in']:,} rows, usual are {_number(fact['usual_rows'])}",
        "share_of_usual": f"{fact['rows_in']:,} rows, usual are {_number(fact['usual_rows'])}",
        "newest_minutes": f"the newest row is {_number(value)} minutes older than the window's end",
    }
    return phrases.get(column, f"{column} is {_number(value)}")


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"
