"""The real-time world: its stage and drives beside a fake scene, then the real process with its services and shared memory."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from policytrim_ros.core.types import READY
from policytrim_ros.nodes.messages import LATCHED, NEWEST
from sim_bridge import shared, world
from sim_bridge.env import SUBSTEPS, TIME_LIMIT
from sim_bridge.shared import ARM_COMMAND, ARM_STATE, Block, camera_frame

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 120.0
STILL = np.zeros(7)
ELSEWHERE = np.array([0.3, 1.0, -0.9, 0.1, 0.8, -0.2, 0.04])


class FakeEnv:
    """A scene whose arm is where its drives want it, and whose object is done or lost when told so."""

    def __init__(self, task="tape_box", setting="standard"):
        self.task, self.setting, self.instruction = task, setting, f"do {task}"
        self.position, self.velocity, self.resistance = np.array(READY), np.zeros(7), world.HELD
        self.seeds, self.ticks, self.closed, self.verdict = [], 0, False, (False, False)

    def reset(self, seed):
        self.seeds.append(seed)
        self.position = np.array(READY)

    def place_arm(self, position):
        self.position = np.array(position)

    def loosen(self, resistance):
        self.resistance = resistance

    def substep(self, position, velocity):
        assert not self.closed
        self.position, self.velocity = np.array(position), np.array(velocity)

    def control_tick(self):
        self.ticks += 1
        return self.verdict

    def joint_state(self):
        return self.position, self.velocity, np.zeros(7)

    def objects(self):
        return {"tape": np.zeros(7)}

    def close(self):
        self.closed = True


@pytest.fixture
def session():
    name = f"world-{uuid.uuid4().hex[:8]}"
    yield name
    shared.remove_session(name)


def stage():
    made = []

    def make(task, setting):
        made.append(FakeEnv(task, setting))
        return made[-1]

    return world.Stage(make, "tape_box", "standard", 3), made


# ---- the stage -----------------------------------------------------------------------------------------------------


def test_laying_a_scene_moves_objects_only_and_the_arm_stays_where_it_is():
    it, made = stage()
    it.step(ELSEWHERE, STILL)
    it.lay("tape_box", "standard", 4)
    assert made[0].seeds == [3, 4] and np.allclose(made[0].position, ELSEWHERE) and it.scene_id == 2
    it.lay("hang_mug", "dynamic", 5)
    assert len(made) == 2 and made[0].closed and np.allclose(made[1].position, ELSEWHERE)
    assert it.state() == dict(
        task="hang_mug",
        setting="dynamic",
        seed=5,
        instruction="do hang_mug",
        phase="ready",
        outcome=None,
        reason="",
        elapsed_s=0.0,
        scene_id=3,
    )


def test_a_scene_that_cannot_be_built_leaves_the_old_one_standing():
    it, made = stage()
    it._make_env = lambda task, setting: (_ for _ in ()).throw(RuntimeError("no memory"))
    with pytest.raises(RuntimeError, match="no memory"):
        it.lay("flip_mug", "standard", 1)
    assert not made[0].closed and it.state()["task"] == "tape_box" and it.scene_id == 1


def test_nothing_is_judged_before_the_start_and_a_running_scene_cannot_be_started_again():
    it, made = stage()
    made[0].verdict = (True, False)
    assert not any(it.step(STILL, STILL) for _ in range(50)) and made[0].ticks == 0
    it.start()
    with pytest.raises(RuntimeError, match="scene is running; call scene/reset first"):
        it.start()


@pytest.mark.parametrize("verdict, outcome", [((True, False), "success"), ((False, True), "failure"), ((True, True), "success")])
def test_the_outcome_is_decided_once_at_the_end_of_a_control_step(verdict, outcome):
    it, made = stage()
    it.start()
    changed = [it.step(STILL, STILL) for _ in range(SUBSTEPS)]
    made[0].verdict = verdict
    changed += [it.step(STILL, STILL) for _ in range(2 * SUBSTEPS)]
    assert [i for i, change in enumerate(changed) if change] == [2 * SUBSTEPS - 1]
    assert it.state()["outcome"] == outcome and it.state()["phase"] == "done" and it.state()["elapsed_s"] == pytest.approx(0.1)
    assert made[0].ticks == 2


def test_a_trial_without_an_outcome_fails_at_the_time_limit():
    it, made = stage()
    it.start()
    for _ in range(TIME_LIMIT * SUBSTEPS - 1):
        assert not it.step(STILL, STILL)
    assert it.step(STILL, STILL) and it.state()["outcome"] == "failure" and it.state()["reason"] == "time limit"


def test_motors_are_loosened_and_brought_back_only_when_that_changes():
    it, made = stage()
    calls = []
    made[0].loosen = calls.append
    wrist = np.where((np.arange(6) == 5)[:, None], world.LIMP, world.HELD)
    for resistance in (world.HELD, wrist, wrist.copy(), world.DAMPED, world.HELD, world.HELD):
        it.step(STILL, STILL, resistance)
    assert [call.tolist() for call in calls] == [wrist.tolist(), world.DAMPED.tolist(), world.HELD.tolist()]


# ---- the drives ----------------------------------------------------------------------------------------------------


def test_without_an_emulated_arm_the_joints_hold_where_they_were_first_seen(session):
    drives = world.Drives(session)
    for measured in (ELSEWHERE, ELSEWHERE - 0.01):
        position, velocity, resistance = drives.newest(10.0, measured)
        assert np.array_equal(position, ELSEWHERE) and not velocity.any() and not resistance.any()


def test_a_fresh_command_drives_and_a_stale_one_holds_its_last_position(session):
    writer = Block(session, "arm_command", ARM_COMMAND, create=True)
    writer.write(stamp=10.0, position=ELSEWHERE, velocity=np.ones(7), held=1, damped=0)
    drives = world.Drives(session)
    assert drives.newest(10.4, STILL)[1].all()
    position, velocity, resistance = drives.newest(10.6, STILL)
    assert np.array_equal(position, ELSEWHERE) and not velocity.any() and not resistance.any()


def test_an_unpowered_arm_is_limp_and_an_emergency_stop_is_damped(session):
    writer = Block(session, "arm_command", ARM_COMMAND, create=True)
    drives = world.Drives(session)
    for held, damped, expected in ((0, 0, world.LIMP), (1, 1, world.DAMPED), (0, 1, world.DAMPED), (1, 0, world.HELD)):
        writer.write(stamp=10.0, position=ELSEWHERE, velocity=np.ones(7), held=held, damped=damped)
        assert np.array_equal(drives.newest(10.0, STILL)[2], expected)
    writer.write(stamp=10.0, held=[1, 1, 1, 1, 1, 0], damped=0)
    _, velocity, resistance = drives.newest(10.0, STILL)
    assert not resistance[:5].any() and np.array_equal(resistance[5], world.LIMP[5]) and velocity.tolist() == [1, 1, 1, 1, 1, 0, 1]


def test_a_reader_does_not_wait_for_a_writer_that_is_held_up_in_the_middle_of_a_record(session, monkeypatch):
    writer, reader = Block(session, "arm_state", ARM_STATE, create=True), Block(session, "arm_state", ARM_STATE)
    assert reader.read() is None
    writer.write(stamp=1.0, position=STILL, velocity=STILL + 1, effort=STILL + 2)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("the reader waits"))

    class HeldUp:
        """A value in whose place the writer stands still: whoever reads meanwhile reads the record before."""

        def __array__(self, *_arguments, **_keywords):
            met.append(reader.read())
            return ELSEWHERE

    for stamp in (2.0, 3.0, 4.0):
        met = []
        writer.write(stamp=stamp, position=HeldUp())
        assert met and all(record["stamp"] == stamp - 1.0 for record in met)
        after = reader.read()
        assert after["stamp"] == stamp and np.array_equal(after["position"], ELSEWHERE)
        assert np.array_equal(after["effort"], STILL + 2)  # not named: kept
    assert reader.sequence == 4


def test_a_field_that_a_record_does_not_have_is_an_error(session):
    with pytest.raises(ValueError, match="stmap"):
        Block(session, "arm_state", ARM_STATE, create=True).write(stmap=1.0)


def test_a_restarted_emulator_is_found_again_and_a_half_written_record_is_not_read(session):
    Block(session, "arm_command", ARM_COMMAND, create=True).write(stamp=10.0, position=ELSEWHERE, held=1)
    drives = world.Drives(session)
    drives.newest(10.0, STILL)
    again = Block(session, "arm_command", ARM_COMMAND, create=True)
    with pytest.raises(ValueError):  # killed in the middle of its first write
        again.write(stamp=20.0, position=np.zeros(3))
    assert np.array_equal(drives.newest(20.0, STILL)[0], ELSEWHERE)
    again.write(stamp=30.0, position=ELSEWHERE + 1, held=1)
    assert np.array_equal(drives.newest(30.0, STILL)[0], ELSEWHERE + 1)


# ---- the loop ------------------------------------------------------------------------------------------------------


def loop(session, make=FakeEnv, **options):
    states = []
    return world.Loop(
        world.WorldConfig(session=session, render=False, **options), make, states.append, lambda stage: None
    ), states


def test_the_loop_serves_requests_between_steps_and_hands_errors_to_the_caller(session):
    it, states = loop(session)
    it.start()
    it.ready.result(timeout=10)
    try:
        it.call(lambda stage: stage.lay("flip_mug", "standard", 8))
        it.call(world.Stage.start)
        with pytest.raises(RuntimeError, match="scene is running"):
            it.call(world.Stage.start)
        assert [state["phase"] for state in states[:2]] == ["ready", "ready"] and states[1]["task"] == "flip_mug"
    finally:
        it.stop()
    assert it.error is None and not it.is_alive()


def test_feedback_does_not_fall_silent_while_a_scene_is_built(session):
    it, _ = loop(session)
    it.start()
    it.ready.result(timeout=10)
    reader = Block(session, "arm_state", ARM_STATE)

    def build(stage):
        before = reader.sequence
        while reader.sequence < before + 5:  # the loop's own thread is here, so somebody else must be writing
            time.sleep(0.001)

    try:
        it.call(build)
    finally:
        it.stop()


def test_a_scene_that_breaks_is_reported_and_ends_the_loop(session):
    class Breaking(FakeEnv):
        def substep(self, position, velocity):
            raise ValueError("the solver diverged")

    it, _ = loop(session, Breaking)
    it.start()
    it.join(timeout=10)
    assert "diverged" in str(it.error)
    with pytest.raises(RuntimeError, match="does not answer"):
        it.call(world.Stage.start)


# ---- the process ---------------------------------------------------------------------------------------------------


class Process:
    """A world process, and a node that talks to it. Moves the arm by writing what the emulator would write."""

    def __init__(self, session, **parameters):
        line = [sys.executable, "-m", "sim_bridge.world", "--ros-args", "-p", f"session:={session}"]
        for name, value in parameters.items():
            line += ["-p", f"{name}:={json.dumps(value)}"]
        self.session = session
        self.popen = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=int(os.environ["ROS_DOMAIN_ID"]))
        self.node = rclpy.create_node("operator", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self.state, self.seen, self.targets = {}, {}, None
        self.node.create_subscription(String, "scene/state", lambda m: setattr(self, "state", json.loads(m.data)), LATCHED)
        self.node.create_subscription(String, "scene/objects", lambda m: setattr(self, "seen", json.loads(m.data)), NEWEST)
        self._command = Block(session, "arm_command", ARM_COMMAND, create=True)

    def until(self, condition, what):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.popen.poll() is None, f"the world ended: {self.popen.stdout.read()}"
            assert time.monotonic() < end, f"not in time: {what}; state {self.state}"
            if self.targets is not None:
                self._command.write(stamp=time.monotonic(), **self.targets)
            self._executor.spin_once(timeout_sec=0.01)

    def drive(self, position=READY, held=1, damped=0):
        self.targets = dict(position=position, velocity=np.zeros(7), held=held, damped=damped)

    def joints(self):
        return Block(self.session, "arm_state", ARM_STATE).read()["position"]

    def ask(self, name):
        return self._call(Trigger, name, Trigger.Request())

    def choose(self, **values):
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        )
        return self._call(SetParameters, "world/set_parameters", request).results

    def _call(self, kind, name, request):
        client = self.node.create_client(kind, name)
        self.until(client.service_is_ready, f"service {name}")
        future = client.call_async(request)
        self.until(future.done, f"answer of {name}")
        self.node.destroy_client(client)
        return future.result()

    def end(self, number=signal.SIGINT):
        self.popen.send_signal(number)
        self.popen.wait(timeout=DEADLINE_S)
        return self.popen.returncode

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def process(session):
    made = []

    def start(**parameters):
        made.append(Process(session, **parameters))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.integration
def test_the_world_lays_starts_and_shows_scenes_and_moves_with_the_emulated_arm(process, session):
    it = process(render=False, task="tape_box", seed=5)
    it.until(lambda: it.state, "scene/state")
    assert (it.state["task"], it.state["seed"], it.state["phase"], it.state["scene_id"]) == ("tape_box", 5, "ready", 1)
    assert it.state["instruction"] == "put the tape into the box"

    it.drive(ELSEWHERE)
    it.until(lambda: np.abs(it.joints() - ELSEWHERE).max() < 0.01, "the arm follows")
    assert it.ask("scene/start").success
    assert not it.ask("scene/start").success
    it.until(lambda: it.state["phase"] == "running" and it.state["elapsed_s"] > 0, "a running trial")

    [refused] = it.choose(task="make_coffee")
    assert not refused.successful and "'tape_box', 'flip_mug', 'hang_mug'" in refused.reason
    assert all(result.successful for result in it.choose(task="hang_mug", setting="dynamic", seed=9))
    assert it.state["task"] == "tape_box"  # the table is laid by scene/reset, not by the parameter
    assert it.ask("scene/reset").success
    it.until(lambda: it.state["scene_id"] == 2, "the new scene")
    assert (it.state["task"], it.state["setting"], it.state["seed"], it.state["phase"]) == ("hang_mug", "dynamic", 9, "ready")
    it.until(lambda: it.seen.get("scene_id") == 2, "the new objects")
    assert sorted(it.seen["objects"]) == ["mug", "rack"] and np.abs(it.joints() - ELSEWHERE).max() < 0.02

    it.targets = None  # the emulated arm dies: the last targets hold
    reader = Block(session, "arm_state", ARM_STATE)
    steps = reader.sequence
    it.until(lambda: reader.sequence > steps + 150, "1.5 s of physics")
    assert np.abs(it.joints() - ELSEWHERE).max() < 0.005

    it.drive(ELSEWHERE, damped=1)
    it.until(lambda: np.abs(it.joints() - ELSEWHERE).max() > 0.1, "a damped arm sinks")
    it.drive(ELSEWHERE, held=0)
    it.until(lambda: np.abs(it.joints() - ELSEWHERE).max() > 0.4, "an unpowered arm falls")
    it.drive(READY)
    it.until(lambda: np.abs(it.joints() - READY).max() < 0.01, "the motors are back")

    assert it.end() == 0
    assert not shared.session_dir(session).exists()


@pytest.mark.integration
def test_both_cameras_show_the_same_instant_in_colour_and_depth_also_after_a_change_of_task(process, session):
    it = process(camera_width=160, camera_height=120, camera_fps=15.0)
    it.until(lambda: it.state, "scene/state")
    frame = camera_frame(160, 120)
    blocks = {name: Block(session, f"camera_{name}", frame) for name in ("front", "wrist")}

    def pictures(after):
        it.until(lambda: all(b.sequence > after + 2 for b in blocks.values()), "new frames")
        return {name: block.read() for name, block in blocks.items()}

    first = pictures(0)
    for name, picture in first.items():
        assert picture["color"].std() > 10, f"{name} is blank"
        seen = picture["depth"][picture["depth"] > 0]
        assert 20 < np.median(seen) < 1500, f"{name} sees the table at {np.median(seen)} mm"
    it.until(lambda: blocks["front"].read()["stamp"] == blocks["wrist"].read()["stamp"], "the same instant")

    it.choose(task="flip_mug")
    assert it.ask("scene/reset").success
    second = pictures(blocks["wrist"].sequence)
    changed = np.abs(second["front"]["color"].astype(int) - first["front"]["color"]).max(axis=-1) > 40
    assert changed.mean() > 0.01, "tape and box are gone, a mug is there"
    assert it.end(signal.SIGTERM) == 0


@pytest.mark.integration
@pytest.mark.parametrize(
    "parameters, sentence",
    [
        (dict(task="make_coffee"), "WorldConfig.task = 'make_coffee': allowed values are 'tape_box', 'flip_mug', 'hang_mug'"),
        (dict(colour=1), "world: unknown parameter 'colour'"),
    ],
)
def test_a_bad_parameter_refuses_the_start_in_one_sentence(process, parameters, sentence):
    it = process(render=False, **parameters)
    said, _ = it.popen.communicate(timeout=DEADLINE_S)
    assert it.popen.returncode == 1 and sentence in said and "Traceback" not in said


@pytest.mark.integration
def test_a_second_world_in_a_session_is_refused_and_the_first_goes_on(process):
    first = process(render=False)
    first.until(lambda: first.state, "scene/state")
    second = process(render=False)
    said, _ = second.popen.communicate(timeout=DEADLINE_S)
    assert second.popen.returncode == 1 and "another world runs in session" in said
    reader = Block(first.session, "arm_state", ARM_STATE)
    steps = reader.sequence
    first.until(lambda: reader.sequence > steps + 10, "physics of the first")
