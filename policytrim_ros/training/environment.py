"""How a simulated environment is reached: by a dotted name, so that nothing here imports a simulator, nor torch."""

from __future__ import annotations

import importlib

from policytrim_ros.core.config import ConfigError

ENVIRONMENT = "sim_bridge.env:TaskEnv"


def factory(dotted: str):
    """The object behind ``module:name``; ConfigError when it cannot be imported."""
    module, _, name = dotted.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"'{dotted}' cannot be imported ({error}); install what it needs or correct the name") from error
