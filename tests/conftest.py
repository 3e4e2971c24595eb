"""What several test files start from: MLflow's empty tables, and a shop of prices with its first champion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline import updating
from pipeline.lake import open_lake
from pipeline.settings import Settings
from pipeline.tasks import catalogue
from tests.small_shop import publish_purchases, settings_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)

settings.register_profile("evergreen", deadline=None)  # a shared machine stalls; how long a case takes is no fault
settings.load_profile("evergreen")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def price_task() -> Iterator[None]:
    """The second task, one line in the catalogue."""
    catalogue.TASKS["price"] = catalogue.Entry("tests.price_task", "PriceTask", "events")
    yield
    del catalogue.TASKS["price"]


@pytest.fixture(scope="session")
def first_price_shop(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, price_task: None) -> Path:
    """A home with a hundred hours of prices and the first champion; its artifacts serve all copies."""
    home = tmp_path_factory.mktemp("price")
    shutil.copy(empty_database, home / "mlflow.db")
    settings = settings_of(home)
    publish_purchases(open_lake(settings), *range(100))
    first = updating.retrain("price", settings, NOW, "first", report=lambda line: None)
    updating.promote("price", first["version"], settings, NOW, who="retrain")
    return home


@pytest.fixture(scope="session")
def second_price_shop(tmp_path_factory: pytest.TempPathFactory, first_price_shop: Path) -> Path:
    """The same an hour later, with the second champion."""
    settings = copied(first_price_shop, tmp_path_factory.mktemp("price"))
    publish_purchases(open_lake(settings), 100)
    updating.update(updating.plan("price", settings), settings, NOW, report=lambda line: None)
    updating.promote("price", 2, settings, NOW)
    return settings.home


def copied(home: Path, to: Path) -> Settings:
    """An installation in the state of another."""
    shutil.copy(home / "mlflow.db", to / "mlflow.db")
    shutil.copytree(home / "lake", to / "lake")
    return settings_of(to)


@pytest.fixture
def price_shop(first_price_shop: Path, tmp_path: Path) -> Settings:
    """An installation of one's own: table `events` at version 1, champion 1."""
    return copied(first_price_shop, tmp_path)


@pytest.fixture
def price_shop_an_hour_later(second_price_shop: Path, tmp_path: Path) -> Settings:
    """An installation of one's own: table `events` at version 2, champion 2, trained from 1."""
    return copied(second_price_shop, tmp_path)
