"""What an installation of Evergreen is told from outside: places, the masking key, limits.

All settings come from the environment (`EVERGREEN_*`), are checked once when read, and are frozen.
A function gets the values that it needs, not this object, unless it wires an entire job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pipeline.window import Window

ENGINES = ("duckdb", "spark")
FEED_NAMES = ("items", "events", "messages")  # pipeline/schema.py has what is in them; it takes pyarrow to read it
DERIVED = ("profiles",)  # has no learner, so no gate, no version and no place among the tasks that have them

REPOSITORY = Path(__file__).resolve().parent.parent


class SettingsError(ValueError):
    """A setting is missing or out of its range; the message names the variable, the rule and the value."""


@dataclass(frozen=True)
class Settings:
    """One installation. Its repr leaves out what is secret, and addresses, which may carry a password.

    Attributes:
        home: folder of everything that this installation writes (`EVERGREEN_HOME`).
        landing: root of the landing zone (`EVERGREEN_LANDING`, default `<home>/landing`).
        lake: root of the Delta tables (`EVERGREEN_LAKE`, default `<home>/lake`).
        artifacts: where the models' files go (`EVERGREEN_ARTIFACTS`, default `<home>/mlflow/artifacts`). Landing zone,
            lake and artifacts are folders or URLs of an object store (`s3://bucket/path`), which is told by AWS' own
            variables: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, …
        reports: folder of the HTML pages and pictures (`EVERGREEN_REPORTS`, default `<home>/reports`).
        tracking_uri: MLflow's address (`EVERGREEN_MLFLOW`, default a SQLite file below home, good for tests).
        mask_key: secret key of the user id masking (`EVERGREEN_MASK_KEY`, at least 32 characters).
        lock_url: PostgreSQL that holds the locks between machines (`EVERGREEN_LOCK_URL`);
            None: file locks below `home`, right for one machine.
        tasks: the tasks that are on and learn (`EVERGREEN_TASKS`, comma separated).
        derived: what `EVERGREEN_TASKS` names besides: tables that are kept up to date and learn nothing of their own,
            any of `DERIVED`.
        lateness_hours: a row may land this long after it happened and still count
            (`EVERGREEN_LATENESS_HOURS`). 48: a shop's exporter that was down for a day catches up within the next.
        ingest_minute: so many minutes after its end an hour is taken in (`EVERGREEN_INGEST_MINUTE`, 0 to 29: updates
            follow at 30): as many as the shop's exporter needs to drop the hour's last file.
        absent_columns: columns that this shop's feeds never carry, as `feed.column`
            (`EVERGREEN_ABSENT_COLUMNS`); their expectations are left out.
        expected_feeds: feeds that alert when a window brings no file (`EVERGREEN_EXPECTED_FEEDS`).
        seed: seed of everything drawn at random (`EVERGREEN_SEED`).
        engine: what runs table work over long history (`EVERGREEN_ENGINE`): `duckdb` or `spark`; see
            pipeline/engine.py.
        spark_rows: Great Expectations judges a window's rows on Spark from so many on (`EVERGREEN_SPARK_ROWS`, at
            least 1); None: always on pandas. See pipeline/judging_on_spark.py.
        workers: processes that make a retrain's steps together (`EVERGREEN_WORKERS`); see pipeline/workers.py.
        encoder: the text encoder's preset (`EVERGREEN_ENCODER`): `minilm`, a folder, or any KerasHub
            or Hugging Face preset of a BERT-like encoder.
        schedule_end: no hourly ingest is scheduled for windows from here on (`EVERGREEN_SCHEDULE_END`, ISO 8601):
            a replayed log has an end, and its hours come by hand and by backfill. None: the shop is live.
        pages_url: address under which browsers find `reports` (`EVERGREEN_PAGES_URL`); None: by path alone.
        pages_days: quality and lineage pages go so many days after they were written, but for what is open
            (`EVERGREEN_PAGES_DAYS`, at least 1; pipeline/old_pages.py). 90: people look back over a quarter.
        alert_url: takes each alert as JSON by POST (`EVERGREEN_ALERT_URL`): a chat's or a pager's webhook.
    """

    home: Path
    landing: str = field(repr=False)
    lake: str = field(repr=False)
    artifacts: str = field(repr=False)
    reports: Path
    tracking_uri: str = field(repr=False)
    mask_key: str = field(repr=False)
    lock_url: str | None = field(default=None, repr=False)
    tasks: tuple[str, ...] = ("recommend",)
    derived: tuple[str, ...] = ()
    lateness_hours: int = 48
    ingest_minute: int = 0
    absent_columns: frozenset[str] = frozenset()
    expected_feeds: tuple[str, ...] = ("events",)
    seed: int = 20260101
    engine: str = "duckdb"
    spark_rows: int | None = None
    workers: int = 1
    encoder: str = "minilm"
    schedule_end: datetime | None = None
    pages_url: str | None = None
    pages_days: int = 90
    alert_url: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.mask_key) < 32:  # HMAC-SHA256's security needs a key no shorter than half its output (RFC 2104, 3)
            raise SettingsError(
                "EVERGREEN_MASK_KEY must be a secret of at least 32 characters; received "
                f"{len(self.mask_key)}. Make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        if not 0 <= self.lateness_hours <= 24 * 90:
            raise SettingsError(f"EVERGREEN_LATENESS_HOURS must lie in 0..2160; received {self.lateness_hours}.")
        if not 0 <= self.ingest_minute < 30:  # the sweep of updates, dags/update.py
            raise SettingsError(f"EVERGREEN_INGEST_MINUTE must lie in 0..29; received {self.ingest_minute}.")
        if not self.tasks:
            beside = f" beside {', '.join(self.derived)}" if self.derived else ""
            raise SettingsError(
                f"EVERGREEN_TASKS must name a task that learns{beside}; received none. "
                f"Add one: EVERGREEN_TASKS={','.join(['recommend', *self.derived])}"
            )
        feeds = {*self.expected_feeds, *(column.partition(".")[0] for column in self.absent_columns)}
        if unknown := sorted(feeds - {*FEED_NAMES}):
            raise SettingsError(
                "EVERGREEN_EXPECTED_FEEDS must name feeds, and EVERGREEN_ABSENT_COLUMNS columns as feed.column; feeds "
                f"are {', '.join(FEED_NAMES)}; received {', '.join(unknown)}."
            )
        if self.engine not in ENGINES:
            raise SettingsError(f"EVERGREEN_ENGINE must be {' or '.join(ENGINES)}; received {self.engine!r}.")
        if self.spark_rows is not None and self.spark_rows < 1:
            raise SettingsError(f"EVERGREEN_SPARK_ROWS must be at least 1; received {self.spark_rows}.")
        if self.workers < 1:
            raise SettingsError(f"EVERGREEN_WORKERS must be at least 1; received {self.workers}.")
        if self.pages_days < 1:
            raise SettingsError(f"EVERGREEN_PAGES_DAYS must be at least 1; received {self.pages_days}.")
        for name, folder in (("HOME", self.home), ("REPORTS", self.reports)):
            if ":/" in str(folder):  # a path has made one slash of an address's two
                raise SettingsError(
                    f"EVERGREEN_{name} must be a folder; received an address. Object storage takes the landing zone, "
                    "the lake and the models' files; pages and locks need a disk, which several machines may share."
                )

    def page_url(self, page: str | Path | None) -> str | None:
        """Where a browser finds a page below `reports`; its path where no server shows them."""
        if page is None or self.pages_url is None:
            return None if page is None else str(page)
        return f"{self.pages_url.rstrip('/')}/{Path(page).relative_to(self.reports).as_posix()}"


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process's environment (or of the mapping given).

    Raises:
        SettingsError: a variable is missing or out of range.
    """
    env = os.environ if environment is None else environment
    home = Path(env.get("EVERGREEN_HOME") or REPOSITORY / ".evergreen").resolve()
    told = _words((env.get("EVERGREEN_TASKS") or "recommend").replace(" ", ","))  # make run TASKS="recommend demand"
    tasks = tuple(dict.fromkeys(told))  # a task named twice is one
    spark_rows = env.get("EVERGREEN_SPARK_ROWS")
    return Settings(
        home=home,
        landing=env.get("EVERGREEN_LANDING") or str(home / "landing"),
        lake=env.get("EVERGREEN_LAKE") or str(home / "lake"),
        artifacts=env.get("EVERGREEN_ARTIFACTS") or str(home / "mlflow" / "artifacts"),
        reports=Path(env.get("EVERGREEN_REPORTS") or home / "reports"),
        tracking_uri=env.get("EVERGREEN_MLFLOW") or f"sqlite:///{home / 'mlflow.db'}",
        mask_key=env.get("EVERGREEN_MASK_KEY", ""),
        lock_url=env.get("EVERGREEN_LOCK_URL") or None,
        tasks=tuple(name for name in tasks if name not in DERIVED),
        derived=tuple(name for name in tasks if name in DERIVED),
        lateness_hours=_whole("EVERGREEN_LATENESS_HOURS", env.get("EVERGREEN_LATENESS_HOURS", "48")),
        ingest_minute=_whole("EVERGREEN_INGEST_MINUTE", env.get("EVERGREEN_INGEST_MINUTE", "0")),
        absent_columns=frozenset(_words(env.get("EVERGREEN_ABSENT_COLUMNS", ""))),
        expected_feeds=_words(env.get("EVERGREEN_EXPECTED_FEEDS", "events")),
        seed=_whole("EVERGREEN_SEED", env.get("EVERGREEN_SEED", "20260101")),
        engine=env.get("EVERGREEN_ENGINE", "duckdb"),
        spark_rows=_whole("EVERGREEN_SPARK_ROWS", spark_rows) if spark_rows else None,
        workers=_whole("EVERGREEN_WORKERS", env.get("EVERGREEN_WORKERS", "1")),
        encoder=env.get("EVERGREEN_ENCODER", "minilm"),
        schedule_end=_hour("EVERGREEN_SCHEDULE_END", env.get("EVERGREEN_SCHEDULE_END")),
        pages_url=env.get("EVERGREEN_PAGES_URL") or None,
        pages_days=_whole("EVERGREEN_PAGES_DAYS", env.get("EVERGREEN_PAGES_DAYS", "90")),
        alert_url=env.get("EVERGREEN_ALERT_URL") or None,
    )


def _hour(name: str, text: str | None) -> datetime | None:
    try:
        return Window.parse(text).start if text else None
    except ValueError as error:
        raise SettingsError(f"{name} must be a full hour: {error}") from error


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise SettingsError(f"{name} must be a whole number; received {text!r}.") from error
