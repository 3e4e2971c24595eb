"""A shop's past log in a real lake, step by step: what the learning benchmark learns from.

A data set is one file in `protocols/`: how to read it (SQL and a mapping as for `make run`), how long a step is and
which steps are predicted; or the mapping alone, with which `make run` replays a log. Every step is landed and ingested
by Evergreen's own code; the table versions after it are remembered, so that any number of lineages can learn the same
log in the same order.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from pipeline.ingest import ingest
from pipeline.lake import Lake, open_lake
from pipeline.settings import REPOSITORY, Settings
from pipeline.snapshot import Snapshot
from pipeline.sources import Source
from pipeline.sources.mapping import mapping_of, text_of
from pipeline.sources.replay import MappedLog
from pipeline.sources.shop import ShopSize
from pipeline.sources.simulator import ShopSimulator
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import Task
from pipeline.window import Window

PROTOCOLS = Path(__file__).with_name("protocols")
DATA = REPOSITORY.parent / "shared" / "data"


# A log of half a year is learnt by the week, as Online Retail is, a shorter one by the day. Its last fifth is
# predicted, ten steps at most: each of them costs a full retrain a seed.
_WEEKLY_FROM_DAYS, _TESTED_SHARE, _MOST_TESTED = 26 * 7, 0.2, 10


class ProtocolError(ValueError):
    """A data set cannot be measured as described; the message names the file, the rule and what is there."""


@dataclass(frozen=True)
class Protocol:
    """One data set and how it is learnt.

    Attributes:
        name: of the data set.
        data: the log.
        origin: time at which step 0 begins.
        step_days: length of a step.
        first_step: the steps before it are loaded in one piece.
        first_test_step, last_test_step: the steps that are predicted, both included.
        prepare: DuckDB's SQL that reads the log; `{data}` is its path. Empty: the mapping reads it as it is.
        mapping: the mapping of the columns that `prepare` gives.
    """

    name: str
    data: Path
    origin: datetime
    step_days: int
    first_step: int
    first_test_step: int
    last_test_step: int
    prepare: str
    mapping: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, data: Path | None = None) -> Protocol:
        """The protocol in `protocols/<name>.toml`, or in a file of one's own; `data` in place of the log that it names.

        Raises:
            ProtocolError: no such file, no log, or a file that is neither a protocol nor a mapping.
        """
        own = name.endswith(".toml")
        path = Path(name) if own else PROTOCOLS / f"{name}.toml"
        if not path.is_file():
            raise ProtocolError(f"A data set is described by a file, and {path} is none.")
        text = text_of(path)
        if not isinstance(text.get("data", ""), str):
            raise ProtocolError(f"`data` in {path} must be the path of the log, a text; received {text['data']!r}.")
        log = data or ((path.parent if own else DATA) / text["data"] if "data" in text else None)
        if log is None:
            raise ProtocolError(f"{path} names no log: say which by DATA=log.csv (--data).")
        if not log.is_file():
            raise ProtocolError(
                f"The log of {path.stem!r} must lie at {log}, as a file; it does not (a URL or a folder is none). "
                "Lay it there, or give the path where it lies."
            )
        if "prepare" not in text:
            return cls._of_mapping(path, log)
        wanted, there = {one.name for one in fields(cls)}, {*text, "data"}
        if wanted != there:
            raise ProtocolError(
                f"{path} must have {', '.join(sorted(wanted))}; missing: {', '.join(sorted(wanted - there)) or 'none'}"
                f"; not known: {', '.join(sorted(there - wanted)) or 'none'}."
            )
        return cls(**{**text, "data": log, "origin": datetime.fromisoformat(text["origin"])})

    @classmethod
    def _of_mapping(cls, path: Path, log: Path) -> Protocol:
        """How a log that is described by its columns alone is learnt: by its length."""
        text = {key: value for key, value in text_of(path).items() if key != "data"}
        source = MappedLog(mapping_of(text, path), str(log))
        origin = source.first.replace(hour=0)
        days = (source.last - origin) / timedelta(days=1)
        step_days = 7 if days >= _WEEKLY_FROM_DAYS else 1
        steps = math.ceil(days / step_days)
        if steps < 3:
            raise ProtocolError(
                f"{log} must span three days at least: one to learn, two to foresee, of which one is learnt; it has "
                f"{steps}."
            )
        tested = min(max(int(steps * _TESTED_SHARE), 2), _MOST_TESTED)
        first = steps - tested
        return cls(path.stem, log, origin, step_days, first, first, steps - 1, "", text)

    def source(self, home: Path) -> MappedLog:
        """The log as a source; what `prepare` makes of it is put into `home`."""
        mapping = mapping_of(dict(self.mapping), PROTOCOLS / f"{self.name}.toml")
        if not self.prepare:
            return MappedLog(mapping, str(self.data))
        prepared = home / "log.parquet"
        sql = self.prepare.format(data=self.data)
        duckdb.execute(f"SET TimeZone = 'UTC'; COPY ({sql}) TO '{prepared}' (FORMAT parquet)")
        return MappedLog(mapping, str(prepared))

    def step_of(self, time: datetime) -> int:
        """The step in which a time lies."""
        return (time - self.origin) // timedelta(days=self.step_days)


@dataclass(frozen=True)
class ShopLog:
    """The log in a lake.

    Attributes:
        protocol: what was landed.
        settings: the installation's.
        versions: step -> table -> version after that step.
    """

    protocol: Protocol
    settings: Settings
    versions: Mapping[int, Mapping[str, int]]

    @classmethod
    def land(
        cls, protocol: Protocol, home: Path, seed: int, encoder: str = "minilm", days: int | None = None
    ) -> ShopLog:
        """Lands and ingests the whole log below `home`, by the protocol's steps or, in the test steps, by `days`.

        What was landed there before, to its end and of the same log, is taken as it is. What was stopped halfway is
        begun anew: its tables hold later steps already, so that an earlier one would be noted at a version that knows
        them.
        """
        home.mkdir(parents=True, exist_ok=True)
        noted, source = home / "versions.json", protocol.source(home)
        settings = _settings(home, seed, encoder, source.absent_columns)
        log = _identity(protocol)
        before = json.loads(noted.read_text()) if noted.is_file() else {}
        if before.get("log") == log:
            return cls(protocol, settings, {int(step): one for step, one in before["versions"].items()})
        noted.unlink(missing_ok=True)
        for folder in (settings.landing, settings.lake):
            shutil.rmtree(folder, ignore_errors=True)
        versions = _taken_in(source, cls._steps(protocol, source.windows, days), settings)
        unfinished = noted.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"log": log, "versions": versions}))
        os.replace(unfinished, noted)
        return cls(protocol, settings, versions)

    @classmethod
    def simulated(cls, home: Path, seed: int, size: ShopSize) -> ShopLog:
        """Lands and ingests a simulated shop: its history in one piece, then day by day."""
        source = ShopSimulator(seed, **asdict(size))
        history = size.history_days - 1
        protocol = Protocol(
            "simulated", home, source.first, 1, history, size.history_days, size.history_days + size.hours // 24 - 1,
            "", {},
        )
        settings = _settings(home, seed, "minilm", frozenset())
        return cls(protocol, settings, _taken_in(source, cls._steps(protocol, source.windows, None), settings))

    @staticmethod
    def _steps(protocol: Protocol, windows: Sequence[Window], days: int | None) -> dict[int, list[Window]]:
        """The windows by step, those before the first in one; with `days` by so many days from the first test on."""
        steps: dict[int, list[Window]] = {}
        for window in windows:
            step = protocol.step_of(window.start)
            if step > protocol.last_test_step:
                continue
            if days is None:
                number = max(step, protocol.first_step - 1)
            else:
                day = (window.start - protocol.origin) // timedelta(days=days)
                number = -1 if step < protocol.first_test_step else day
            steps.setdefault(number, []).append(window)
        return steps

    @cached_property
    def lake(self) -> Lake:
        """Where the tables are."""
        return open_lake(self.settings)

    @cached_property
    def task(self) -> Task:
        """The recommender's."""
        return task_named("recommend", self.settings, self.lake)

    def tables(self, step: int) -> Snapshot:
        """The tables as they were after a step."""
        return Snapshot(self.lake, self.versions[step])

    def steps_from(self, first: int) -> list[int]:
        """The steps from `first` on, in order."""
        return [step for step in sorted(self.versions) if step >= first]

    def items_before(self, step: int) -> set[str]:
        """The items seen before a step."""
        return set(self.tables(self.before(step)).arrow("events", ["item_id"])["item_id"].unique().to_pylist())

    def before(self, step: int) -> int:
        """The step before."""
        steps = sorted(self.versions)
        return steps[steps.index(step) - 1]


def _identity(protocol: Protocol) -> str:
    """The hash of a log and of how it is read and learnt: logs of one name may be several."""
    with protocol.data.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    how = {name: value for name, value in vars(protocol).items() if name != "data"}
    return hashlib.sha256(f"{content} {json.dumps(how, default=str, sort_keys=True)}".encode()).hexdigest()


def _settings(home: Path, seed: int, encoder: str, absent_columns: frozenset[str]) -> Settings:
    return Settings(
        home=home, landing=str(home / "landing"), lake=str(home / "lake"),
        artifacts=str(home / "mlflow" / "artifacts"), reports=home / "reports",
        tracking_uri=f"sqlite:///{home / 'mlflow.db'}", mask_key="k" * 64, seed=seed, encoder=encoder,
        absent_columns=absent_columns,
    )


def _taken_in(
    source: Source, steps: Mapping[int, Sequence[Window]], settings: Settings
) -> dict[int, dict[str, int]]:
    """Lands and ingests step by step; step -> table -> version after it."""
    lake, versions = open_lake(settings), {}
    for step, windows in steps.items():
        source.land(windows, Path(settings.landing))
        ingest(windows, settings, lambda line: None)
        versions[step] = {table: lake.version(table) for table in ("events", "items")}
    return versions
