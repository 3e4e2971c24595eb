"""What the events say of each user: interests with their evidence, price band, rhythm, recency, segment.

A pure function of tables at fixed versions, in SQL for DuckDB, so that one user and a million cost one pass. Nothing
is learnt here, every number is a count, a sum or a quantile of the user's own events, and the events that weigh most
stand beside it.

**Interests.** An event on an item gives its category a weight that halves every `HALF_LIFE_DAYS`; ages are counted
back from the user's own last event, so that a profile in which nothing happens stays as it is. A return takes its
purchase back, a rating adds or takes by its stars.

**Segment.** Recency, frequency and money (Hughes, Strategic Database Marketing, 1994) by rules that a person can check:

| segment | orders in the year up to the last | days since the last |
|---|---|---|
| `looking` | none | |
| `new` | 1 | up to `ACTIVE_DAYS` |
| `returning` | 2 to `OFTEN_ORDERS` - 1 | up to `ACTIVE_DAYS` |
| `loyal` | `OFTEN_ORDERS` or more | up to `ACTIVE_DAYS` |
| `best` | the same, and spends as the top fifth of the shop's buyers | up to `ACTIVE_DAYS` |
| `cooling`, `at risk` | fewer, or `OFTEN_ORDERS` or more | up to `LAPSED_DAYS` |
| `lapsed`, `lost` | fewer, or `OFTEN_ORDERS` or more | longer |

The days and orders are those of UCI Online Retail (4,339 customers, 12,427 pauses between days with an order).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from models.habits import HABIT_DECAY
from pipeline.snapshot import Snapshot

RULES = 1  # counts up with whatever below changes a profile: all are then made anew

# The median pause between two orders: half of an interest is left after it. Two weeks of a simulated shop foresee
# the categories of the next two days' purchases alike with any half-life from 14 days on.
HALF_LIFE_DAYS = 28.0
ACTIVE_DAYS = 58  # three quarters of the pauses are no longer
LAPSED_DAYS = 155  # nineteen in twenty
OFTEN_ORDERS = 5  # a quarter of the customers have as many
HIGH_SPEND_QUANTILE = 0.8  # Hughes' top fifth
_LEAST_BUYERS = 20  # four in the top fifth; of fewer no fifth is worth its name

# In purchases. About 70 % of carts are left (Baymard Institute, mean over 50 studies), about a tenth of the looks at a
# product put it into one. Stars are a word on a purchase: five confirm it, one takes it back, three say nothing. In the
# simulated shop, whose customers buy half of what they look at, the next purchase is of one of the
# three heaviest categories in 46 % with these weights, in 41 % by purchases alone, in 47 % with all events alike.
_WEIGHTS = """CASE event_type WHEN 'purchase' THEN 1.0 WHEN 'cart' THEN 0.3 WHEN 'return' THEN -1.0
                              WHEN 'rating' THEN coalesce((rating - 3.0) / 2.0, 0.0) ELSE 0.1 END"""

MOST_INTERESTS = 10  # a profile is read by people; the share says how much is left out
EVIDENCE = 3  # events beside each interest

# A fifth above or below (the same in logarithms) and at least three purchases, so that each quartile is one of its own.
_BELOW, _ABOVE = 0.8, 1.25
_LEAST_PRICED = 3

VISIT_MINUTES = 30  # half an hour without an event is where web analytics ends a visit
_YEAR_DAYS = 365
_REGULAR_ORDERS = 2  # came back for it
_MOST_HOURS, _MOST_WEEKDAYS = 3, 2
_LEAST_BEGUN = 2  # visits; one is no habit
HISTORY = 64  # items of a history that the champion is asked with; what is older moves an answer by little

# Users whose rows are read from the table alone; of more the whole table is passed over.
_FEW_USERS = 5_000
_COLUMNS = (
    "event_id", "event_type", "event_time", "user_id", "item_id", "quantity", "price", "rating", "basket_id",
    "landed_window", "source_file", "source_row",
)


def catalogue_of(tables: Snapshot) -> pa.Table:
    """`item_id`, `category`, `usual_price`: the newest category, and the median price of the items that have it."""
    sql = _connection()
    sql.register("items", tables.dataset("items"))
    return sql.sql("""
        WITH newest AS (SELECT item_id, arg_max(category, (change_time, change_id)) AS category,
                               arg_max(price, (change_time, change_id)) AS price FROM items GROUP BY item_id)
        SELECT item_id, category, CASE WHEN category IS NOT NULL
                   THEN median(CASE WHEN price > 0 THEN price END) OVER (PARTITION BY category) END AS usual_price
        FROM newest ORDER BY item_id""").to_arrow_table()


def high_spend_of(tables: Snapshot) -> float | None:
    """What the top fifth of the buyers spend in the year up to their last purchase; None: too few buyers to say."""
    sql = _connection()
    sql.register("told", tables.dataset("events"))
    found = sql.execute(f"""
        WITH bought AS (SELECT user_id, {_MONEY} AS money, event_time, max(CASE WHEN event_type = 'purchase'
                            THEN event_time END) OVER (PARTITION BY user_id) AS last_purchase
                        FROM told WHERE user_id IS NOT NULL AND event_type IN ('purchase', 'return')),
             spent AS (SELECT sum(money) AS spent FROM bought WHERE {_IN_YEAR} GROUP BY user_id)
        SELECT count(*), quantile_cont(spent, {HIGH_SPEND_QUANTILE}) FROM spent""").fetchone()
    count, cut = found or (0, 0.0)
    return round(float(cut), 6) if count >= _LEAST_BUYERS else None


def facts_of(
    tables: Snapshot, users: Sequence[str], catalogue: pa.Table, high_spend: float | None, as_of: datetime
) -> pa.Table:
    """What the events say of some users.

    Args:
        tables: `events` at a version.
        users: masked ids; those without events have no row.
        catalogue: of `catalogue_of`.
        high_spend: of `high_spend_of`.
        as_of: recency counts from here.

    Returns:
        In order of id: USER_PROFILES_SCHEMA's columns but for the tables' versions and what the champion says; and
        the history that it is asked with, newest first: `history_items` (list of text), `history_counts` (purchases),
        `history_views` (other events), `history_days` (since the last of either), `history_habits` (models/habits.py),
        lists of float.
    """
    sql = _connection()
    sql.register("wanted", pa.table({"user_id": pa.array(users, pa.string())}))
    sql.register("catalogue", catalogue)
    if len(users) <= _FEW_USERS:
        values = pa.chunked_array([pa.array(users, pa.string())])
        sql.register("events", tables.rows_of("events", "user_id", values, _COLUMNS, _FEW_USERS))
    else:
        sql.register("events", tables.dataset("events"))
    sql.execute("CREATE TEMP TABLE given AS SELECT ?::TIMESTAMPTZ AS as_of, ?::DOUBLE AS high_spend",
                [as_of, high_spend])
    for query in (_TOLD, _VISITED, _SPANS, _WEIGHED):
        sql.execute(query)
    parts = {name: f"({query})" for name, query in _PARTS.items()}
    joins = " ".join(f"LEFT JOIN {query} AS {name} USING (user_id)" for name, query in parts.items())
    return sql.sql(f"""
        SELECT s.user_id, g.as_of, s.events, s.first_event, s.last_event, s.last_event_id, s.last_purchase,
            s.last_purchase_id, coalesce(interests, []) AS interests, {_BAND} AS price_band,
            coalesce(price_purchases, 0) AS price_purchases, price_p25, price_p50, price_p75,
            coalesce(price_evidence, []) AS price_evidence, s.visits, days_between_visits,
            coalesce(hours, []) AS hours, coalesce(weekdays, []) AS weekdays, coalesce(orders, 0) AS orders,
            coalesce(spent, 0.0) AS spent, g.high_spend, {_SEGMENT} AS segment, {_UNTIL} AS segment_until,
            coalesce(regular_categories, []) AS regular_categories, coalesce(history_items, []) AS history_items,
            coalesce(history_counts, []) AS history_counts, coalesce(history_views, []) AS history_views,
            coalesce(history_days, []) AS history_days, coalesce(history_habits, []) AS history_habits
        FROM spans s CROSS JOIN given g {joins} ORDER BY s.user_id""").to_arrow_table()


def _connection() -> Any:
    """DuckDB that tells time in UTC; filters stay in it, as in `engine.duckdb_connection`."""
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'; SET disabled_optimizers = 'filter_pushdown'")
    return sql


_MONEY = """CASE event_type WHEN 'purchase' THEN 1 WHEN 'return' THEN -1 ELSE 0 END
            * coalesce(price, 0) * coalesce(quantity, 1)"""
_IN_YEAR = f"event_time > last_purchase - INTERVAL {_YEAR_DAYS} DAY"

_TOLD = """
    CREATE TEMP TABLE told AS
    SELECT e.event_id, e.event_type, e.event_time, e.user_id, e.item_id, e.quantity, e.price, e.rating, e.basket_id,
           e.landed_window, e.source_file, e.source_row, c.category, c.usual_price
    FROM events e SEMI JOIN wanted USING (user_id) LEFT JOIN catalogue c USING (item_id)"""

_VISITED = f"""
    CREATE TEMP TABLE visited AS
    WITH apart AS (
        SELECT *, event_time - lag(event_time) OVER w > INTERVAL {VISIT_MINUTES} MINUTE AS pause
        FROM told WINDOW w AS (PARTITION BY user_id ORDER BY event_time, event_id))
    SELECT *, sum(CASE WHEN pause IS NOT false THEN 1 ELSE 0 END) OVER (
        PARTITION BY user_id ORDER BY event_time, event_id ROWS UNBOUNDED PRECEDING)::BIGINT AS visit,
        pause IS NOT false AS begins
    FROM apart"""

_SPANS = """
    CREATE TEMP TABLE spans AS
    SELECT user_id, count(*) AS events, min(event_time) AS first_event, max(event_time) AS last_event,
        arg_max(event_id, (event_time, event_id)) AS last_event_id, max(visit) AS visits,
        max(event_time) FILTER (event_type = 'purchase') AS last_purchase,
        arg_max(event_id, (event_time, event_id)) FILTER (event_type = 'purchase') AS last_purchase_id
    FROM visited GROUP BY user_id"""

_WEIGHED = f"""
    CREATE TEMP TABLE weighed AS
    SELECT v.*, s.last_purchase, coalesce(v.basket_id, 'visit ' || v.visit) AS an_order,
        {_WEIGHTS} * power(2.0, (epoch(v.event_time) - epoch(s.last_event)) / 86400.0 / {HALF_LIFE_DAYS}) AS weight
    FROM visited v JOIN spans s USING (user_id) WHERE v.item_id IS NOT NULL"""

_INTERESTS = f"""
    WITH placed AS (
        SELECT *, row_number() OVER (PARTITION BY user_id, category
                                     ORDER BY abs(weight) DESC, event_time DESC, event_id) AS place
        FROM weighed WHERE weight <> 0),
    by_category AS (
        SELECT user_id, category, round(sum(weight), 9) AS weight, count(*) AS events,
            list(struct_pack(event_id, event_type, event_time, item_id, weight := round(weight, 9), landed_window,
                             source_file, source_row) ORDER BY place) FILTER (place <= {EVIDENCE}) AS evidence
        FROM placed GROUP BY user_id, category),
    ranked AS (
        SELECT *, weight / sum(weight) OVER (PARTITION BY user_id) AS share,
            row_number() OVER (PARTITION BY user_id ORDER BY category IS NULL, weight DESC, category) AS rank
        FROM by_category WHERE weight > 0)
    SELECT user_id, list(struct_pack(category, weight, share, events, evidence) ORDER BY rank) AS interests
    FROM ranked WHERE rank <= {MOST_INTERESTS} AND category IS NOT NULL GROUP BY user_id"""

_PRICES = """
    WITH priced AS (
        SELECT *, price / usual_price AS ratio,
            row_number() OVER (PARTITION BY user_id ORDER BY price / usual_price, event_time, event_id) AS place,
            count(*) OVER (PARTITION BY user_id) AS n
        FROM weighed WHERE event_type = 'purchase' AND price > 0 AND usual_price > 0)
    SELECT user_id, max(n) AS price_purchases, max(ratio) FILTER (place = ceil(0.25 * n)) AS price_p25,
        max(ratio) FILTER (place = ceil(0.5 * n)) AS price_p50, max(ratio) FILTER (place = ceil(0.75 * n)) AS price_p75,
        list(struct_pack(event_id, event_time, item_id, price, usual_price, ratio) ORDER BY place) AS price_evidence
    FROM priced WHERE place IN (ceil(0.25 * n), ceil(0.5 * n), ceil(0.75 * n)) GROUP BY user_id"""

_RHYTHM = """
    WITH pauses AS (
        SELECT user_id, epoch(event_time) - lag(epoch(event_time)) OVER (
            PARTITION BY user_id ORDER BY event_time, event_id) AS seconds FROM visited WHERE begins)
    SELECT user_id, median(seconds) / 86400.0 AS days_between_visits FROM pauses GROUP BY user_id"""


def _most(what: str, name: str, most: int) -> str:
    """A query of the values of `what` in which most visits began, as a list `name`."""
    return f"""
    WITH begun AS (SELECT user_id, {what} AS value, count(*) AS visits FROM visited WHERE begins GROUP BY ALL),
    ranked AS (SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY visits DESC, value) AS rank
               FROM begun WHERE visits >= {_LEAST_BEGUN})
    SELECT user_id, list(value ORDER BY rank) AS {name} FROM ranked WHERE rank <= {most} GROUP BY user_id"""


_MONEY_SPENT = f"""
    SELECT user_id, count(DISTINCT an_order) FILTER (event_type = 'purchase') AS orders,
        round(sum({_MONEY}), 6) AS spent
    FROM weighed WHERE {_IN_YEAR} GROUP BY user_id"""

_REGULAR = f"""
    WITH again AS (
        SELECT user_id, category FROM weighed
        WHERE event_type = 'purchase' AND category IS NOT NULL AND {_IN_YEAR}
        GROUP BY user_id, category HAVING count(DISTINCT an_order) >= {_REGULAR_ORDERS})
    SELECT user_id, list(category ORDER BY category) AS regular_categories FROM again GROUP BY user_id"""

# `later` is how many visits with a purchase came after; one begins with `pause`, told by purchases alone.
_HISTORY = f"""
    WITH bought AS (
        SELECT user_id, item_id, event_time, lead(event_time) OVER (PARTITION BY user_id ORDER BY event_time)
                - event_time > INTERVAL {VISIT_MINUTES} MINUTE AS pause
        FROM weighed WHERE event_type = 'purchase'),
    since AS (
        SELECT user_id, item_id, count(*) FILTER (pause) OVER (
            PARTITION BY user_id ORDER BY event_time DESC RANGE UNBOUNDED PRECEDING) AS later
        FROM bought),
    habits AS (SELECT user_id, item_id, sum(power({HABIT_DECAY}, later)) AS habit FROM since GROUP BY ALL),
    items AS (
        SELECT user_id, item_id, count(*) FILTER (event_type = 'purchase') AS purchases,
            count(*) FILTER (event_type <> 'purchase') AS views,
            (epoch(any_value(as_of)) - epoch(max(event_time))) / 86400.0 AS days
        FROM weighed CROSS JOIN given WHERE event_type IN ('purchase', 'view', 'cart', 'search')
        GROUP BY user_id, item_id),
    ranked AS (SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY days, purchases DESC, item_id) AS rank
               FROM items LEFT JOIN habits USING (user_id, item_id))
    SELECT user_id, list(item_id ORDER BY rank) AS history_items,
        list(purchases::FLOAT ORDER BY rank) AS history_counts, list(views::FLOAT ORDER BY rank) AS history_views,
        list(greatest(days, 0.0)::FLOAT ORDER BY rank) AS history_days,
        list(coalesce(habit, 0.0)::FLOAT ORDER BY rank) AS history_habits
    FROM ranked WHERE rank <= {HISTORY} GROUP BY user_id"""

_PARTS = {
    "interested": _INTERESTS, "priced": _PRICES, "rhythm": _RHYTHM, "spending": _MONEY_SPENT, "regular": _REGULAR,
    "by_hour": _most("hour(event_time)", "hours", _MOST_HOURS),
    "by_weekday": _most("isodow(event_time)", "weekdays", _MOST_WEEKDAYS), "history": _HISTORY,
}

_BAND = f"""CASE WHEN coalesce(price_purchases, 0) < {_LEAST_PRICED} THEN NULL WHEN price_p50 < {_BELOW} THEN 'below'
                 WHEN price_p50 > {_ABOVE} THEN 'above' ELSE 'usual' END"""
_WITHIN = "g.as_of <= s.last_purchase + INTERVAL {} DAY"
_SEGMENT = f"""CASE
    WHEN s.last_purchase IS NULL THEN 'looking'
    WHEN {_WITHIN.format(ACTIVE_DAYS)} THEN CASE
        WHEN orders >= {OFTEN_ORDERS} AND spent >= g.high_spend THEN 'best' WHEN orders >= {OFTEN_ORDERS} THEN 'loyal'
        WHEN orders = 1 THEN 'new' ELSE 'returning' END
    WHEN {_WITHIN.format(LAPSED_DAYS)} THEN CASE WHEN orders >= {OFTEN_ORDERS} THEN 'at risk' ELSE 'cooling' END
    WHEN orders >= {OFTEN_ORDERS} THEN 'lost' ELSE 'lapsed' END"""
_UNTIL = f"""CASE WHEN {_WITHIN.format(ACTIVE_DAYS)} THEN s.last_purchase + INTERVAL {ACTIVE_DAYS} DAY
                  WHEN {_WITHIN.format(LAPSED_DAYS)} THEN s.last_purchase + INTERVAL {LAPSED_DAYS} DAY END"""
