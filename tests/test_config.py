"""Configuration refuses what it does not know, and says what it would take."""

from dataclasses import dataclass

import pytest

from policytrim_ros.core.config import Config, ConfigError, setting
from policytrim_ros.core.safety import FAILSAFES, failsafe_table


@dataclass(frozen=True)
class Example(Config):
    rate_hz: float = setting(100.0, "a rate", low=30.0, high=200.0, unit="Hz")
    mode: str = setting("sync", "a mode", choices=("sync", "async"))
    count: int = setting(3, "a count", low=0, high=9)
    on: bool = setting(False, "a switch")
    names: list = setting(["a"], "names")


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(rate_hz=500.0), "Example.rate_hz = 500.0: allowed range is 30.0 to 200.0 Hz"),
        (dict(rate_hz=float("nan")), "allowed range"),
        (dict(rate_hz="fast"), "= 'fast': expected a number"),
        (dict(rate_hz="5e1"), "expected a number; in YAML write 5.0e+1"),
        (dict(rate_hz=True), "expected float"),
        (dict(mode="rtc2"), "allowed values are 'sync', 'async'"),
        (dict(count=2.5), "whole number"),
        (dict(on=1), "expected bool"),
        (dict(names="front"), "expected a list"),
        (dict(speed=1), "unknown key 'speed'; known keys: count, mode"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(values, said):
    with pytest.raises(ConfigError) as error:
        Example.from_mapping(values)
    assert said in str(error.value)


def test_the_defaults_are_valid_and_frozen():
    with pytest.raises(AttributeError):
        Example().rate_hz = 50.0


def test_the_failsafe_document_is_the_table():
    from pathlib import Path

    text = (Path(__file__).parents[1] / "docs" / "failsafes.md").read_text()
    assert failsafe_table() in text, "run: python -m policytrim_ros.core.safety > docs/failsafes.md"
    assert all(row.advice for row in FAILSAFES.values())
