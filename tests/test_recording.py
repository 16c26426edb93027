"""What becomes of control steps, chunks and pictures that the recorder hears; in virtual time, without ROS."""

from dataclasses import dataclass

import numpy as np
import pytest

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.training import demos
from policytrim_ros.training.recording import SETTLE_S, TAIL_S, Look, RecordConfig, Recorder

SCENE = dict(
    task="tape_box", setting="standard", seed=7, instruction="put the tape into the box", scene_id=1, outcome=None, reason=""
)
CONFIG = RecordConfig(cameras=["front"], width=32, height=18)


@dataclass
class Consumed:
    next_step: int
    generation: int = 1
    chunk_id: int = 0
    playing: bool = True


def state_at(at):
    return np.concatenate([READY, READY]) + np.round(at - 100.0, 6) * 1e-3


class Robot:
    """Sends what the nodes of a robot send, one control step after the other; a chunk of five actions each five steps."""

    def __init__(self, config=CONFIG, age_s=0.02):
        self.kept, self.facts, self.now, self.step, self.age_s = [], [], 100.0, 200, age_s
        self.recorder = Recorder(config, self.look, self.finished)
        self.played = []

    def look(self, at):
        assert at <= self.now - SETTLE_S + 0.06 or self.ending
        picture = np.full((18, 32, 3), round(at * 20) % 256, np.uint8)
        return None if self.age_s is None else Look(state_at(at), {"front": picture}, self.age_s)

    ending = False

    def finished(self, recording, facts):
        self.kept.append(recording)
        self.facts.append(facts)

    def scene(self, phase, **changes):
        self.ending = phase in ("ready", "done")
        self.recorder.on_scene({**SCENE, "phase": phase, **changes}, self.now)

    def play(self, steps, period_s=0.05, skip=(), lost=()):
        for _ in range(steps):
            chunk_id = self.step // 5
            if self.step % 5 == 0:
                chunk = Chunk(np.array(READY) + np.arange(5)[:, None] * 1e-4 + chunk_id % 10 * 1e-3, 1, chunk_id, self.step)
                self.played += list(chunk.positions)
                if chunk_id not in lost:
                    self.recorder.on_chunk(chunk)
            self.step += 1
            if self.step not in skip:
                self.recorder.on_consumed(Consumed(self.step, 1, chunk_id), self.now)
                self.recorder.on_consumed(Consumed(self.step, 1, chunk_id), self.now + 0.01)  # said again, nothing new
            self.wait(period_s)

    def wait(self, seconds):
        self.now += seconds
        self.recorder.advance(self.now)

    def begin(self):
        self.scene("ready")
        self.recorder.on_consumed(Consumed(self.step, playing=False), self.now)
        self.scene("running")

    def attempt(self, steps=40, outcome="success", tail=5, **play):
        self.scene("ready")
        self.recorder.on_controller("moving: go")
        self.recorder.on_consumed(Consumed(self.step, playing=False), self.now)
        self.scene("running")
        self.play(steps, **play)
        self.now -= 0.01  # the outcome is known before the next step begins
        self.scene("done", outcome=outcome, reason="" if outcome == "success" else "dropped")
        self.now += 0.01
        self.play(tail)
        self.recorder.on_controller("holding: operator hold")
        return self


def test_a_row_is_what_was_seen_when_the_step_began_and_what_the_chunk_asked_for():
    robot = Robot().attempt()
    (recording,) = robot.kept
    assert recording.steps == 40 and len(recording.state) == 45 and recording.success
    assert np.array_equal(recording.actions, np.array(robot.played[:45], np.float32))
    assert np.allclose(recording.state, [state_at(100.0 + 0.05 * step) for step in range(45)])
    assert recording.image_steps.tolist() == list(range(0, 45, 2)) and recording.images["front"].shape == (23, 18, 32, 3)
    assert [picture[0, 0, 0] for picture in recording.images["front"]] == [(2000 + 2 * i) % 256 for i in range(23)]
    assert np.isnan(recording.objects).all()  # a robot does not know where things are
    assert robot.facts[0]["outcome"] == "success" and robot.facts[0]["seed"] == 7
    assert robot.facts[0]["seconds_per_step"] == pytest.approx(0.05)


def test_what_is_recorded_can_be_trained_on(tmp_path):
    (recording,) = Robot().attempt().kept
    with demos.DemonstrationWriter(tmp_path, CONFIG.pictures) as writer:
        facts = {name: SCENE[name] for name in ("task", "setting", "seed")}
        writer.add(demos.encode(recording), {"name": "one", "style": "x", "start": "ready", "outcome": "success", **facts})
    (episode,) = demos.read_episodes(tmp_path)
    assert len(episode.state) == 40 and len(episode.actions) == 45 and episode.task == "tape_box"
    assert np.isnan(episode.objects).all() and "| tape_box | standard | x | ready | 1 | 1 | 40 |" in demos.info(tmp_path)


def test_the_tail_ends_by_itself():
    robot = Robot().attempt(tail=0)
    assert len(robot.kept[0].state) == 40
    long = Robot()
    long.begin()
    long.play(10)
    long.scene("done", outcome="success")
    long.play(60)
    assert len(long.kept) == 1 and 10 <= long.kept[0].steps <= 11
    assert len(long.kept[0].state) <= long.kept[0].steps + max(demos.TAIL_STEPS, TAIL_S * 20) + 3


def test_several_attempts_follow_each_other():
    robot = Robot()
    for _ in range(3):
        robot.attempt()
    assert [recording.steps for recording in robot.kept] == [40, 40, 40]


def test_a_rest_between_two_chunks_has_no_rows():
    robot = Robot()
    robot.begin()
    for _ in range(4):
        robot.play(5)
        robot.wait(0.4)  # the policy looks and thinks
    robot.scene("done", outcome="success")
    robot.recorder.on_controller("holding: operator hold")
    assert robot.kept[0].steps == 20 and robot.facts[0]["seconds_per_step"] == pytest.approx(0.05)


def test_a_count_that_comes_late_is_old_news():
    robot = Robot()
    robot.begin()
    robot.play(20)
    robot.recorder.on_consumed(Consumed(robot.step - 1), robot.now)
    robot.play(20)
    robot.scene("done", outcome="success")
    robot.recorder.close()
    assert robot.kept[0].steps == 40 and np.array_equal(robot.kept[0].actions, np.array(robot.played, np.float32))


def test_an_attempt_that_was_under_way_already_is_not_recorded():
    robot = Robot()
    robot.scene("running")
    robot.play(10)
    robot.scene("done", outcome="success")
    robot.recorder.on_controller("holding: operator hold")
    assert robot.kept == []
    assert Robot().attempt().kept[0] is not None


@pytest.mark.parametrize(
    "arrange, words",
    [
        (lambda r: r.attempt(outcome="failure"), "dropped"),
        (lambda r: r.attempt(skip=(210,)), "1 control steps were missed"),
        (lambda r: r.attempt(lost=(42,)), "chunk 42, played at control step 210, was not received"),
        (lambda r: r.attempt(period_s=0.1), "100 ms instead of 50"),
        (lambda r: r.attempt(steps=0), "no control step"),
        (lambda r: (setattr(r, "age_s", 0.9), r.attempt()), "silent for 0.9 s"),
        (lambda r: (setattr(r, "age_s", None), r.attempt()), "too late"),
    ],
)
def test_an_attempt_that_is_no_demonstration_is_not_kept_and_says_why(arrange, words):
    robot = Robot()
    arrange(robot)
    assert robot.kept == [None] and words in robot.facts[0]["reason"] and robot.facts[0]["outcome"] != "success"


def test_an_attempt_in_which_the_arm_was_held_is_not_kept():
    robot = Robot()
    robot.begin()
    robot.play(10)
    robot.recorder.on_controller("holding: operator hold")
    robot.recorder.on_controller("moving: go")
    robot.play(10)
    robot.scene("done", outcome="success")
    robot.recorder.on_controller("holding: operator hold")
    assert robot.kept == [None] and "stopped in the middle" in robot.facts[0]["reason"]


@pytest.mark.parametrize("end", [lambda r: r.recorder.close(), lambda r: r.scene("ready", scene_id=2)])
def test_an_attempt_without_an_outcome_is_not_kept(end):
    robot = Robot()
    robot.begin()
    robot.play(10)
    robot.ending = True
    end(robot)
    assert robot.kept == [None] and "before there was an outcome" in robot.facts[0]["reason"]


def test_ctrl_c_during_the_tail_keeps_the_episode():
    robot = Robot()
    robot.begin()
    robot.play(10)
    robot.scene("done", outcome="success")
    robot.recorder.close()
    assert robot.kept[0].success


def test_failures_are_written_when_asked_for_but_not_trained_on(tmp_path):
    config = RecordConfig(cameras=["front"], width=32, height=18, keep_failures=True)
    robot = Robot(config).attempt(outcome="failure").attempt()
    assert [recording.success for recording in robot.kept] == [False, True]
    with demos.DemonstrationWriter(tmp_path, config.pictures) as writer:
        for number, (recording, facts) in enumerate(zip(robot.kept, robot.facts)):
            writer.add(demos.encode(recording), {"name": str(number), "style": "x", **facts})
    assert [episode.name for episode in demos.read_episodes(tmp_path)] == ["1"]
    assert [entry["outcome"] for entry in demos.read_index(tmp_path)["failures"]] == ["failure"]


@pytest.mark.parametrize(
    "values", [dict(cameras=[]), dict(cameras=["front", "front"]), dict(out=""), dict(every=0), dict(width=3)]
)
def test_bad_settings_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        RecordConfig(**values)
