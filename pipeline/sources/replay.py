"""Replays a shop's past log as that shop would have landed it: window by window, dirt and all.

The log is read once, all values as text, in the file's order (`log_text.py`); DuckDB maps its columns and sorts its
rows into windows. Values are not judged here (that is the door's work): a quantity of "two" lands as "two", and a row
without a readable time lands in the window of the row before it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources import SourceError
from pipeline.sources.files import json_lines, json_lines_bytes, write_file
from pipeline.sources.log_text import BROKEN, PLACE, literal, quoted, read_as_text
from pipeline.sources.mapping import ColumnMapping, TypeRule
from pipeline.window import HOUR, Window

_EVENT_COLUMNS = (
    "event_id",
    "event_type",
    "event_time",
    "user_id",
    "session_id",
    "item_id",
    "quantity",
    "price",
    "rating",
    "query",
    "basket_id",
)
_DOWNLOAD_SECONDS = 60  # without a byte; a slow mirror still sends some


class MappedLog:
    """A source that replays one file through a mapping."""

    def __init__(self, mapping: ColumnMapping, data: str, cache: Path | None = None) -> None:
        """Takes the mapping and the log's path or URL (downloaded once into `cache`). Reads on first use."""
        self.mapping = mapping
        self.name = mapping.name
        self.absent_columns = mapping.absent_columns
        self._data, self._cache = data, cache

    @property
    def first(self) -> datetime:
        """Start of the first window with a row."""
        return self._start(int(self._events[1][0]))

    @property
    def last(self) -> datetime:
        """End of the last window with a row."""
        return self._start(int(self._events[1][-1])) + HOUR

    @property
    def windows(self) -> tuple[Window, ...]:
        """The hours in which the log has a row."""
        hours = np.unique(np.concatenate([self._items[1], self._events[1]]))
        return tuple(Window(self._start(int(hour))) for hour in hours)

    def land(self, windows: Sequence[Window], landing: Path) -> int:
        """Writes the windows' files; a window in which the log has nothing gets none."""
        return sum(
            self._land(feed, rows, hours, window, landing)
            for feed, (rows, hours) in (("items", self._items), ("events", self._events))
            for window in windows
        )

    def _land(
        self, feed: str, lines: pa.ChunkedArray, hours: np.ndarray, window: Window, landing: Path
    ) -> int:
        hour = int(window.start.timestamp()) // 3600
        begin, end = np.searchsorted(hours, [hour, hour + 1])
        if begin < end:
            write_file(landing, feed, window, "log.jsonl", json_lines_bytes(lines.slice(begin, end - begin)))
        return int(end - begin)

    @staticmethod
    def _start(hour: int) -> datetime:
        return datetime.fromtimestamp(hour * 3600, UTC)

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        """DuckDB with the table `log`: the mapped rows, `place` (in the file), `moment` (UTC), `hour`."""
        path = _local_path(self._data, self._cache)
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("raw", read_as_text(connection, path, self.mapping))
        try:
            connection.execute(
                f"CREATE TABLE mapped AS SELECT {quoted(PLACE)} AS place, {quoted(BROKEN)} AS broken, "
                f"{_event_sql(self.mapping, connection)} FROM raw"
            )
        except duckdb.Error as error:
            raise SourceError(
                f"Mapping {self.name!r} cannot be applied to {path}: {error}. Correct `time.formats` where it names "
                "a format."
            ) from error
        connection.execute(
            # A row whose time cannot be read was written beside its neighbours. So was one whose clock was ahead: no
            # past log has rows of later than this moment, and the door says of each that it is from the future.
            "CREATE TABLE log AS SELECT * EXCLUDE said, coalesce(said,"
            " last_value(said IGNORE NULLS) OVER (ORDER BY place),"
            " first_value(said IGNORE NULLS) OVER"
            " (ORDER BY place ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)) AS hour FROM"
            " (SELECT *, CASE WHEN moment <= now() THEN epoch_us(moment) // 3600000000 END AS said FROM mapped)"
        )
        if connection.execute("SELECT count(hour) FROM log").fetchall()[0][0] == 0:
            raise SourceError(self._no_time(connection, path))
        self._refuse_numberless(connection, path)
        return connection

    def _refuse_numberless(self, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
        """Refuses a log in which a column of numbers has none: the door would quarantine every row that has a value."""
        for key in ("quantity", "price", "rating"):
            numbers, sample = connection.sql(
                f"SELECT count(TRY_CAST({key} AS DOUBLE)), list(DISTINCT {key} ORDER BY {key})[:3] FROM mapped "
                f"WHERE trim({key}) <> ''"
            ).fetchall()[0]
            if sample and not numbers:
                raise SourceError(
                    f"Mapping {self.name!r}: no value of `columns.{key}` = {self.mapping.columns[key]!r} in {path} is "
                    f"a number; some values are {sample}. Write numbers like 1234.50: with a decimal point, without "
                    "separators of thousands and without a currency."
                )

    def _no_time(self, connection: duckdb.DuckDBPyConnection, path: Path) -> str:
        sample = [row[0] for row in connection.execute("SELECT event_time FROM mapped LIMIT 3").fetchall()]
        if not sample:
            return f"The log {path} has no rows. Give the path of another file."
        if connection.execute("SELECT count(moment) FROM mapped").fetchall()[0][0]:
            return (
                f"The log {path} must be of the past; all times of `time.column` = {self.mapping.time_column!r} lie in "
                f"the future, the first are {sample}. Correct `time.formats`, `time.unit_seconds` or `time.origin`."
            )
        return (
            f"Mapping {self.name!r}: no value of `time.column` = {self.mapping.time_column!r} "
            f"in {path} is a time. "
            f"Tried ISO 8601 and formats {list(self.mapping.time_formats)}; the first values are {sample}. "
            "Add a strptime format to `time.formats`, or `time.unit_seconds` where the time is a number."
        )

    @cached_property
    def _events(self) -> tuple[pa.ChunkedArray, np.ndarray]:
        """All events as JSON lines, in order of window and file, and the hour (since 1970) of each."""
        columns = ", ".join(_EVENT_COLUMNS)
        table = self._connection.sql(f"SELECT hour, broken, {columns} FROM log ORDER BY hour, place").to_arrow_table()
        lines, hours = self._lines(table.drop_columns("broken"))
        return pc.coalesce(table["broken"], lines), hours

    @cached_property
    def _items(self) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Catalogue changes as JSON lines: at most one per item and hour, only where something is new."""
        keys = [
            key
            for key in ("title", "description", "category", "brand", "price")
            if key in self.mapping.columns
        ]
        if not keys:
            return pa.chunked_array([[]], pa.string()), np.zeros(0, np.int64)
        return self._lines(self._connection.sql(_items_sql(keys)).to_arrow_table())

    @staticmethod
    def _lines(table: pa.Table) -> tuple[pa.ChunkedArray, np.ndarray]:
        hours = table["hour"].to_numpy()
        if not len(table):  # no item has a price above 0
            return pa.chunked_array([[]], pa.string()), hours
        named = [
            name for name in table.column_names if name != "hour" and table[name].null_count < len(table)
        ]
        text = table.select(named)
        return json_lines(text.cast(pa.schema([(name, pa.string()) for name in named]))), hours


def _event_sql(mapping: ColumnMapping, connection: duckdb.DuckDBPyConnection) -> str:
    """The select list that turns raw columns into event and item columns and the moment."""
    names = [name for name in connection.table("raw").columns if name not in (PLACE, BROKEN)]
    chosen = {key: quoted(column) for key, column in mapping.columns.items()}
    # the whole row decides the id, so that an exact copy of a row is the same event
    whole = (
        "md5(concat_ws(chr(31), " + ", ".join(f"coalesce({quoted(name)}, chr(30))" for name in names) + "))"
    )
    user = chosen.get("user", chosen.get("session", "NULL"))
    moment = _moment_sql(mapping)
    iso = f"strftime(({moment}) AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%gZ')"
    parts = {
        "event_id": chosen.get("event_id", whole),
        "event_type": _type_sql(mapping),
        "event_time": f"coalesce({iso}, {quoted(mapping.time_column)})",
        "user_id": user,
        "session_id": chosen.get("session", "NULL"),
        "item_id": chosen["item"],
        "quantity": _signed_sql("quantity", chosen, mapping.type_rules),
        "price": _signed_sql("price", chosen, mapping.type_rules),
        "rating": chosen.get("rating", "NULL"),
        "query": chosen.get("query", "NULL"),
        "basket_id": chosen.get("basket", "NULL"),
        **{name: chosen.get(name, "NULL") for name in ("title", "description", "category", "brand")},
    }
    columns = ", ".join(f"CAST({sql} AS VARCHAR) AS {name}" for name, sql in parts.items())
    return f"{columns}, {moment} AS moment"


def _moment_sql(mapping: ColumnMapping) -> str:
    moment = _time_sql(mapping)
    # what a datetime can hold, and the hour's end with it; any other time is one that cannot be read
    return f"CASE WHEN {moment} >= '0001-01-01 00:00:00Z' AND {moment} < '9999-12-31 00:00:00Z' THEN {moment} END"


def _time_sql(mapping: ColumnMapping) -> str:
    column = quoted(mapping.time_column)
    if mapping.time_unit_seconds:
        microseconds = f"round(TRY_CAST({column} AS DOUBLE) * {mapping.time_unit_seconds * 1e6})"
        step = f"to_microseconds(CAST({microseconds} AS BIGINT))"
        return f"TRY(CAST({literal(mapping.time_origin)} AS TIMESTAMPTZ) + {step})"
    offset = rf"regexp_matches({column}, ':\d\d.*([zZ]|[+-]\d\d(:?\d\d)?)\s*$')"
    word = rf"regexp_matches({column}, ':\d\d\S*\s+[A-Za-z]')"
    joined = rf"regexp_replace({column}, '\s+([zZ]|[+-]\d\d(:?\d\d)?)\s*$', '\1')"  # 10:05:00 -0400, as shops export
    tried = [
        # the cast to a time without a zone passes over what stands behind the time: UTC, Europe/Berlin, PM
        f"CASE WHEN {offset} THEN TRY_CAST({joined} AS TIMESTAMPTZ) WHEN {word} THEN TRY_CAST({column} AS TIMESTAMPTZ) "
        f"ELSE {_local_sql(f'TRY_CAST({column} AS TIMESTAMP)', mapping)} END"
    ]
    for text in mapping.time_formats:
        read = f"try_strptime({column}, {literal(text)})"
        tried.append(read if re.search(r"%[zZ]", text.replace("%%", "")) else _local_sql(read, mapping))
    return f"coalesce({', '.join(tried)})"


def _local_sql(naive: str, mapping: ColumnMapping) -> str:
    return f"timezone({literal(mapping.zone)}, {naive})"


def _rule_sql(rule: TypeRule) -> str:
    column = quoted(rule.column)
    if rule.starts_with is not None:
        return f"coalesce(starts_with({column}, {literal(rule.starts_with)}), false)"
    return f"coalesce({column} = {literal(rule.equals or '')}, false)"


def _type_sql(mapping: ColumnMapping) -> str:
    cases = [f"WHEN {_rule_sql(rule)} THEN {literal(rule.type)}" for rule in mapping.type_rules]
    other = "NULL" if mapping.default_type is None else literal(mapping.default_type)
    if mapping.type_column:
        column = quoted(mapping.type_column)
        cases += [
            f"WHEN {column} = {literal(value)} THEN {literal(kind)}"
            for value, kind in mapping.type_values.items()
        ]
        other = f"coalesce({column}, {other})"
    return f"CASE {' '.join(cases)} ELSE {other} END" if cases else other


def _signed_sql(key: str, chosen: dict[str, str], rules: tuple[TypeRule, ...]) -> str:
    if key not in chosen:
        return "NULL"
    unsigned = [_rule_sql(rule) for rule in rules if key in rule.make_positive]
    if not unsigned:
        return chosen[key]
    return f"CASE WHEN {' OR '.join(unsigned)} THEN ltrim({chosen[key]}, '-') ELSE {chosen[key]} END"


def _items_sql(keys: list[str]) -> str:
    """Changes of what an hour's rows say about an item.

    The text is the last that the hour's rows give. The price is their median, because one item sells at
    several prices (by quantity); rows with a price of 0 or less are the shop's own bookings
    ("damaged", "?") and say nothing of the catalogue.
    """
    paid = "WHERE coalesce(TRY_CAST(price AS DOUBLE) > 0, false)" if "price" in keys else ""
    said = ", ".join(
        "CAST(quantile_disc(TRY_CAST(price AS DOUBLE), 0.5) AS VARCHAR) AS price"
        if key == "price"
        else f"arg_max({key}, place) AS {key}"
        for key in keys  # arg_max passes over nulls
    )
    kept = ", ".join(f"last_value({key} IGNORE NULLS) OVER so_far AS {key}" for key in keys)
    before = ", ".join(f"lag({key}) OVER so_far AS before_{key}" for key in keys)
    changed = " OR ".join(f"{key} IS DISTINCT FROM before_{key}" for key in keys)
    columns = ", ".join(keys)
    return f"""
        WITH hourly AS (
            SELECT item_id, hour, {said} FROM log {paid} GROUP BY item_id, hour HAVING item_id IS NOT NULL),
        filled AS (
            SELECT item_id, hour, {kept} FROM hourly WINDOW so_far AS (PARTITION BY item_id ORDER BY hour)),
        compared AS (SELECT *, {before} FROM filled WINDOW so_far AS (PARTITION BY item_id ORDER BY hour))
        SELECT hour, md5(concat_ws(chr(31), item_id, hour)) AS change_id, item_id,
            strftime(make_timestamp(hour * 3600000000), '%Y-%m-%dT%H:%M:%SZ') AS change_time, {columns}
        FROM compared WHERE {changed} ORDER BY hour, item_id"""


def _local_path(data: str, cache: Path | None) -> Path:
    """The log as a local file; a URL is downloaded once into the cache folder."""
    try:
        scheme = urlsplit(data).scheme
    except ValueError as error:
        raise SourceError(f"The log's URL must be one like https://host/log.csv; {data!r} is none: {error}.") from error
    if scheme not in ("http", "https"):
        path = Path(data)
        if not path.is_file():
            raise SourceError(
                f"The log must be one file or an http(s) URL; {data!r} is neither. Check the path; put the files of a "
                "folder together into one."
            )
        return path
    if cache is None:
        raise SourceError(f"A log at a URL needs a folder to keep it in; received {data!r} without `cache`.")
    path = (
        cache / f"{hashlib.sha256(data.encode()).hexdigest()[:16]}-{Path(urlsplit(data).path).name or 'log'}"
    )
    if not path.exists():
        _download(data, path)
    return path


def _download(url: str, path: Path) -> None:
    import httpx

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # As it lies there: a packed file whose server calls that an encoding would come unpacked, under a packed name.
    packed, headers = path.suffix.lower() in (".gz", ".zst"), {"Accept-Encoding": "identity"}
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_DOWNLOAD_SECONDS, headers=headers) as answer:
            answer.raise_for_status()
            with unfinished.open("wb") as file:
                for chunk in answer.iter_raw() if packed else answer.iter_bytes():
                    file.write(chunk)
        os.replace(unfinished, path)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: a host that cannot be one
        raise SourceError(
            f"The log at {url} could not be downloaded: {error}. Download it by hand and give its path."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
