"""The table `user_profiles` is brought up to what events, catalogue and champion say, for the users that changed.

How far it has come stands in the table's own log, noted in the transaction that writes the rows: a process killed at
any moment leaves profiles that say from which versions they were made, and the next run goes on from the last note.

A user's profile is made anew when a row of theirs came, changed or went since that note, and when their segment changes
because time has passed. Everybody's is made anew when there is none yet, when the rules have changed, after four weeks
(what is much to spend in this shop is told of all buyers at once), and when the champion is of another lineage (a full
retrain, the first champion): its vectors lie in another space than those before.
A champion that an update trained moves that space little, so the vectors of users who do nothing stay, with the version
that made them. An item's new category or price is seen by a user's next change, or by `update --whole`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.forgetting import Forgotten
from pipeline.lake import Lake, open_lake
from pipeline.locking import locks_of
from pipeline.quality import faults_of
from pipeline.schema import USER_PROFILES_SCHEMA
from pipeline.settings import Settings
from pipeline.snapshot import Snapshot
from pipeline.tables import LakeError
from pipeline.user_profile_facts import RULES, catalogue_of, facts_of, high_spend_of
from pipeline.window import HOUR

TABLE, SUITE = "user_profiles", "user_profiles"
_RECOMMENDER = "recommend"

# What the top fifth of the buyers spend in a year moves with a season. Recommenders are retrained, and with them all
# profiles made anew, as often; without one nothing else would ask for it.
_RENEWED_DAYS = 28

# Users whose profiles are in memory and in one commit: some 100 MB with a vector of 64.
_AT_ONCE = 20_000


class ProfilesStopped(RuntimeError):
    """Profiles may not be published: they break expectations of severity critical. The table is as before them."""


@dataclass(frozen=True)
class Updated:
    """What one update did.

    Attributes:
        events_version: of the events table, up to which the profiles tell.
        made: profiles that were made anew.
        gone: users whose profile went, with their last event.
        whole: why everybody's was made anew; None: only of those who changed.
        model_version: the champion that was asked; None: there is none.
        warnings: rule of severity warning -> profiles that break it.
    """

    events_version: int
    made: int = 0
    gone: int = 0
    whole: str | None = None
    model_version: int | None = None
    warnings: dict[str, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON's types."""
        return asdict(self)


@dataclass(frozen=True)
class _Champion:
    """Who answers: the version, the first of its lineage, and where its package's files are once they are fetched."""

    version: int
    base: int
    fetched: Callable[[Path], Path]


@dataclass(frozen=True)
class _Plan:
    """Whose profiles are made anew, in order of id; who has one; why all, if all."""

    users: Sequence[str]
    held: frozenset[str]
    high_spend: float | None
    whole: str | None


def update(settings: Settings, *, whole: bool = False) -> Updated:
    """Brings the table up to date; one process at a time, another waits. Safe to repeat.

    Args:
        settings: of the installation.
        whole: everybody's profile is made anew.

    Raises:
        ProfilesStopped: profiles break the suite; those of earlier commits of this run stay, the note does not move.
    """
    with locks_of(settings.home, settings.lock_url)("profiles"):
        lake = open_lake(settings)
        tables = Snapshot(lake, {name: lake.version(name) for name in ("events", "items")})
        if tables.versions["events"] < 0:
            return Updated(-1)
        champion = _champion_of(settings)
        as_of = _ends(tables)
        plan = _plan(lake, tables, champion, as_of, "it was asked for" if whole else None)
        return _made(lake, tables, champion, as_of, plan)


def _champion_of(settings: Settings) -> _Champion | None:
    if _RECOMMENDER not in settings.tasks:
        return None
    from pipeline.checkpoint import Ledger
    from pipeline.registry import open_registry  # imports MLflow

    registry = open_registry(settings)
    version = registry.champion(_RECOMMENDER)
    if version is None:
        return None
    ledger = Ledger.of_tags(registry.tags(_RECOMMENDER, version))
    return _Champion(
        version, ledger.base or version, lambda folder: registry.load_artifacts(_RECOMMENDER, version, folder)
    )


def _ends(tables: Snapshot) -> datetime:
    """The end of the newest landed window of the events: the shop's clock."""
    day = tables.rows_by_day("events")["landed_date"]
    if not len(day):  # every event was deleted
        return datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    windows = tables.arrow("events", ["landed_window"], ds.field("landed_date") == day[-1])["landed_window"]
    newest: datetime = pc.max(windows).as_py()
    return newest + HOUR


def _plan(
    lake: Lake, tables: Snapshot, champion: _Champion | None, as_of: datetime, whole: str | None
) -> _Plan:
    version = tables.versions["events"]
    noted = {name: lake.mark(TABLE, name) for name in ("events", "lineage", "rules", "whole_day")}
    held = lake.arrow(TABLE, columns=["user_id", "segment_until", "high_spend"])
    known = frozenset(held["user_id"].cast(pa.string()).to_pylist())
    after = noted["events"]
    whole = whole or _why_whole(noted, version, champion, as_of)
    if whole is None and after is not None:
        try:
            touched = lake.touched("events", "user_id", after, version)
        except LakeError as error:
            whole = str(error)
        else:
            until = held["segment_until"]
            over = pc.fill_null(pc.less(until, pa.scalar(as_of, until.type)), False)
            due = held["user_id"].cast(pa.string()).filter(over).to_pylist()
            high = pc.max(held["high_spend"]).as_py()
            return _Plan(sorted({*touched, *due}), known, high, None)
    everybody = set(lake.touched("events", "user_id", -1, version))
    return _Plan(sorted(everybody | known), known, high_spend_of(tables), whole)


def _why_whole(
    noted: dict[str, int | None], version: int, champion: _Champion | None, as_of: datetime
) -> str | None:
    if noted["events"] is None:
        return "there are no profiles yet"
    if noted["rules"] != RULES:
        return "the rules have changed"
    if noted["lineage"] != (champion.base if champion else 0):
        return "the champion is of another lineage" if champion else "there is no champion any more"
    if noted["events"] > version:
        return f"the events table went back to version {version}"
    if noted["whole_day"] is None or _day(as_of) - noted["whole_day"] >= _RENEWED_DAYS:
        return f"everybody's are made anew every {_RENEWED_DAYS} days"
    return None


def _day(time: datetime) -> int:
    return int(time.timestamp() // 86_400)


def _made(lake: Lake, tables: Snapshot, champion: _Champion | None, as_of: datetime, plan: _Plan) -> Updated:
    made, gone, warnings = 0, 0, dict[str, int]()
    marks = {"events": tables.versions["events"], "lineage": champion.base if champion else 0, "rules": RULES}
    if plan.whole:
        marks["whole_day"] = _day(as_of)
    catalogue = catalogue_of(tables) if plan.users else None
    with tempfile.TemporaryDirectory(prefix="evergreen-") as scratch:
        compact = _loaded(champion, Path(scratch)) if plan.users else None
        for start in range(0, len(plan.users), _AT_ONCE):
            users = plan.users[start : start + _AT_ONCE]
            facts = facts_of(tables, users, catalogue, plan.high_spend, as_of)
            rows = _profiles(facts, tables, champion, compact, catalogue)
            _refuse_faulty(rows, warnings)
            left = sorted((set(users) & plan.held) - set(rows["user_id"].to_pylist()))
            last = start + _AT_ONCE >= len(plan.users)
            lake.keep(
                TABLE, "user_id", rows, left, marks if last else {}, refused=lambda: Forgotten.of(lake).users
            )
            made, gone = made + len(rows), gone + len(left)
    return Updated(
        tables.versions["events"], made, gone, plan.whole, champion.version if champion else None, warnings
    )


def _loaded(champion: _Champion | None, scratch: Path) -> Any:
    if champion is None:
        return None
    from pipeline.tasks.recommend_answers import load_compact

    return load_compact(champion.fetched(scratch))


def _profiles(
    facts: pa.Table, tables: Snapshot, champion: _Champion | None, compact: Any, catalogue: pa.Table
) -> pa.Table:
    """USER_PROFILES_SCHEMA of what the events say and, where there is a champion, of what it says."""
    from pipeline.tasks.recommend_profiles import answers_for_profiles

    said = answers_for_profiles(compact, facts, catalogue) if compact is not None else None
    count = len(facts)

    def constant(value: int | None) -> pa.Array:
        return pa.array([value] * count, pa.int64())

    columns = {
        **{name: facts[name] for name in facts.column_names},
        "events_version": constant(tables.versions["events"]), "items_version": constant(tables.versions["items"]),
        "next_categories": said["next_categories"] if said else pa.nulls(count),
        "vector": said["vector"] if said else pa.nulls(count),
        "model_version": constant(champion.version if champion else None),
        "model_base": constant(champion.base if champion else None),
    }
    return pa.table([columns[field.name].cast(field.type) for field in USER_PROFILES_SCHEMA],
                    schema=USER_PROFILES_SCHEMA)


def _refuse_faulty(rows: pa.Table, warnings: dict[str, int]) -> None:
    faults = faults_of(SUITE, flat(rows)).to_pylist()
    stopping = [fault for fault in faults if fault["severity"] == "critical"]
    if stopping:
        first = stopping[0]
        user = rows["user_id"][first["row"]].as_py()
        raise ProfilesStopped(
            f"Profiles must meet expectations/{SUITE}.json; {len(stopping)} of {len(rows)} do not, first {user}: "
            f"{first['reason']}: {first['detail']}. They are computed, so the rule or pipeline/user_profile_facts.py "
            "is wrong: look at this user's events (python -m pipeline.lineage user), correct it, and run this again."
        )
    for fault in faults:
        warnings[fault["reason"]] = warnings.get(fault["reason"], 0) + 1


def flat(profiles: pa.Table) -> pa.Table:
    """What the suite judges of each profile (USER_PROFILES_SCHEMA): its lists as counts, sums and extremes."""
    sql = duckdb.connect()
    sql.execute("SET TimeZone = 'UTC'")
    sql.register("profiles", profiles)
    return sql.sql("""
        SELECT user_id, events, segment, visits, orders, spent, price_p50, model_version,
            epoch(last_event) - epoch(first_event) AS known_seconds,
            epoch(last_event) - epoch(as_of) AS ahead_seconds,
            coalesce(list_sum(list_transform(interests, lambda one: one.share)), 0.0) AS interest_shares,
            len(list_filter(interests, lambda one: one.weight <= 0 OR len(one.evidence) = 0)) AS bare_interests,
            len(list_filter(interests, lambda one: len(one.evidence) = one.events AND abs(one.weight - list_sum(
                list_transform(one.evidence, lambda seen: seen.weight))) > 1e-6)) AS unexplained_interests,
            least(price_p25, price_p50 - price_p25, price_p75 - price_p50) AS least_price_step,
            coalesce(list_sum(list_transform(next_categories, lambda one: one.probability)), 0.0) AS next_probability,
            coalesce(len(vector), 0) AS vector_width,
            coalesce(len(list_filter(vector, lambda value: NOT isfinite(value))), 0) AS vector_faults
        FROM profiles""").to_arrow_table()
