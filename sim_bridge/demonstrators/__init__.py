"""Scripted solutions of the tasks, clean, slow and hesitant; see base.py for how they are driven."""

from sim_bridge.demonstrators.base import STYLES, Demonstrator
from sim_bridge.demonstrators.flip_mug import FlipMugDemonstrator
from sim_bridge.demonstrators.hang_mug import HangMugDemonstrator
from sim_bridge.demonstrators.tape_box import TapeBoxDemonstrator

DEMONSTRATORS = {"tape_box": TapeBoxDemonstrator, "flip_mug": FlipMugDemonstrator, "hang_mug": HangMugDemonstrator}


def make_demonstrator(task: str, style: str = "clean") -> Demonstrator:
    """The demonstrator of ``task`` in ``style`` ("clean", "slow" or "hesitant"); ValueError names what exists."""
    if task not in DEMONSTRATORS:
        raise ValueError(f"task '{task}' has no demonstrator; choose one of {', '.join(DEMONSTRATORS)}")
    if style not in STYLES:
        raise ValueError(f"style '{style}' does not exist; choose one of {', '.join(STYLES)}")
    return DEMONSTRATORS[task](STYLES[style])
