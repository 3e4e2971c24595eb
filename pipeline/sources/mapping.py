"""A mapping file: one small TOML that says which columns of a shop's log are user, item, time, type, ...

It is all that a new shop writes to be replayed; `online_retail.toml` is one. Everything that can be wrong
in it is told with its key, the rule, and what there is instead. What a mapping does with a log is in
`replay.py`.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.schema import EVENT_TYPES, EVENTS, ITEMS, MESSAGES
from pipeline.sources import SourceError

# key below [columns] -> (feed, column that it fills)
FIELDS: dict[str, tuple[str, str]] = {
    "event_id": ("events", "event_id"),
    "user": ("events", "user_id"),
    "session": ("events", "session_id"),
    "item": ("events", "item_id"),
    "quantity": ("events", "quantity"),
    "price": ("events", "price"),
    "rating": ("events", "rating"),
    "query": ("events", "query"),
    "basket": ("events", "basket_id"),
    "title": ("items", "title"),
    "description": ("items", "description"),
    "category": ("items", "category"),
    "brand": ("items", "brand"),
}
FORMATS = ("csv", "jsonl", "parquet")
_ALWAYS_THERE = {"event_id", "event_type", "event_time", "change_id", "item_id", "change_time"}


class MappingError(SourceError):
    """A mapping file is wrong; the message names the file, the key, the rule and the value."""


@dataclass(frozen=True)
class TypeRule:
    """Rows whose `column` starts with (or equals) a value are of a type.

    Attributes:
        column: of the log.
        type: an event type of the schema.
        starts_with: the value's beginning; None: `equals` decides.
        equals: the whole value.
        make_positive: keys (`quantity`, `price`) whose sign is dropped.
    """

    column: str
    type: str
    starts_with: str | None = None
    equals: str | None = None
    make_positive: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColumnMapping:
    """What a mapping file says.

    Attributes:
        name: the source's name.
        columns: key of `FIELDS` -> column of the log.
        time_column: column of the log with the event's time.
        time_formats: strptime formats tried after ISO 8601; empty: ISO alone.
        time_unit_seconds: seconds of one step where the time is a number from `time_origin` on; None: text.
        time_origin: ISO 8601 time that the number counts from.
        zone: time zone of times that name none.
        default_type: type of rows that no rule and no type column decide.
        type_column: column of the log with the type.
        type_values: value of the type column -> event type; values not named land as they are.
        type_rules: tried in order, before the type column.
        format: `csv`, `jsonl` or `parquet`; None: told from the file's name.
    """

    name: str
    columns: Mapping[str, str]
    time_column: str
    time_formats: tuple[str, ...] = ()
    time_unit_seconds: float | None = None
    time_origin: str = "1970-01-01T00:00:00Z"
    zone: str = "UTC"
    default_type: str | None = None
    type_column: str | None = None
    type_values: Mapping[str, str] = field(default_factory=dict)
    type_rules: tuple[TypeRule, ...] = ()
    format: str | None = None

    @property
    def absent_columns(self) -> frozenset[str]:
        """What the replayed log can never carry, as `feed.column`."""
        mapped = {FIELDS[key] for key in self.columns}
        if "session" in self.columns:
            mapped.add(("events", "user_id"))  # a session stands in for an unknown user
        catalogue = any(feed == "items" for feed, _ in mapped)
        if "price" in self.columns:
            mapped.add(("items", "price"))
            catalogue = True
        absent = {
            f"{feed.name}.{name}"
            for feed in (EVENTS, ITEMS)
            for name in feed.raw_names
            if (feed.name, name) not in mapped
            and not (name in _ALWAYS_THERE and (feed is EVENTS or catalogue))
        }
        return frozenset(absent | {f"messages.{name}" for name in MESSAGES.raw_names})

    def log_columns(self) -> dict[str, str]:
        """Every column of the log that the mapping names: key in the file -> column."""
        named = {f"columns.{key}": column for key, column in self.columns.items()} | {
            "time.column": self.time_column
        }
        if self.type_column:
            named["type.column"] = self.type_column
        return named | {f"type.rules[{i}].column": rule.column for i, rule in enumerate(self.type_rules)}

    def check_against(self, there: Iterable[str], where: str) -> None:
        """Raises MappingError where the log lacks a column that the mapping names."""
        there = list(there)
        for key, column in self.log_columns().items():
            if column not in there:
                near = difflib.get_close_matches(column, there, 1, 0.5)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise MappingError(
                    f"Mapping {self.name!r}: `{key}` names the column {column!r}, "
                    f"which {where} does not have.{hint} "
                    f"It has: {', '.join(there)}."
                )


def read_mapping(path: Path) -> ColumnMapping:
    """The mapping in a TOML file.

    Raises:
        MappingError: no such file, not TOML, an unknown key, a missing key, or a value outside its rule.
    """
    return mapping_of(text_of(path), path)


def text_of(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        MappingError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have put a mark before it
    except FileNotFoundError as error:
        raise MappingError(f"The mapping file {path} does not exist. Start from {_example()}.") from error
    except OSError as error:
        raise MappingError(f"The mapping file {path} must be a file that can be read; {error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MappingError(f"The mapping file {path} is not TOML: {error}. Compare it with {_example()}.") from error


def mapping_of(text: dict[str, Any], path: Path) -> ColumnMapping:
    """The mapping that a parsed TOML says; `path` is named where it is wrong.

    Raises:
        MappingError: see `read_mapping`.
    """
    return _Reader(path).mapping(text)


def _example() -> str:
    return str(Path(__file__).with_name("online_retail.toml"))


class _Reader:
    """Turns a parsed mapping file into a ColumnMapping, or says which key is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mapping(self, text: dict[str, Any]) -> ColumnMapping:
        self._known("", text, ("name", "format", "columns", "time", "type"))
        columns = self._table(text, "columns")
        self._known("columns", columns, tuple(FIELDS))
        if "item" not in columns:
            raise self._wrong("columns.item", "is required", None)
        time = self._table(text, "time")
        self._known("time", time, ("column", "formats", "zone", "unit_seconds", "origin"))
        kinds = self._table(text, "type")
        self._known("type", kinds, ("default", "column", "values", "rules"))
        if not kinds.keys() & {"default", "column"}:
            raise self._wrong("type", "needs a `default` or a `column`", kinds)
        kind = text.get("format")
        if kind is not None and kind not in FORMATS:
            raise self._wrong("format", f"must be one of {', '.join(FORMATS)}", kind)
        if kinds.get("default") is not None:
            self._event_type("type.default", kinds["default"])
        values = self._table(kinds, "values", "type") if "values" in kinds else {}
        for value, event_type in values.items():
            self._event_type(f"type.values.{value}", event_type)
        mapping = ColumnMapping(
            name=self._string("name", text.get("name", self._path.stem)),
            columns={key: self._string(f"columns.{key}", value) for key, value in columns.items()},
            time_column=self._string("time.column", time.get("column")),
            time_formats=self._texts("time.formats", time.get("formats", [])),
            time_unit_seconds=self._positive("time.unit_seconds", time.get("unit_seconds")),
            time_origin=self._time("time.origin", time.get("origin", ColumnMapping.time_origin)),
            zone=self._zone(time.get("zone", "UTC")),
            default_type=kinds.get("default"),
            type_column=self._string("type.column", kinds["column"]) if "column" in kinds else None,
            type_values=values,
            type_rules=tuple(
                self._rule(i, rule) for i, rule in enumerate(self._list("type.rules", kinds.get("rules", [])))
            ),
            format=kind,
        )
        self._heeded(time, kinds)
        return mapping

    def _heeded(self, time: dict[str, Any], kinds: dict[str, Any]) -> None:
        """Refuses a key that nothing would heed beside the others: whoever wrote it meant something by it."""
        if "values" in kinds and "column" not in kinds:
            raise self._wrong("type.values", "is of the values of `type.column`, which is not named", kinds["values"])
        if "formats" in time and "unit_seconds" in time:
            raise self._wrong("time.formats", "is for times that are text, and `unit_seconds` for numbers; give one",
                              time["formats"])
        if "origin" in time and "unit_seconds" not in time:
            raise self._wrong("time.origin", "is where a number counts from, and needs `unit_seconds`", time["origin"])

    def _rule(self, number: int, rule: object) -> TypeRule:
        key = f"type.rules[{number}]"
        if not isinstance(rule, dict):
            raise self._wrong(key, "must be a table, like [[type.rules]]", rule)
        self._known(key, rule, ("column", "starts_with", "equals", "type", "make_positive"))
        if len(rule.keys() & {"starts_with", "equals"}) != 1:
            raise self._wrong(key, "needs either `starts_with` or `equals`", rule)
        self._event_type(f"{key}.type", rule.get("type"))
        for deciding in rule.keys() & {"starts_with", "equals"}:
            if not isinstance(rule[deciding], str):
                raise self._wrong(f"{key}.{deciding}", "must be a text", rule[deciding])
        make_positive = self._texts(f"{key}.make_positive", rule.get("make_positive", []))
        for name in make_positive:
            if name not in ("quantity", "price"):
                raise self._wrong(f"{key}.make_positive", "may hold quantity and price", name)
        return TypeRule(
            column=self._string(f"{key}.column", rule.get("column")),
            type=rule["type"],
            starts_with=rule.get("starts_with"),
            equals=rule.get("equals"),
            make_positive=make_positive,
        )

    def _event_type(self, key: str, value: object) -> None:
        if value not in EVENT_TYPES:
            raise self._wrong(key, f"must be one of {', '.join(EVENT_TYPES)}", value)

    def _known(self, where: str, table: dict[str, Any], keys: tuple[str, ...]) -> None:
        for key, value in table.items():
            if key not in keys:
                full = f"{where}.{key}" if where else key
                raise self._wrong(full, f"is not a key; the keys here are {', '.join(keys)}", value)

    def _table(self, text: dict[str, Any], key: str, where: str = "") -> dict[str, Any]:
        if not isinstance(text.get(key), dict):
            full = f"{where}.{key}" if where else key
            raise self._wrong(full, f"must be a table, like [{full}]", text.get(key))
        return text[key]

    def _list(self, key: str, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong(key, "must be a list, like [\"…\"]", value)
        return value

    def _texts(self, key: str, value: object) -> tuple[str, ...]:
        return tuple(self._string(key, one) for one in self._list(key, value))

    def _time(self, key: str, value: object) -> str:
        text = self._string(key, value)
        try:
            datetime.fromisoformat(text)
        except ValueError as error:
            raise self._wrong(key, "must be an ISO 8601 time like 1970-01-01T00:00:00Z", value) from error
        return text

    def _string(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "must be a text", value)
        return value

    def _positive(self, key: str, value: object) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(key, "must be a number above 0", value)
        return value

    def _zone(self, value: object) -> str:
        try:
            return str(ZoneInfo(self._string("time.zone", value)))
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: a folder of zones, like Europe
            raise self._wrong("time.zone", "must be an IANA time zone like Europe/London", value) from error

    def _wrong(self, key: str, rule: str, value: object) -> MappingError:
        received = "it is missing" if value is None else f"received {value!r}"
        return MappingError(f"Mapping {self._path}: `{key}` {rule}; {received}. An example is {_example()}.")
