"""The Piper's status codes as sentences an operator can act on. Pure functions of the raw protocol values."""

from __future__ import annotations

from policytrim_ros.core.types import JOINTS

STANDBY, CAN_MODE, TEACH_MODE = 0, 1, 2
NORMAL, EMERGENCY_STOP = 0, 1
ENABLED_BIT, HOMED_BIT = 0x40, 0x80

CTRL_MODES = {
    TEACH_MODE: "is in teach mode: leave it with the button on the arm",
    3: "is controlled over Ethernet",
    4: "is controlled over Wi-Fi",
    5: "is controlled by a remote",
    6: "is the leader of a linked pair: make it a follower and power-cycle it",
    7: "plays an offline trajectory",
}
ARM_STATUS = {
    EMERGENCY_STOP: "emergency stop is active: support the arm; recovery (0x150 = 2) cuts its power and it falls",
    2: "no inverse kinematics solution for the target",
    3: "singularity",
    4: "target beyond the arm's own joint limits",
    5: "joint communication error",
    6: "a joint brake is not released",
    7: "collision detected",
    8: "overspeed while dragged",
    9: "joint error",
    10: "unspecified error",
    11: "teach mode is recording",
    12: "teach mode is executing",
    13: "teach mode is paused",
    14: "main controller too hot",
    15: "release resistor too hot",
}
DRIVER_BITS = (
    (0x01, "supply voltage too low"),
    (0x02, "motor too hot"),
    (0x04, "overcurrent"),
    (0x08, "driver too hot"),
    (0x10, "collision"),
    (0x20, "driver error"),
    (0x80, "stalled"),
)
GRIPPER_BITS = (
    (0x01, "supply voltage too low"),
    (0x02, "motor too hot"),
    (0x04, "overcurrent"),
    (0x08, "driver too hot"),
    (0x10, "sensor error"),
    (0x20, "driver error"),
)


def problems(ctrl_mode: int, arm_status: int, err_code: int, driver_bits, gripper_bits: int) -> tuple[str, ...]:
    """Everything wrong with the arm, as sentences; empty for a healthy arm, enabled or not.

    ``ctrl_mode``, ``arm_status`` and ``err_code`` (16 bit) are those of frame 0x2A1, ``driver_bits`` the status bytes of the six
    joint drivers (0x261..0x266), ``gripper_bits`` that of 0x2A8.
    """
    found = []
    if ctrl_mode in CTRL_MODES:
        found.append(f"the arm {CTRL_MODES[ctrl_mode]}")
    elif ctrl_mode not in (STANDBY, CAN_MODE):
        found.append(f"the arm reports unknown control mode {ctrl_mode}")
    if arm_status != NORMAL:
        found.append(ARM_STATUS.get(arm_status, f"unknown arm status {arm_status}"))
    for joint in range(6):
        if err_code >> joint & 1:
            found.append(f"{JOINTS[joint]}: no communication with its driver")
        if err_code >> (8 + joint) & 1:
            found.append(f"{JOINTS[joint]}: target beyond its angle limit")
        found += [f"{JOINTS[joint]}: {text}" for bit, text in DRIVER_BITS if driver_bits[joint] & bit]
    found += [f"gripper: {text}" for bit, text in GRIPPER_BITS if gripper_bits & bit]
    return tuple(found)


def firmware_number(firmware: str | None) -> tuple[int, ...] | None:
    """(1, 8, 5) of "S-V1.8-5"; None for what cannot be read."""
    try:
        return tuple(int(part) for part in firmware.removeprefix("S-V").replace("-", ".").split("."))
    except (AttributeError, ValueError):
        return None
