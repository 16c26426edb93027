"""The safety filter and the supervisor on a virtual clock."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policytrim_ros.core import kinematics
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.executor import SLOWED_ACTIONS, ChunkRefused
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits, blames_policy
from policytrim_ros.core.supervisor import Health, Refused, Supervisor, SupervisorConfig
from policytrim_ros.core.types import JOINTS, READY, Chunk

DT = 0.01
LIMITS = SafetyLimits()


def filter_at(pose=READY):
    safety = SafetyFilter(LIMITS)
    safety.reset(np.array(pose))
    return safety


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-4, 4), min_size=7, max_size=7), min_size=1, max_size=12), st.integers(1, 40))
def test_no_goal_whatever_makes_a_setpoint_break_a_limit(goals, hold_for):
    safety = filter_at()
    v_before = np.zeros(7)
    low, high = np.array(LIMITS.position_low), np.array(LIMITS.position_high)
    for goal in goals:
        for _ in range(hold_for):
            before = safety.setpoint.copy()
            out = safety.step(np.array(goal), np.zeros(7), DT)
            assert np.all(np.abs(out.velocity) <= np.array(LIMITS.v_max) + 1e-9)
            assert np.all(np.abs(out.velocity - v_before) <= np.array(LIMITS.a_max) * DT + 1e-9)
            assert out.setpoint == pytest.approx(before + out.velocity * DT)
            assert np.all(out.setpoint >= low - 1e-9) and np.all(out.setpoint <= high + 1e-9)
            assert kinematics.link_points(out.setpoint[:6])[:, 2].min() >= LIMITS.table_z - 0.005
            v_before = out.velocity


def test_nan_and_far_goals_brake_and_say_why():
    safety = filter_at()
    assert "NaN" in safety.step(np.full(7, np.nan), np.zeros(7), DT).breach
    assert "joint1 asked for 3.500" in safety.step(np.array([3.5, 1.2, -1.1, 0, 0.9, 0, 0.07]), np.zeros(7), DT).breach
    below = np.array([0, 2.6, -1.1, 0, 0.9, 0, 0.07])
    assert kinematics.link_points(below[:6])[:, 2].min() < -0.1
    assert "beyond the workspace or table" in [safety.step(below, np.zeros(7), DT).breach for _ in range(200)][-1]


def test_a_feasible_path_is_followed_without_lag_and_a_resting_goal_without_overshoot():
    safety = filter_at()
    start, speed = np.array(READY), 0.8
    for k in range(1, 200):
        goal = start.copy()
        goal[0] += min(speed * k * DT, 0.9)
        out = safety.step(goal, np.array([speed if speed * k * DT < 0.9 else 0, 0, 0, 0, 0, 0, 0]), DT)
        if k == 100:
            assert abs(out.setpoint[0] - goal[0]) < 0.02
    assert out.setpoint[0] == pytest.approx(0.9, abs=1e-3)
    safety = filter_at()
    reached = [safety.step(start + np.array([0.6, 0, 0, 0, 0, 0, 0]), np.zeros(7), DT).setpoint[0] for _ in range(300)]
    assert max(reached) <= 0.6 + 1e-9 and reached[-1] == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("speed", [0.33, 0.7])
def test_a_path_that_runs_into_a_joint_limit_is_stopped_there_within_the_acceleration_limit(speed):
    """The last 10 ms of the stop once asked for 1.125 times the limit."""
    for offset in np.linspace(0.0, 0.1, 11):
        start = np.array(READY)
        start[4] = 0.9 + offset
        safety, high = filter_at(start), LIMITS.position_high[4] - LIMITS.joint_margin_rad
        velocity, goal_velocity = np.zeros(7), np.array([0, 0, 0, 0, speed, 0, 0])
        for tick in range(160):
            goal = start + np.array([0, 0, 0, 0, min(speed * tick * DT, 0.5 - offset), 0, 0])
            out = safety.step(goal, goal_velocity, DT)
            assert abs(out.velocity[4] - velocity[4]) <= LIMITS.a_max[4] * DT + 1e-9 and out.setpoint[4] <= high + 1e-9
            velocity = out.velocity
        assert out.setpoint[4] == pytest.approx(high, abs=1e-3)


def test_limits_that_make_no_sense_are_refused_by_name():
    with pytest.raises(ConfigError, match="v_max"):
        SafetyLimits(v_max=[9.0] * 7)
    with pytest.raises(ConfigError, match="unknown key 'speed'"):
        SafetyLimits.from_mapping({"speed": 1})
    with pytest.raises(ValueError, match="7 values"):
        SafetyLimits(a_max=[1.0])


class Arm:
    """An ideal arm on a virtual clock: it is where the last setpoint told it to be."""

    def __init__(self, **config):
        self.supervisor = Supervisor(SupervisorConfig(**config), LIMITS)
        self.position, self.now = np.array(READY), 10.0
        self.enabled, self.age, self.problems, self.failures, self.frozen = True, 0.001, (), 0, False

    @property
    def health(self):
        return Health(self.position, self.age, self.enabled, self.problems, self.failures)

    def run(self, seconds):
        sent = []
        for _ in range(round(seconds / DT)):
            self.now += DT
            command = self.supervisor.tick(self.now, self.health)
            if command.setpoint is not None:
                sent.append(command.setpoint.copy())
                if not self.frozen:
                    self.position = command.setpoint.copy()
        return sent

    def go(self):
        self.run(0.05)
        self.supervisor.go(self.health, self.now)

    def play(self, offset=0.3, n=10, follows=False, beyond=None, number=1):
        """A chunk that turns joint1 by ``offset``; from action ``beyond`` on it asks for what no limit allows."""
        target = np.array(READY)
        ramp = np.linspace(0, offset, n + 1)[1:]
        positions = np.repeat(target[None], n, axis=0)
        positions[:, 0] += ramp
        if beyond is not None:
            positions[beyond:, 0] = 3.5
        self.supervisor.accept(Chunk(positions, 1, number, self.supervisor.executor.next_step, follows=follows))

    @property
    def state(self):
        return self.supervisor.state


def moving(**config):
    arm = Arm(**config)
    arm.go()
    arm.play()
    arm.run(0.25)
    assert arm.state == "moving" and arm.position[0] > 0.02
    return arm


def test_nothing_is_sent_before_feedback_and_an_operators_go():
    arm = Arm()
    arm.position = None
    assert arm.run(0.5) == [] and arm.state == "unconfigured"
    arm.position = np.array(READY)
    assert arm.run(0.5) == [] and arm.state == "unconfigured"
    with pytest.raises(ChunkRefused):
        arm.supervisor.accept(Chunk(np.zeros((1, 7)), 1, 1, 0))
    arm.go()
    first = arm.run(0.02)[0]
    assert first == pytest.approx(READY)  # the first target is the measured pose


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(enabled=False), "not enabled"),
        (dict(age=0.5), "no fresh joint feedback"),
        (dict(problems=("joint3: collision",)), "collision"),
    ],
)
def test_go_is_refused_in_doubt(change, message):
    arm = Arm()
    arm.run(0.1)
    for name, value in change.items():
        setattr(arm, name, value)
    with pytest.raises(Refused, match=message):
        arm.supervisor.go(arm.health, arm.now)
    assert arm.run(0.2) == []


def test_a_chunk_moves_the_arm_and_a_hold_decelerates_it():
    arm = moving()
    arm.supervisor.hold()
    sent = np.array(arm.run(1.0))[:, 0]
    steps = np.diff(sent)
    assert arm.state == "holding" and steps[-1] == 0 and np.all(steps >= 0) and np.all(np.diff(steps) <= 1e-12)


@pytest.mark.parametrize(
    "change, state, reason",
    [
        (dict(age=0.2), "fault", "feedback silent"),
        (dict(problems=("collision of joint2",)), "fault", "collision of joint2"),
        (dict(enabled=False), "fault", "not enabled"),
        (dict(failures=9), "fault", "send failed"),
        (dict(position=np.zeros(7)), "fault", "exactly zero"),
        (dict(position=np.full(7, np.nan)), "fault", "NaN"),
    ],
)
def test_each_doubt_about_the_arm_latches_a_fault_that_only_an_operator_clears(change, state, reason):
    arm = moving()
    good = arm.position.copy()
    for name, value in change.items():
        setattr(arm, name, value)
    arm.frozen = True
    arm.run(1.5)
    assert arm.state == state and reason in arm.supervisor.reason
    assert arm.run(0.2) == []  # at rest nothing more is sent: a stale target must not wait for a re-enabled arm
    with pytest.raises(Refused, match="fault"):
        arm.supervisor.go(arm.health, arm.now)
    arm.position, arm.age, arm.problems, arm.enabled, arm.failures = good, 0.001, (), True, 0
    arm.run(0.5)
    assert arm.state == "fault"
    arm.supervisor.clear_fault(arm.health)
    arm.frozen = False
    arm.run(0.1)
    assert arm.state == "holding" and arm.position == pytest.approx(good)


def test_a_fault_whose_cause_is_still_there_cannot_be_cleared():
    arm = moving()
    arm.problems = ("driver error of joint1",)
    arm.run(0.5)
    with pytest.raises(Refused, match="driver error of joint1"):
        arm.supervisor.clear_fault(arm.health)
    assert arm.state == "fault"


@pytest.mark.parametrize("follows", [False, True])
def test_a_starved_arm_holds_and_slowing_before_does_not_postpone_that_by_more_than_it_takes(follows):
    arm = Arm(chunk_timeout_s=0.5)
    arm.go()
    arm.play(follows=follows)
    arm.run(0.97)
    assert arm.state == "moving"
    arm.run(0.06 + follows * SLOWED_ACTIONS / 20)
    assert arm.state == "holding" and "chunk starved" in arm.supervisor.reason


def test_a_starved_arm_says_that_the_server_is_lost_when_inference_does_and_the_policy_is_not_blamed():
    arm = Arm(chunk_timeout_s=0.5, required_nodes=["inference"])
    arm.run(0.1)
    arm.supervisor.heartbeat("inference", arm.now)
    arm.go()
    arm.play()
    arm.run(0.4)
    arm.supervisor.heartbeat("inference: ws://there:8000: no answer within 2 s", arm.now)
    arm.run(0.7)
    assert arm.state == "holding"
    assert arm.supervisor.reason.startswith("server lost: 0.5 s, ws://there:8000: no answer within 2 s")
    assert not blames_policy(arm.supervisor.reason)


def test_a_server_that_has_answered_since_is_not_what_the_arm_is_held_for():
    arm = Arm(chunk_timeout_s=0.5)
    arm.go()
    arm.supervisor.heartbeat("inference: ws://there:8000: the connection broke", arm.now)
    arm.play()
    arm.run(1.2)
    assert arm.supervisor.reason.startswith("chunk starved")


def test_a_lost_node_holds_and_is_named():
    arm = Arm(required_nodes=["camera", "inference"], heartbeat_timeout_s=0.5)
    arm.run(0.1)
    arm.supervisor.heartbeat("camera", arm.now)
    with pytest.raises(Refused, match="node 'inference' has not been heard yet: wait a moment or start it"):
        arm.supervisor.go(arm.health, arm.now)
    arm.supervisor.heartbeat("inference", arm.now)
    arm.go()
    arm.play(n=100)
    for _ in range(10):
        arm.supervisor.heartbeat("inference", arm.now)
        arm.run(0.1)
    assert arm.state == "holding" and "'camera' is silent" in arm.supervisor.reason


def test_a_camera_that_falls_silent_is_named_and_is_not_the_fault_of_the_policy():
    arm = Arm(required_nodes=["camera", "camera/front"], heartbeat_timeout_s=0.5)
    for name in ("camera", "camera/front"):
        arm.supervisor.heartbeat(name, arm.now)
    arm.go()
    arm.play(n=100)
    for _ in range(10):
        arm.supervisor.heartbeat("camera", arm.now)
        arm.run(0.1)
    assert arm.state == "holding" and arm.supervisor.reason.startswith("camera stale: 'camera/front' is silent")
    assert not blames_policy(arm.supervisor.reason)
    with pytest.raises(Refused, match="camera 'camera/front' is not running"):
        arm.supervisor.go(arm.health, arm.now)


@pytest.mark.parametrize(
    "jump_s, state", [(300.0, "holding"), (-300.0, "holding"), (0.6, "holding"), (0.4, "moving"), (0.0, "moving")]
)
def test_a_wall_clock_that_is_set_while_the_arm_moves_holds_it_and_one_that_is_slewed_does_not(jump_s, state):
    arm = moving(clock_jump_s=0.5)
    arm.play(n=40)
    for step in range(100):  # slewed by 500 ppm all the while
        arm.supervisor.clock(1.7e9 + 500e-6 * step * DT + (jump_s if step > 50 else 0.0))
        arm.run(DT)
    assert arm.state == state
    if state == "holding":
        assert arm.supervisor.reason.startswith(f"clock jump: by {jump_s:+.1f} s; find out who sets the clock")
        arm.go()
        arm.supervisor.clock(1.7e9 + jump_s)
        assert arm.state == "moving"  # what is over is not held against the arm


def test_a_clock_that_was_set_before_the_arm_moved_does_not_matter():
    arm = Arm()
    arm.supervisor.clock(0.0)
    arm.go()
    arm.supervisor.clock(0.0)
    arm.run(0.1)
    arm.supervisor.hold()
    arm.supervisor.clock(1e6)
    assert arm.supervisor.reason == "operator hold"


def test_a_blocked_arm_holds_where_it_is_and_does_not_push_on():
    arm = moving(tracking_tolerance_rad=0.1, tracking_time_s=0.3, frozen_feedback_s=5.0)
    arm.frozen = True
    arm.supervisor.executor.start(arm.supervisor.filter.setpoint, arm.now)
    arm.play(offset=1.0, n=20)
    arm.run(2.0)
    assert arm.state == "holding" and "tracking" in arm.supervisor.reason
    assert arm.run(0.1)[-1] == pytest.approx(arm.position)


def test_joints_that_stand_still_to_the_last_digit_while_told_to_move_are_not_believed():
    arm = moving()
    arm.frozen = True
    arm.run(1.0)
    assert arm.state == "fault" and "exactly the same" in arm.supervisor.reason


def test_home_refuses_chunks_arrives_and_holds():
    arm = Arm()
    arm.position = np.array([0.5, 1.0, -1.0, 0.2, 0.5, 0.1, 0.02])
    arm.run(0.1)
    arm.supervisor.home(arm.health, arm.now)
    with pytest.raises(ChunkRefused):
        arm.play()
    arm.run(4.0)
    assert arm.state == "holding" and "arrived" in arm.supervisor.reason and arm.position == pytest.approx(READY, abs=0.02)


def test_home_while_chunks_move_the_arm_comes_to_rest_before_it_goes_there():
    arm = moving()
    arm.play(offset=0.4, n=20)
    arm.run(0.7)
    arm.supervisor.home(arm.health, arm.now)
    sent = np.array(arm.run(3.0))
    speeds = np.abs(np.diff(sent, axis=0)).max(axis=1) / DT
    resting = np.flatnonzero(speeds < 1e-9)
    assert speeds[0] > 0.1 and resting[0] < 100 and speeds[resting[0] :].max() > 0.1
    assert "home: arrived" in arm.supervisor.reason


def test_an_order_to_a_fixed_pose_moves_all_joints_so_that_they_arrive_together():
    arm = Arm()
    start = arm.position = np.array([0.6, 0.9, -1.3, -0.3, 0.5, 0.4, 0.02])
    arm.run(0.1)
    arm.supervisor.home(arm.health, arm.now)
    share = (np.array(arm.run(3.0)) - start) / (np.array(READY) - start)
    assert np.ptp(share, axis=1).max() < 0.02 and arm.position == pytest.approx(READY, abs=1e-3)


@pytest.mark.parametrize("order", ["home", "park"])
@pytest.mark.parametrize("position", [
    [0.191, 1.535, -2.9, 0.156, 0.89, -0.147, 0.057],
    [-0.447, 2.03, -0.45, -0.18, 1.18, -0.349, 0.047],
    [-0.069, 2.567, -0.933, 0.458, 0.985, 0.783, 0.043],
    [0.319, 2.389, -0.02, -0.43, 0.608, -0.91, 0.07],
])  # fmt: skip
def test_where_table_or_workspace_bar_the_straight_way_the_arm_goes_around(position, order):
    arm = Arm()
    arm.position = np.array(position)
    arm.run(0.1)
    getattr(arm.supervisor, order)(arm.health, arm.now)
    lowest = lambda q: kinematics.link_points(q[:6])[:, 2].min()  # noqa: E731
    for setpoint in arm.run(12.0):
        assert lowest(setpoint) >= min(lowest(np.array(position)), LIMITS.table_z) - 1e-6
    assert arm.state == "holding" and arm.supervisor.reason == f"{order}: arrived"


def test_where_no_way_is_found_the_arm_stays_and_says_what_to_do():
    limits = SafetyLimits(workspace_low=[-0.3, -0.6, -0.02], workspace_high=[0.65, 0.6, 0.2])  # the ready pose lies above them
    supervisor = Supervisor(SupervisorConfig(), limits)
    low = np.array([0.0, 1.9, -1.1, 0.0, 0.9, 0.0, 0.07])
    assert supervisor.filter.judge(low)[0] and not supervisor.filter.judge(np.array(READY))[0]
    health = Health(low, 0.001, True)
    supervisor.tick(1.0, health)
    supervisor.home(health, 1.0)
    for tick in range(1, 200):
        command = supervisor.tick(1.0 + tick * DT, health)
        assert command.setpoint is None or np.array_equal(command.setpoint, low)
    assert supervisor.state == "holding" and supervisor.reason.startswith("home: no way there was found")


def test_a_damped_stop_ends_all_sending_until_cleared():
    arm = moving()
    arm.supervisor.damped_stop()
    assert arm.run(1.0) == [] and arm.state == "fault"


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_sequence_of_orders_chunks_and_faults_keeps_the_limits_and_ends_in_hold(data):
    arm = Arm()
    arm.run(0.1)
    last, last_v = None, None
    low, high = np.array(LIMITS.position_low), np.array(LIMITS.position_high)
    for _ in range(data.draw(st.integers(1, 15))):
        event = data.draw(st.sampled_from(["go", "chunk", "hold", "home", "stale", "fresh", "problem", "clear", "bad"]))
        try:
            if event == "go":
                arm.supervisor.go(arm.health, arm.now)
            elif event == "chunk":
                shape = data.draw(st.lists(st.floats(-3, 3), min_size=7, max_size=7))
                arm.supervisor.accept(
                    Chunk(np.tile(shape, (5, 1)), data.draw(st.integers(0, 3)), 1, arm.supervisor.executor.next_step)
                )
            elif event == "hold":
                arm.supervisor.hold()
            elif event == "home":
                arm.supervisor.home(arm.health, arm.now)
            elif event == "bad":
                arm.supervisor.bad_chunk("test")
            elif event == "clear":
                arm.supervisor.clear_fault(arm.health)
                last = None  # the target is the measured pose again
            else:
                arm.age = {"stale": 0.5, "fresh": 0.001, "problem": arm.age}[event]
                arm.problems = ("a driver error",) if event == "problem" else ()
        except (Refused, ChunkRefused):
            pass
        for setpoint in arm.run(data.draw(st.sampled_from([0.01, 0.1, 0.7]))):
            if last is not None:
                velocity = (setpoint - last) / DT
                assert np.all(np.abs(velocity) <= np.array(LIMITS.v_max) + 1e-6)
                if last_v is not None:
                    assert np.all(np.abs(velocity - last_v) <= np.array(LIMITS.a_max) * DT + 1e-6)
                last_v = velocity
            assert np.all(setpoint >= low - 1e-9) and np.all(setpoint <= high + 1e-9)
            last = setpoint
        if last is None:
            last_v = None
    arm.supervisor.hold()
    arm.run(1.5)
    assert arm.state in ("holding", "fault", "unconfigured") and (
        arm.supervisor.filter.setpoint is None or arm.supervisor.filter.at_rest
    )


def test_names_of_the_joints_are_seven():
    assert len(JOINTS) == 7


def test_a_late_chunk_is_told_once_as_the_path_slows_and_the_arm_goes_on_moving():
    arm = Arm()
    arm.go()
    arm.play(follows=True)
    arm.run(0.3)
    assert arm.supervisor.warnings() == "", "nothing is late yet"
    arm.run(0.5)
    assert arm.supervisor.warnings().startswith("chunk late: slowed by 0.") and arm.state == "moving"
    assert arm.supervisor.warnings() == "", "said again without a reason"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1.5, 1.5), min_size=7, max_size=7), min_size=1, max_size=12), st.integers(0, 14))
def test_a_chunk_is_cut_before_the_first_action_at_which_the_arm_would_be_held_and_nowhere_else(offsets, next_step):
    safety, positions = filter_at(), np.array(READY) + np.array(offsets)
    chunk = Chunk(positions, 1, 1, 2)
    allowed, beyond = safety.cut(chunk, next_step)
    past = max(0, next_step - 2)
    held = [step for step in range(past, len(positions)) if safety.judge(positions[step])[1]]
    if held and held[0] > past:
        assert np.array_equal(allowed.positions, positions[: held[0]]) and beyond == safety.judge(positions[held[0]])[1]
        assert (allowed.first, allowed.chunk_id) == (chunk.first, chunk.chunk_id)
    else:
        assert allowed is chunk and beyond == ""


def test_of_a_chunk_with_a_breach_further_on_the_beginning_is_played_and_told_once_and_the_next_chunk_goes_on():
    arm = Arm()
    arm.go()
    arm.play(follows=True, beyond=6)
    arm.run(0.25)
    told = arm.supervisor.warnings()
    assert told.startswith("chunk cut: chunk 1 to 6 of 10 actions, joint1 asked for 3.500 rad") and arm.supervisor.chunks_cut == 1
    assert arm.supervisor.executor.queued <= 1 and arm.supervisor.warnings() == "", "said again without a reason"
    arm.play(number=2)
    arm.run(0.8)
    assert arm.state == "moving" and arm.supervisor.chunks_cut == 1
    arm.play(number=3, beyond=0)
    arm.run(0.3)
    assert arm.state == "holding" and arm.supervisor.reason.startswith("beyond limits: joint1 asked for")
