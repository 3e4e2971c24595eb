"""How much of a habit each item of a history is: how often it was bought, and how lately, told by visits.

Who comes twice a year and buys the same each time has a habit as strong as who comes weekly; counts do not tell how
long ago, days do not tell at what pace. So an item's purchases are summed, each worth less by `HABIT_DECAY` for each
visit with a purchase that the user has made since (time-decayed personal frequency: Hu et al., "Modeling Personalized
Item Frequency Information for Next-basket Recommendation", SIGIR 2020).

Numpy alone: consumers compute it too. The examples (recommend_examples.py), the profiles (user_profile_facts.py) and
the graph (recommender_graph.py) say the same in their languages.
"""

from __future__ import annotations

import numpy as np

HABIT_DECAY = 0.9  # from visit to visit: TIFU-kNN's within a group of baskets, for three of its four shops

# Purchases further apart are of two visits: as in layers.py, which needs TensorFlow, and half a second more, because
# logs tell whole seconds or minutes, and half an hour as a difference of days is as often a little more or less.
PAUSE_DAYS = 1 / 48 + 0.5 / 86_400


def habits(rows: np.ndarray, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each item's habit, of one user's purchases.

    Args:
        rows: [purchases] int, which item each was of; what is not known may share one row, it makes visits all the
            same.
        days: [purchases] float, days since each, in any order.

    Returns:
        [items] int, the distinct rows, ascending; [items] float64, their habits.
    """
    newest = np.argsort(days, kind="stable")
    since = days[newest]
    visits_since = np.cumsum(np.diff(since, prepend=since[:1]) > PAUSE_DAYS)
    items, item = np.unique(rows[newest], return_inverse=True)
    return items, np.bincount(item, HABIT_DECAY**visits_since, len(items))
