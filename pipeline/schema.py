"""The feeds and the tables that they fill: columns, types, keys. Said once, for door, lake and learner.

A feed's raw columns all arrive as text (or null); cleaning types them. A published table has the feed's
columns with the user masked, and the columns of provenance that every table shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")

EVENT_TYPES = ("view", "cart", "purchase", "return", "rating", "search")

PROVENANCE = (
    pa.field("landed_window", TIME, nullable=False),  # start of the window in which the row landed
    pa.field("landed_date", pa.date32(), nullable=False),  # its UTC day: the Delta partition
    pa.field("source_file", pa.string(), nullable=False),  # path below landing/<feed>/
    pa.field("source_row", pa.int64(), nullable=False),  # line or record number in that file, from 1
    pa.field("imputed", pa.string()),  # names of the cleaning rules that filled something in, comma separated
)


@dataclass(frozen=True)
class Feed:
    """One kind of incoming data and the table of the same name.

    Attributes:
        name: `events`, `items` or `messages`; also the table's name.
        key: the column that identifies a row, however often it lands.
        time: the column with the time at which the row happened.
        columns: the columns that a landing file may carry, typed as published (user_id: raw).
        required: raw columns without which no row of a file can be used.
        free_text: columns in which customers write: what tells a person in them is masked.
    """

    name: str
    key: str
    time: str
    columns: tuple[pa.Field, ...]
    required: tuple[str, ...]
    free_text: tuple[str, ...] = ()

    @property
    def raw_names(self) -> tuple[str, ...]:
        """The column names that a landing file may carry."""
        return tuple(field.name for field in self.columns)

    @property
    def table_schema(self) -> pa.Schema:
        """The published table: the feed's columns (user_id masked), `hour` (in which the row happened), provenance."""
        return pa.schema([*self.columns, pa.field("hour", TIME, nullable=False), *PROVENANCE])


EVENTS = Feed(
    name="events",
    key="event_id",
    time="event_time",
    columns=(
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("event_time", TIME, nullable=False),
        pa.field("user_id", pa.string()),  # null: a guest
        pa.field("session_id", pa.string()),  # masked like user_id, because a log may have sessions instead of users
        pa.field("item_id", pa.string()),  # null only for a search that led nowhere
        pa.field("quantity", pa.float64()),  # units, > 0; a return's quantity is positive too
        pa.field("price", pa.float64()),  # per unit, in the shop's currency, >= 0
        pa.field("rating", pa.float64()),  # 1..5
        pa.field("query", pa.string()),  # the words of a search
        pa.field("basket_id", pa.string()),  # order or basket, where the shop has one
    ),
    required=("event_type", "event_time"),
    free_text=("query",),
)

ITEMS = Feed(
    name="items",
    key="change_id",
    time="change_time",
    columns=(
        pa.field("change_id", pa.string(), nullable=False),  # derived from the content where the shop gives none
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("change_time", TIME, nullable=False),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("category", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("stock", pa.float64()),  # units; null: unknown
    ),
    required=("item_id", "change_time"),
)

MESSAGES = Feed(
    name="messages",
    key="message_id",
    time="message_time",
    columns=(
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("message_time", TIME, nullable=False),
        pa.field("user_id", pa.string()),
        pa.field("channel", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # what it is about, where a person has said so; any number of names
        pa.field("sentiment", pa.string()),  # negative neutral positive, where a person has said so
        pa.field("answer", pa.string()),  # what was answered, where that is good enough to be answered again
    ),
    required=("message_time", "text"),
    free_text=("text", "answer"),
)

FEEDS = {feed.name: feed for feed in (ITEMS, EVENTS, MESSAGES)}  # items first: events are checked against them

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("feed", pa.string(), nullable=False),
        pa.field("landed_window", TIME, nullable=False),
        pa.field("landed_date", pa.date32(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a stable name, e.g. "malformed_json"
        pa.field("detail", pa.string()),  # what was seen and what was allowed
        pa.field("raw", pa.string()),  # the row as it landed, users masked, cut at 64 KiB
        pa.field("raw_bytes", pa.int64(), nullable=False),  # its length before the cut
    ]
)

WINDOWS_SCHEMA = pa.schema(
    [
        pa.field("feed", pa.string(), nullable=False),
        pa.field("landed_window", TIME, nullable=False),
        pa.field("landed_date", pa.date32(), nullable=False),
        pa.field("files", pa.int64(), nullable=False),
        pa.field("rows_in", pa.int64(), nullable=False),  # = published + quarantined + duplicates
        pa.field("published", pa.int64(), nullable=False),
        pa.field("quarantined", pa.int64(), nullable=False),
        pa.field("duplicates", pa.int64(), nullable=False),
        pa.field("late", pa.int64(), nullable=False),  # published rows that happened before the window
        pa.field("table_version", pa.int64(), nullable=False),  # of the feed's table after publishing
        pa.field("manifest", pa.string(), nullable=False),  # JSON: file -> {bytes, sha256}
        pa.field("warnings", pa.string()),  # JSON list: expectations of severity below critical that failed
    ]
)

DECISIONS_SCHEMA = pa.schema(  # append-only: who served when, and why
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("decided_at", TIME, nullable=False),
        pa.field("action", pa.string(), nullable=False),  # promote hold reject first rollback force set-aside
        pa.field("version", pa.int64(), nullable=False),  # the model version that the action is about
        pa.field("champion_before", pa.int64()),
        pa.field("champion_after", pa.int64()),
        pa.field("window", TIME),  # the newest landed window that the version has seen
        pa.field("who", pa.string(), nullable=False),
        pa.field("reasons", pa.string(), nullable=False),  # JSON list of sentences
    ]
)

QUALITY_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        # `window`: all examples that it landed, before anything learnt them; or `validation`
        pa.field("scored_on", pa.string(), nullable=False),
        pa.field("window", TIME, nullable=False),  # landed window scored, or newest landed window of the validation
        pa.field("role", pa.string(), nullable=False),  # champion challenger baseline never_updated
        pa.field("model_version", pa.int64(), nullable=False),  # 0: the baseline
        pa.field("metric", pa.string(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("low", pa.float64(), nullable=False),  # 95 % interval over units
        pa.field("high", pa.float64(), nullable=False),
        pa.field("examples", pa.int64(), nullable=False),
        pa.field("challenger", pa.int64(), nullable=False),  # the version whose update scored this; 0: the watch
    ]
)

PROFILES_SCHEMA = pa.schema(  # append-only: what each window held, and what a champion answers, in counts
    [
        pa.field("about", pa.string(), nullable=False),  # a feed; or `answers-<task>`
        pa.field("landed_window", TIME, nullable=False),
        pa.field("landed_date", pa.date32(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),  # of the log entry or of the model; newest wins
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("counts", pa.string(), nullable=False),  # JSON: column -> bin -> rows
    ]
)

USER_PROFILES_SCHEMA = pa.schema(  # a row a masked user with events; pipeline/user_profile_facts.py has the rules
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("as_of", TIME, nullable=False),  # end of the newest landed window when the row was made
        pa.field("events_version", pa.int64(), nullable=False),  # the tables' versions from which it was made
        pa.field("items_version", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("first_event", TIME, nullable=False),
        pa.field("last_event", TIME, nullable=False),
        pa.field("last_event_id", pa.string(), nullable=False),
        pa.field("last_purchase", TIME),  # null: never bought
        pa.field("last_purchase_id", pa.string()),
        pa.field("interests", pa.list_(pa.struct([  # heaviest first
            pa.field("category", pa.string()),
            pa.field("weight", pa.float64()),  # in purchases on the day of last_event
            pa.field("share", pa.float64()),  # of the weight of all categories, those that are not listed too
            pa.field("events", pa.int64()),  # of which the weight is the sum
            pa.field("evidence", pa.list_(pa.struct([  # those that weigh most, heaviest first
                pa.field("event_id", pa.string()), pa.field("event_type", pa.string()), pa.field("event_time", TIME),
                pa.field("item_id", pa.string()), pa.field("weight", pa.float64()), pa.field("landed_window", TIME),
                pa.field("source_file", pa.string()), pa.field("source_row", pa.int64()),
            ]))),
        ]))),
        pa.field("price_band", pa.string()),  # below usual above; null: too few purchases with a usual price
        pa.field("price_purchases", pa.int64(), nullable=False),  # that the quantiles are of
        pa.field("price_p25", pa.float64()),  # what they pay over the category's usual price
        pa.field("price_p50", pa.float64()),
        pa.field("price_p75", pa.float64()),
        pa.field("price_evidence", pa.list_(pa.struct([  # the purchases that are those quantiles, the cheapest first
            pa.field("event_id", pa.string()), pa.field("event_time", TIME), pa.field("item_id", pa.string()),
            pa.field("price", pa.float64()), pa.field("usual_price", pa.float64()), pa.field("ratio", pa.float64()),
        ]))),
        pa.field("visits", pa.int64(), nullable=False),
        pa.field("days_between_visits", pa.float64()),  # median; null: one visit
        pa.field("hours", pa.list_(pa.int64())),  # UTC, in which most visits began, the most frequent first
        pa.field("weekdays", pa.list_(pa.int64())),  # the same, 1: Monday
        pa.field("orders", pa.int64(), nullable=False),  # in the year up to last_purchase
        pa.field("spent", pa.float64(), nullable=False),  # the same, less returns, in the shop's currency
        pa.field("high_spend", pa.float64()),  # from which on `spent` is high in this shop; null: too few buyers to say
        pa.field("segment", pa.string(), nullable=False),
        pa.field("segment_until", TIME),  # when it changes if nothing happens; null: never
        pa.field("regular_categories", pa.list_(pa.string())),  # bought in several of those orders
        pa.field("next_categories", pa.list_(pa.struct([  # likeliest first, without the regular ones; null: no champion
            pa.field("category", pa.string()),
            pa.field("probability", pa.float64()),  # that the next item chosen is of it, by the champion
            pa.field("items", pa.list_(pa.string())),  # the likeliest of them
        ]))),
        pa.field("vector", pa.list_(pa.float32())),  # the champion's of the user; null: no champion
        pa.field("model_version", pa.int64()),  # that made next_categories and vector
        pa.field("model_base", pa.int64()),  # first version of its lineage: vectors are comparable within one
    ]
)

DELETED = "deleted_on_request"  # the quarantine's reason for rows of a user or an item that the lake had to forget

DELETIONS_SCHEMA = pa.schema(  # append-only: who and what had to be forgotten; ingest lets none of it in again
    [
        pa.field("asked_at", TIME, nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # user item
        pa.field("id", pa.string(), nullable=False),  # a user's masked
        pa.field("feed", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),  # of the feed's table that were deleted
        pa.field("first_window", TIME),  # the oldest landed window that had some
        pa.field("version_before", pa.int64(), nullable=False),  # the table's newest version that has them
        pa.field("who", pa.string(), nullable=False),
    ]
)

LABELS_SCHEMA = pa.schema(  # what people said of messages after they came, each time a row; the newest of a kind counts
    [
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # the column of messages that it fills: label sentiment answer
        pa.field("value", pa.string()),  # null: taken back
        pa.field("labelled_at", TIME, nullable=False),
        pa.field("who", pa.string(), nullable=False),
    ]
)

LABELS_WANTED_SCHEMA = pa.schema(  # append-only: messages that a model is least sure of
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),  # the model version whose job named it
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("hour", TIME, nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # the column of messages that a person should fill
        pa.field("guess", pa.string(), nullable=False),  # what the model would say
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("rank", pa.int64(), nullable=False),  # 1: first to be labelled, among those of the version
    ]
)

READINGS_SCHEMA = pa.schema(  # append-only: what a model read off a message; of several the highest version's counts
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),  # the model version whose job read it
        pa.field("message_id", pa.string(), nullable=False),
        pa.field("hour", TIME, nullable=False),
        pa.field("topic", pa.string(), nullable=False),
        pa.field("sentiment", pa.string(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),  # of the sentiment
    ]
)

TEXT_VECTORS_SCHEMA = pa.schema(  # each text is embedded once per encoder; texts.py says whose vectors leave
    [
        pa.field("encoder", pa.string(), nullable=False),  # identity of weights and tokenizer; texts.TAUGHT
        pa.field("content_hash", pa.string(), nullable=False),  # of the text
        pa.field("vector", pa.binary(), nullable=False),  # little-endian float32 [dimension], unit length
    ]
)


def schemas_of_tables() -> dict[str, pa.Schema]:
    """All tables of a lake, whether they exist yet or not, with their columns."""
    schemas = {
        "quarantine": QUARANTINE_SCHEMA, "windows": WINDOWS_SCHEMA, "decisions": DECISIONS_SCHEMA,
        "quality": QUALITY_SCHEMA, "text_vectors": TEXT_VECTORS_SCHEMA, "deletions": DELETIONS_SCHEMA,
        "window_profiles": PROFILES_SCHEMA, "user_profiles": USER_PROFILES_SCHEMA,
        "labels": LABELS_SCHEMA, "labels_wanted": LABELS_WANTED_SCHEMA, "readings": READINGS_SCHEMA,
    }
    for feed in FEEDS.values():
        schemas[feed.name] = schemas[f"duplicates_{feed.name}"] = feed.table_schema
    return schemas
