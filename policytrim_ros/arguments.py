"""Command line arguments made from Config dataclasses: `name:=value` as in ROS 2, or `--name value`."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields

from policytrim_ros.core.config import ConfigError


def default_of(spec):
    """Default of a dataclass field."""
    return spec.default if spec.default is not MISSING else spec.default_factory()


def as_text(value) -> str:
    """A value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def explain(spec) -> str:
    """One argument in a sentence, with what is allowed."""
    meta, default = spec.metadata, default_of(spec)
    allowed = ""
    if isinstance(default, bool):
        allowed = " (true or false)"
    elif meta["low"] is not None and meta["high"] is not None:
        allowed = f" ({meta['low']} to {meta['high']}{' ' + meta['unit'] if meta['unit'] else ''})"
    return meta["doc"] + allowed


def values_of(config_type, texts) -> dict:
    """Typed values of {name: text}; ConfigError on an unknown name or a text of the wrong form."""
    specs = {spec.name: spec for spec in fields(config_type)}
    for name in texts:
        if name not in specs:
            raise ConfigError(f"unknown argument '{name}'; known: {', '.join(sorted(specs))}")
    return {name: _value(specs[name], text, config_type.__name__) for name, text in texts.items()}


def from_text(config_type, texts):
    """The configuration from {name: text}; ConfigError also on a value out of range."""
    return config_type.from_mapping(values_of(config_type, texts))


def add_arguments(parser, config_type) -> None:
    """Lets ``parser`` take every field of ``config_type`` in both forms; read them with ``texts``."""
    parser.add_argument("assignments", nargs="*", metavar="name:=value", help="any option below, as ROS 2 writes it")
    group = parser.add_argument_group("options (--name value, or name:=value)")
    for spec in fields(config_type):
        choices = spec.metadata["choices"]
        group.add_argument(
            "--" + spec.name.replace("_", "-"),
            dest=f"option_{spec.name}",
            metavar="|".join(map(str, choices)) if choices else type(default_of(spec)).__name__.upper(),
            help=f"{explain(spec)} (default: {as_text(default_of(spec)) or 'empty'})".replace("%", "%%"),
        )


def texts(options, config_type) -> dict[str, str]:
    """What was given, as {name: text}; ConfigError on a word that is no assignment."""
    given = {}
    for word in options.assignments:
        name, separator, text = word.partition(":=")
        if not separator:
            raise ConfigError(f"'{word}': expected name:=value")
        given[name] = text
    for spec in fields(config_type):
        text = getattr(options, f"option_{spec.name}")
        if text is not None:
            given[spec.name] = text
    return given


def _value(spec, text: str, owner: str):
    default = default_of(spec)
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text.lower() if isinstance(default, bool) else text)
    except json.JSONDecodeError:
        value = None
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        list: 'a list such as ["a", "b"]',
        tuple: 'a list such as ["a", "b"]',
    }
    fits = {bool: bool, int: int, float: (int, float), list: list, tuple: list}[type(default)]
    if not isinstance(value, fits) or isinstance(value, bool) != isinstance(default, bool):
        raise ConfigError(f"{owner}.{spec.name} = {text!r}: expected {kinds[type(default)]}")
    return float(value) if isinstance(default, float) else value
