"""What an installation is told from outside is checked once, and what is wrong is said before anything runs."""

from __future__ import annotations

import pytest

from pipeline.schema import FEEDS
from pipeline.settings import FEED_NAMES, SettingsError, read_settings

KEY = {"EVERGREEN_MASK_KEY": "k" * 32}


def test_the_feeds_that_settings_may_name_are_those_that_there_are() -> None:
    assert tuple(FEEDS) == FEED_NAMES


@pytest.mark.parametrize("told", [
    {"EVERGREEN_EXPECTED_FEEDS": "events, event"}, {"EVERGREEN_ABSENT_COLUMNS": "items.stock,event.price"},
])
def test_a_feed_that_there_is_not_is_refused_and_not_watched_for_in_vain(told: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="feeds are items, events, messages; received event\\."):
        read_settings({**KEY, **told})


def test_a_task_that_is_named_twice_is_one() -> None:
    settings = read_settings({**KEY, "EVERGREEN_TASKS": "recommend,profiles recommend, profiles,demand"})
    assert (settings.tasks, settings.derived) == (("recommend", "demand"), ("profiles",))
