"""Scene cards: where the objects of a scene lie, and pictures, made by the simulator; told in words, and missed aloud."""

import json
import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from session_samples import plan
from stack import ROOT

from policytrim_ros.children import hurry
from policytrim_ros.training.scene_cards import layout, place
from policytrim_ros.trials.cards import SceneCards, scene_name
from policytrim_ros.trials.desk import Desk
from policytrim_ros.trials.session import schedule

TAPE = dict(name="tape", pose="tape", x_cm=25.5, y_cm=-5.8, turn_deg=54)
MOVE = dict(name="tape", cm=3.6, turn_deg=63, x_cm=27.1, y_cm=-2.6)


def about(*axes):
    """Quaternion (w, x, y, z) of turns about "x", "y" or "z" by degrees, the last one first."""
    found = np.array([1.0, 0.0, 0.0, 0.0])
    for axis, degrees in axes:
        w, (x, y, z) = np.cos(np.radians(degrees) / 2), np.sin(np.radians(degrees) / 2) * np.eye(3)["xyz".index(axis)]
        a, b, c, d = found
        found = np.array(
            [
                a * w - b * x - c * y - d * z,
                a * x + b * w + c * z - d * y,
                a * y - b * z + c * w + d * x,
                a * z + b * y - c * x + d * w,
            ]
        )
    return found


@pytest.mark.parametrize(
    "pose, said",
    [
        ([0.3, -0.0001, 0.04, *about()], dict(pose="mug", x_cm=30.0, y_cm=0.0, turn_deg=0)),
        ([0.3, 0.12, 0.04, *about(("z", 35))], dict(pose="mug", x_cm=30.0, y_cm=12.0, turn_deg=35)),
        ([0.3, -0.12, 0.04, *about(("z", -170))], dict(pose="mug", x_cm=30.0, y_cm=-12.0, turn_deg=-170)),
        # on its side, opening ahead: at first the handle is below; rolled to the left of the opening, or to the right
        ([0.2, 0.0, 0.03, *about(("y", 90), ("z", 65))], dict(pose="mug_left", x_cm=20.0, y_cm=0.0, turn_deg=0)),
        ([0.2, 0.0, 0.03, *about(("y", 90), ("z", -65))], dict(pose="mug_right", x_cm=20.0, y_cm=0.0, turn_deg=0)),
        ([0.2, 0.0, 0.03, *about(("z", 20), ("y", 90), ("z", 65))], dict(pose="mug_left", x_cm=20.0, y_cm=0.0, turn_deg=20)),
    ],
)
def test_a_pose_is_told_in_centimetres_and_degrees_as_the_robot_looks(pose, said):
    assert place("mug", pose) == said


# ---- made by the simulator -----------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_each_scene_gets_its_layout_and_a_picture_of_each_camera_and_those_that_are_there_stay(tmp_path):
    scenes = [
        dict(
            task="tape_box",
            setting=setting,
            seed=seed,
            layout=f"{seed}-{setting}.json",
            files={camera: f"{seed}-{setting}-{camera}.jpg" for camera in ("front", "wrist")},
        )
        for setting, seed in (("standard", 3), ("standard", 4), ("dynamic", 3))
    ]
    (tmp_path / "plan.json").write_text(json.dumps(scenes))
    (tmp_path / "3-standard-front.jpg").write_bytes(b"old")
    (tmp_path / "3-standard-wrist.jpg").write_bytes(b"old")
    line = [sys.executable, "-m", "policytrim_ros.training.scene_cards", str(tmp_path / "plan.json"), str(tmp_path)]
    subprocess.run(line, cwd=ROOT, check=True, timeout=200)
    assert (tmp_path / "3-standard-front.jpg").read_bytes() == b"old"
    pictures = [cv2.imread(str(tmp_path / f"4-standard-{camera}.jpg")) for camera in ("front", "wrist")]
    assert all(picture.shape == (240, 424, 3) for picture in pictures)
    blue = np.logical_and(pictures[0][..., 0] > 120, pictures[0][..., 2] < 110)
    assert blue.sum() > 200, "the box is not in the picture"
    standard, other, dynamic = (json.loads((tmp_path / scene["layout"]).read_text()) for scene in scenes)
    box = dict(name="box", pose="box", x_cm=27.2, y_cm=19.7, turn_deg=0)
    assert standard == {"objects": [TAPE, box], "move": None} and other["objects"] != standard["objects"]
    assert dynamic == {"objects": [TAPE, box], "move": MOVE}


@pytest.mark.integration
def test_the_target_goes_where_the_card_says_when_the_simulator_moves_it():
    from sim_bridge.env import TaskEnv

    env = TaskEnv("tape_box", setting="dynamic")
    env.reset(3)
    said = layout(env)["move"]
    x, y, z = env._env.agent.tcp_position
    begin = np.array([x - 0.0325, y, z - 0.05, 1.0, 0.0, 0.0, 0.0])  # below the open gripper, its wall where it would be grasped
    env.place("tape", begin)
    for _ in range(6):
        env.control_tick()
    way = 100 * (env.objects()["tape"] - begin)[:2]
    env.close()
    assert np.hypot(*way) == pytest.approx(said["cm"], abs=0.1)
    assert np.degrees(np.arctan2(way[1], way[0])) == pytest.approx(said["turn_deg"], abs=1)
    assert [said["x_cm"] - TAPE["x_cm"], said["y_cm"] - TAPE["y_cm"]] == pytest.approx(way, abs=0.15)


# ---- beside a session ------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_simulator(tmp_path, monkeypatch):
    """A function (source of the module that the simulator needs first): what children find in its place."""

    def put(source):
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "sapien.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'path'}:{ROOT}")

    return put


def wait_for(condition, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def hurried(before) -> set[int]:
    """The one child more than ``before``, which has the time that others have: these tests wait for it."""
    wait_for(lambda: len(offspring() - before) == 1)
    (child,) = offspring() - before
    wait_for(lambda: os.sched_getscheduler(child) == os.SCHED_IDLE)
    hurry(child)
    return {child}


def offspring() -> set[int]:
    """Processes that this one has started and not yet seen the end of."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        own = set(map(int, file.read().split()))
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                own |= set(map(int, file.read().split()))
        except FileNotFoundError:
            pass  # a thread that has just ended
    return own


def test_a_machine_without_the_simulator_raises_an_alarm_that_says_what_to_do_and_leaves_no_zombie(tmp_path, without_simulator):
    without_simulator("raise ModuleNotFoundError(\"No module named 'sapien'\", name='sapien')")
    desk, before = Desk(), offspring()
    cards = SceneCards(desk.alarm)
    cards.make(tmp_path / "cards", schedule(plan(scenes=1)))
    hurried(before)
    wait_for(lambda: desk.alarms)
    (alarm,) = desk.seen(blind=True)["alarms"]
    assert alarm.startswith("scene cards are missing (") and "No module named 'sapien'" in alarm and "extra 'sim'" in alarm
    assert f"copy what it writes to {tmp_path / 'cards'}" in alarm and "models/a" not in alarm and "trimmed" not in alarm
    assert cards.layout(schedule(plan(scenes=1))[0]) is None
    wait_for(lambda: offspring() == before)
    cards.close()


def test_cards_that_were_copied_here_are_shown_and_raise_no_alarm(tmp_path, without_simulator):
    without_simulator("raise ModuleNotFoundError(\"No module named 'sapien'\", name='sapien')")
    trials = schedule(plan(scenes=1))
    write_cards(tmp_path, trials[0], {"objects": [TAPE], "move": None})
    desk, before = Desk(), offspring()
    cards = SceneCards(desk.alarm)
    cards.make(tmp_path, trials)
    hurried(before)
    wait_for(lambda: offspring() == before)
    assert desk.alarms == [] and cards.picture(trials[0], "front") == b"a picture"


def write_cards(directory, trial, said):
    name = scene_name(trial)
    (directory / f"{name}.json").write_text(said if isinstance(said, str) else json.dumps(said))
    for camera in ("front", "wrist"):
        (directory / f"{name}-{camera}.jpg").write_bytes(b"a picture")


@pytest.fixture
def idle(tmp_path, without_simulator):
    """Cards in tmp_path whose child never comes to an end."""
    without_simulator("import time; time.sleep(600)")
    alarms = []
    cards = SceneCards(alarms.append)
    cards.alarms = alarms
    yield cards
    cards.close()


def test_a_session_that_ends_or_is_followed_by_another_ends_the_child_without_an_alarm(tmp_path, idle):
    before = offspring()
    idle.make(tmp_path / "a", schedule(plan(scenes=1)))
    first = hurried(before)
    idle.make(tmp_path / "b", schedule(plan(scenes=1)))
    wait_for(lambda: len(offspring() - before) == 1)
    assert not first & offspring()
    idle.close()
    assert offspring() == before and idle.alarms == []


def test_all_arms_of_a_scene_have_the_same_card_which_says_nothing_of_them(tmp_path, idle):
    trials = [trial for trial in schedule(plan(scenes=2)) if trial.seed == 1000]
    assert len({trial.arm.label for trial in trials}) == 2
    idle.make(tmp_path, trials)
    assert [idle.layout(trial) for trial in trials] == [None, None]
    (tmp_path / f"{scene_name(trials[0])}.json").write_text(json.dumps({"objects": [TAPE], "move": MOVE}))
    assert idle.layout(trials[0]) == {"objects": [TAPE], "move": MOVE, "pictures": []}
    write_cards(tmp_path, trials[0], {"objects": [TAPE], "move": MOVE})
    first, second = (idle.layout(trial) for trial in trials)
    assert first == second and first["pictures"] == ["front", "wrist"]
    assert idle.layout(None) is None and idle.picture(None, "front") is None


@pytest.mark.parametrize(
    "said",
    ["{", "[]", "{}", '{"objects": [{"name": "mug"}], "move": null}', json.dumps({"objects": [TAPE | {"x_cm": float("nan")}], "move": None})],
)  # fmt: skip
def test_a_card_that_cannot_be_read_is_none(tmp_path, idle, said):
    (trial, *_) = schedule(plan(scenes=1))
    idle.make(tmp_path, [trial])
    write_cards(tmp_path, trial, said)
    assert idle.layout(trial) is None


def test_a_directory_that_cannot_be_written_is_told_and_ends_nothing(tmp_path):
    (tmp_path / "cards").write_text("a file")
    alarms = []
    SceneCards(alarms.append).make(tmp_path / "cards", schedule(plan(scenes=1)))
    assert len(alarms) == 1 and "cannot be written" in alarms[0]
