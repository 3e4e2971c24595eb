"""What protects the reference server, without a model: keys and rates."""

from __future__ import annotations

import pytest

from pipeline.serving import ApiKey, read_keys
from pipeline.serving_limits import KeyedLimit
from pipeline.settings import SettingsError


def test_the_allowance_comes_back_with_time() -> None:
    now = [0.0]
    limit = KeyedLimit(60, clock=lambda: now[0])
    assert [limit.wait_seconds("a") for _ in range(60)] == [0.0] * 60
    assert limit.wait_seconds("a") == pytest.approx(1.0)
    now[0] = 1.5
    assert limit.wait_seconds("a") == 0.0 and limit.wait_seconds("a") == pytest.approx(0.5)


def test_keys_are_read_whole_or_refused_without_being_shown() -> None:
    assert read_keys("shop:read:" + "k" * 20) == (ApiKey("shop", "read", "k" * 20),)
    assert read_keys("") == ()
    for wrong in ("shop:read:short", "shop:admin:" + "k" * 20, "k" * 20):
        with pytest.raises(SettingsError, match="entry 1") as refused:
            read_keys(wrong)
        assert "k" * 20 not in str(refused.value)
