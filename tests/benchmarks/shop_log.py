"""A shop's past log in a real lake, step by step: what the learning benchmark learns from.

A data set is one file in `protocols/`: how to read it (SQL and a mapping as for `make run`), how long a step is and
which steps are predicted. Every step is landed and ingested by Evergreen's own code; the table versions after it are
remembered, so that any number of lineages can learn the same log in the same order.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
from pipeline.sources.mapping import mapping_of
from pipeline.sources.replay import MappedLog
from pipeline.sources.shop import ShopSize
from pipeline.sources.simulator import ShopSimulator
from pipeline.tasks.catalogue import task_named
from pipeline.tasks.contract import Task
from pipeline.window import Window

PROTOCOLS = Path(__file__).with_name("protocols")
DATA = REPOSITORY.parent / "shared" / "data"


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
        prepare: DuckDB's SQL that reads the log; `{data}` is its path.
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
        """The protocol in `protocols/<name>.toml`; `data` in place of the shared file."""
        text = tomllib.loads((PROTOCOLS / f"{name}.toml").read_text())
        path = data or DATA / text["data"]
        if not path.is_file():
            raise FileNotFoundError(f"The data set {name!r} must lie at {path}; it does not. Lay it there.")
        return cls(**{**text, "data": path, "origin": datetime.fromisoformat(text["origin"])})

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

        What was landed there before, to its end, is taken as it is. What was stopped halfway is begun anew: its tables
        hold later steps already, so that an earlier one would be noted at a version that knows them.
        """
        home.mkdir(parents=True, exist_ok=True)
        log, noted = home / "log.parquet", home / "versions.json"
        sql = protocol.prepare.format(data=protocol.data)
        duckdb.execute(f"SET TimeZone = 'UTC'; COPY ({sql}) TO '{log}' (FORMAT parquet)")
        source = MappedLog(mapping_of(dict(protocol.mapping), PROTOCOLS / f"{protocol.name}.toml"), str(log))
        settings = _settings(home, seed, encoder, source.absent_columns)
        if noted.is_file():
            return cls(protocol, settings, {int(step): one for step, one in json.loads(noted.read_text()).items()})
        for folder in (settings.landing, settings.lake):
            shutil.rmtree(folder, ignore_errors=True)
        versions = _taken_in(source, cls._steps(protocol, source.windows, days), settings)
        unfinished = noted.with_suffix(".tmp")
        unfinished.write_text(json.dumps(versions))
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
