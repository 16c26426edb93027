"""Configuration as frozen dataclasses that refuse bad values.

    @dataclass(frozen=True)
    class ControllerConfig(Config):
        setpoint_rate_hz: float = setting(100.0, "setpoints streamed to the arm each second", low=30, high=200, unit="Hz")

ROS parameters (nodes/parameters.py), command line options and recipe files are all made from such classes, so that a
value is described and range-checked in exactly one place.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Mapping


class ConfigError(ValueError):
    """A configuration value is unknown or out of range; the message names the key, the value and what is allowed."""


def setting(default: Any, doc: str, *, low=None, high=None, choices=None, unit: str = "", read_only: bool = True):
    """One documented configuration value.

    ``low``/``high`` are inclusive bounds (for sequences: of every element), ``choices`` the allowed values,
    ``read_only`` says whether it may change while a node runs.
    """
    metadata = dict(doc=doc, low=low, high=high, choices=choices, unit=unit, read_only=read_only)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """Base of every configuration: checks each field against its ``setting`` on construction."""

    def __post_init__(self):
        for spec in fields(self):
            check_value(spec, getattr(self, spec.name), type(self).__name__)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]):
        """Builds the configuration from a mapping; an unknown key is a ConfigError that lists the known ones."""
        known = {spec.name for spec in fields(cls)}
        for key in values:
            if key not in known:
                raise ConfigError(f"{cls.__name__}: unknown key {str(key)[:100]!r}; known keys: {', '.join(sorted(known))}")
        return cls(**values)


def _how_to_write(value) -> str:
    """A hint for numbers that YAML takes for text: it wants a point before an exponent."""
    try:
        mantissa, exponent = str(value).lower().split("e")
        return f"; in YAML write {float(mantissa)}e{int(exponent):+d}"
    except ValueError:
        return ""


def check_value(spec, value, owner: str) -> None:
    """Raises ConfigError when ``value`` breaks the bounds or type of dataclass field ``spec``."""
    meta, where = spec.metadata, f"{owner}.{spec.name}"
    default = spec.default if spec.default is not MISSING else spec.default_factory()
    if isinstance(default, bool) != isinstance(value, bool) and isinstance(default, (bool, int, float)):
        raise ConfigError(f"{where} = {value!r}: expected {type(default).__name__}")
    if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
        raise ConfigError(f"{where} = {value!r}: expected a number{_how_to_write(value)}")
    if isinstance(default, int) and isinstance(value, float) and not value.is_integer():
        raise ConfigError(f"{where} = {value!r}: expected a whole number")
    if isinstance(default, str) and not isinstance(value, str):
        raise ConfigError(f"{where} = {value!r}: expected text")
    if isinstance(default, (list, tuple)) and not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} = {value!r}: expected a list")
    if meta.get("choices") is not None and value not in meta["choices"]:
        raise ConfigError(f"{where} = {value!r}: allowed values are {', '.join(map(repr, meta['choices']))}")
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            low, high = meta.get("low"), meta.get("high")
            if (isinstance(item, float) and not math.isfinite(item)) or (low is not None and item < low) or (high is not None and item > high):
                raise ConfigError(f"{where} = {value!r}: allowed range is {low} to {high} {meta.get('unit', '')}".rstrip())
