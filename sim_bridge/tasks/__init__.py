"""The manipulation tasks as ManiSkill environments; importing this package registers them."""

from sim_bridge.tasks.flip_mug import FlipMug
from sim_bridge.tasks.hang_mug import HangMug
from sim_bridge.tasks.shared import SharedFlipMug, SharedTapeBox
from sim_bridge.tasks.tape_box import TapeBox

TASKS = {"tape_box": TapeBox, "flip_mug": FlipMug, "hang_mug": HangMug}
SHARED = {"tape_box": SharedTapeBox, "flip_mug": SharedFlipMug}
"""The tasks that exist in the setting "shared", too."""

SETTINGS = ("standard", "dynamic")
"""The settings that all tasks have."""
