"""ROS parameters from Config dataclasses: declared with description and range, unknown ones refused."""

from __future__ import annotations

from dataclasses import MISSING, fields

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from policytrim_ros.core.config import ConfigError

FRAMEWORK = ("use_sim_time", "start_type_description_service")


def declare(node, config_type):
    """Declares every field of ``config_type`` on ``node`` and returns the filled configuration.

    Raises ConfigError with the key, the value and what is allowed. Descriptors carry doc, unit, range and choices, so
    that ``ros2 param describe`` teaches.
    """
    known = {spec.name for spec in fields(config_type)}
    overrides = getattr(node, "_parameter_overrides", {})
    for name in overrides:
        if name not in known and name not in FRAMEWORK and not name.startswith("qos_overrides"):
            raise ConfigError(f"{node.get_name()}: unknown parameter '{name}'; known: {', '.join(sorted(known))}")
    values = {}
    for spec in fields(config_type):
        default = spec.default if spec.default is not MISSING else spec.default_factory()
        override = overrides.get(spec.name)
        value = default if override is None else override.value
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(default, (list, tuple)) and hasattr(value, "tolist"):
            value = value.tolist()
        values[spec.name] = value
    config = config_type.from_mapping(values)  # refuses with a clear sentence before rclpy would with a vague one
    for spec in fields(config_type):
        node.declare_parameter(spec.name, getattr(config, spec.name), _descriptor(spec), ignore_override=True)
    return config


def current(node, config_type, changes=()):
    """The configuration that ``node`` has declared, with its present values and ``changes`` (rclpy Parameters) to them.

    Raises ConfigError when they do not fit; for a node whose parameters may change while it runs.
    """
    values = {spec.name: node.get_parameter(spec.name).value for spec in fields(config_type)}
    return config_type.from_mapping(values | {change.name: change.value for change in changes if change.name in values})


def _descriptor(spec) -> ParameterDescriptor:
    meta = spec.metadata
    text = meta["doc"] + (f" [{meta['unit']}]" if meta["unit"] else "")
    descriptor = ParameterDescriptor(description=text, read_only=meta["read_only"], dynamic_typing=False)
    if meta["choices"] is not None:
        descriptor.additional_constraints = "one of " + ", ".join(map(str, meta["choices"]))
    default = spec.default if spec.default is not MISSING else None
    if meta["low"] is not None and meta["high"] is not None and not isinstance(default, bool):
        if isinstance(default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(meta["low"]), to_value=float(meta["high"]), step=0.0)
            ]
        elif isinstance(default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(meta["low"]), to_value=int(meta["high"]), step=1)]
    return descriptor
