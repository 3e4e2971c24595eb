"""What is known of each user, in one row that says why: the table `user_profiles`, read, shown and brought up to date.

    python -m pipeline.user_profiles show USER [--json]
    python -m pipeline.user_profiles update [--whole]

A profile holds interests by category, price band, rhythm, recency, segment (`pipeline/user_profile_facts.py` has the
rules and where they come from), and from the champion of `recommend` the categories to offer next and the user's
vector. Beside every statement stand the events that led to it, and the versions of the tables and of the model that it
was made from. Users are masked ids: a raw one is masked before anything is looked up or printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.forgetting import masked_forms
from pipeline.lake import Lake, open_lake
from pipeline.settings import SettingsError, read_settings
from pipeline.tables import text_field

if TYPE_CHECKING:
    from pipeline.settings import Settings

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Evidence:
    """An event that led to an interest.

    Attributes:
        event_id, event_type, event_time, item_id: the event.
        weight: what it adds to the interest (a return takes), in purchases on the day of the user's last event.
        landed_window, source_file, source_row: where it came from.
    """

    event_id: str
    event_type: str
    event_time: datetime
    item_id: str
    weight: float
    landed_window: datetime
    source_file: str
    source_row: int


@dataclass(frozen=True)
class Interest:
    """A category that a user is drawn to; the fields are those of the table's column `interests`."""

    category: str
    weight: float
    share: float
    events: int
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Priced:
    """A purchase that is a quartile of what a user pays; the fields are those of the column `price_evidence`."""

    event_id: str
    event_time: datetime
    item_id: str
    price: float
    usual_price: float
    ratio: float


@dataclass(frozen=True)
class NextCategory:
    """A category to offer next; the fields are those of the column `next_categories`."""

    category: str
    probability: float
    items: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """One user's row; the fields are those of USER_PROFILES_SCHEMA, which says what each is."""

    user_id: str
    as_of: datetime
    events_version: int
    items_version: int
    events: int
    first_event: datetime
    last_event: datetime
    last_event_id: str
    last_purchase: datetime | None
    last_purchase_id: str | None
    interests: tuple[Interest, ...]
    price_band: str | None
    price_purchases: int
    price_p25: float | None
    price_p50: float | None
    price_p75: float | None
    price_evidence: tuple[Priced, ...]
    visits: int
    days_between_visits: float | None
    hours: tuple[int, ...]
    weekdays: tuple[int, ...]
    orders: int
    spent: float
    high_spend: float | None
    segment: str
    segment_until: datetime | None
    regular_categories: tuple[str, ...]
    next_categories: tuple[NextCategory, ...] | None
    vector: tuple[float, ...] | None
    model_version: int | None
    model_base: int | None

    def days_since(self, at: datetime) -> dict[str, float | None]:
        """Days from the last event and the last purchase (None: never bought) until `at`: the recency."""
        last = {"last_event": self.last_event, "last_purchase": self.last_purchase}
        return {name: None if time is None else (at - time).total_seconds() / 86400.0 for name, time in last.items()}

    def as_json(self) -> dict[str, Any]:
        """JSON's types; times in ISO 8601."""
        found: dict[str, Any] = _plain(self)
        return found


_NESTED: dict[str, Any] = {
    "interests": lambda row: Interest(**{**row, "evidence": tuple(Evidence(**one) for one in row["evidence"])}),
    "price_evidence": lambda row: Priced(**row),
    "next_categories": lambda row: NextCategory(**{**row, "items": tuple(row["items"])}),
}


def read_profile(lake: Lake, user: str) -> Profile | None:
    """A user's profile; None where there is none.

    Args:
        lake: where the table is.
        user: the masked id.
    """
    rows = lake.arrow("user_profiles", filter=text_field("user_id") == user).to_pylist()
    if not rows:
        return None
    row = rows[0]
    for name, value in row.items():
        if isinstance(value, list):
            row[name] = tuple(_NESTED[name](one) if name in _NESTED else one for one in value)
    return Profile(**row)


def find_profile(lake: Lake, user: str, settings: Settings) -> Profile | None:
    """A user's profile by the id as the shop has it, or masked."""
    found = (read_profile(lake, form) for form in masked_forms(user, settings))
    return next((one for one in found if one is not None), None)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


# -- in words ---------------------------------------------------------------------------------------------------


def sentences_of(profile: Profile) -> list[str]:
    """What a profile says beside its interests, in sentences that say why."""
    days = profile.days_since(profile.as_of)
    said = [
        f"User {profile.user_id}, as of {profile.as_of:%Y-%m-%dT%H:%MZ}: {profile.events} events in {profile.visits} "
        f"visits (table events at version {profile.events_version}, items at {profile.items_version}).",
        f"Last seen {days['last_event']:.1f} days before (event {profile.last_event_id}).",
        _segment_said(profile, days["last_purchase"]),
    ]
    if profile.price_purchases:
        said.append(_prices_said(profile))
    if profile.days_between_visits is not None:
        said.append(_rhythm_said(profile))
    if profile.regular_categories:
        said.append(f"Buys regularly: {', '.join(profile.regular_categories)}.")
    if profile.next_categories:
        said.append(f"To offer next, by recommend version {profile.model_version}: " + "; ".join(
            f"{one.category} ({one.probability:.1%}: {', '.join(one.items)})" for one in profile.next_categories
        ) + ".")
    if profile.vector is not None:
        said.append(
            f"Vector of {len(profile.vector)} numbers by version {profile.model_version} "
            f"(comparable within the lineage of version {profile.model_base})."
        )
    return said


def _segment_said(profile: Profile, days: float | None) -> str:
    if days is None:
        return f"Segment {profile.segment}: never bought."
    high = f" (high from {profile.high_spend:,.2f} on)" if profile.high_spend is not None else ""
    until = f"; so until {profile.segment_until:%Y-%m-%d} if nothing happens" if profile.segment_until else ""
    return (
        f"Segment {profile.segment}: {profile.orders} orders and {profile.spent:,.2f}{high} spent in the year up to "
        f"the last purchase, {days:.1f} days before (event {profile.last_purchase_id}){until}."
    )


def _prices_said(profile: Profile) -> str:
    band = f"Price band {profile.price_band}" if profile.price_band else "No price band (too few purchases)"
    parts = ", ".join(
        f"{one.ratio:.2f} (event {one.event_id}: {one.item_id} at {one.price:,.2f}, usual {one.usual_price:,.2f})"
        for one in profile.price_evidence
    )
    return f"{band}: quartiles of {profile.price_purchases} purchases over their category's usual price: {parts}."


def _rhythm_said(profile: Profile) -> str:
    hours = ", ".join(f"{hour:02d}" for hour in profile.hours)
    weekdays = ", ".join(_WEEKDAYS[day - 1] for day in profile.weekdays)
    mostly = f", mostly at {hours} h UTC" if hours else ""
    return (
        f"Rhythm: {profile.days_between_visits:.1f} days between visits (median){mostly}"
        f"{f', on {weekdays}' if weekdays else ''}."
    )


def _print(profile: Profile, console: Any) -> None:
    from rich.table import Table

    for sentence in sentences_of(profile):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    table = Table("interest", "share", "weight", "events", "because of", title="Interests", title_justify="left")
    for one in profile.interests:
        because = "\n".join(
            f"{seen.weight:+.3f} {seen.event_type} of {seen.item_id}, {seen.event_time:%Y-%m-%d %H:%M}, event "
            f"{seen.event_id} ({seen.source_file}, row {seen.source_row})" for seen in one.evidence
        )
        table.add_row(one.category, f"{one.share:.0%}", f"{one.weight:.3f}", str(one.events), because)
    console.print(table, highlight=False, markup=False)


# -- from a shell -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Shows one profile, or brings the table up to date; returns the process's exit status."""
    from rich.console import Console

    chosen = _parser().parse_args(arguments)
    try:
        settings = read_settings()
        return int(chosen.run(settings, chosen, Console()))
    except SettingsError as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1


def _show(settings: Settings, chosen: argparse.Namespace, console: Any) -> int:
    from rich.console import Console

    profile = find_profile(open_lake(settings), chosen.user.strip(), settings)
    if profile is None:
        Console(stderr=True).print(
            "There is no profile of this user: no event of them was taken in, they were forgotten, or the table is "
            "behind (python -m pipeline.user_profiles update).", style="red", highlight=False, markup=False,
        )
        return 1
    if chosen.json:
        print(json.dumps(profile.as_json(), indent=2))
    else:
        _print(profile, console)
    return 0


def _update(settings: Settings, chosen: argparse.Namespace, console: Any) -> int:
    from rich.console import Console

    from pipeline.registry_errors import RegistryError
    from pipeline.user_profile_updates import ProfilesStopped, update

    try:
        done = update(settings, whole=chosen.whole)
    except (ProfilesStopped, RegistryError) as error:
        Console(stderr=True).print(str(error), style="red", highlight=False, markup=False)
        return 1
    if chosen.json:
        print(json.dumps(done.as_json(), indent=2))
        return 0
    why = f" Everybody's, because {done.whole}." if done.whole else ""
    console.print(
        f"{done.made:,} profiles made, {done.gone:,} gone; they tell up to version {done.events_version} of events."
        f"{why}", highlight=False, markup=False, soft_wrap=True,
    )
    for rule, count in (done.warnings or {}).items():
        console.print(f"Warning: {rule}: {count:,} profiles (expectations/user_profiles.json).", markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.user_profiles",
        description="Shows what is known of a user and which events led to it, or brings all profiles up to date. "
        "The installation is the one of the environment's EVERGREEN_* variables.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.add_argument("--json", action="store_true", help="print JSON")
        made.set_defaults(run=run)
        return made

    show = command("show", _show, "Show a user's profile with its evidence.")
    show.add_argument("user", metavar="USER", help="the id as the shop has it, or masked as the tables have it")
    renew = command("update", _update, "Make the profiles of all users who changed anew.")
    renew.add_argument("--whole", action="store_true", help="everybody's, such as after categories were renamed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
