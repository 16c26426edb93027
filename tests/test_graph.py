"""The one description of the processes, and what is made from it: the starter, the launch file, the command line."""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from policytrim_ros import cli
from policytrim_ros.arguments import add_arguments, as_text, default_of, explain, from_text, texts
from policytrim_ros.core.config import ConfigError
from policytrim_ros.graph import (
    TASKS,
    LaunchArguments,
    Process,
    baseline_of,
    clock_file,
    command,
    consequence,
    graph,
    last_good,
    own_checkpoint,
    planned,
    renderer,
    resolve_checkpoint,
    runtime_dir,
    session_name,
    stages,
)
from policytrim_ros.up import SessionLock, Starter, StartRefused, restart, up

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILE = ROOT / "launch" / "piper_deploy.launch.py"
REAL = dict(sim=False, cameras="front=111,wrist=222")
CONFIGS = {
    "world": "sim_bridge.world:WorldConfig",
    "camera": "policytrim_ros.nodes.camera:CameraConfig",
    "controller": "policytrim_ros.nodes.controller:ControllerConfig",
    "inference": "policytrim_ros.nodes.inference:InferenceConfig",
    "demonstrator": "sim_bridge.demonstrator_node:DemonstratorConfig",
    "recorder": "policytrim_ros.nodes.recorder:RecorderConfig",
    "trial": "policytrim_ros.nodes.trial:TrialConfig",
    "trainer": "policytrim_ros.training.background:TrainerConfig",
}


def config_of(name):
    module, _, kind = CONFIGS[name].partition(":")
    return getattr(importlib.import_module(module), kind)


def file_of(name):
    path = ROOT / "config" / f"{name}.yaml"
    return yaml.safe_load(path.read_text())["/**"]["ros__parameters"] if path.exists() else {}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "manifest.json").write_text('{"tasks": ["tape_box"]}')
    return str(tmp_path)


@pytest.fixture(autouse=True)
def own_runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


# ---- the graph --------------------------------------------------------------------------------------------------------


def test_a_plan_is_refused_when_the_checkpoint_of_an_arm_was_not_made_for_its_task(tmp_path):
    arm = {"name": "A", "checkpoint": str(ROOT / "models/piper-pi0-tiny")}
    own = {"tape_box": str(ROOT / "models/tape-box-pi0-trimmed")}
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"tasks": ["tape_box", "flip_mug"], "arms": [{**arm, "checkpoints": own}]}))
    arguments = planned(LaunchArguments(plan=str(plan)))
    assert (arguments.task, arguments.checkpoint) == ("tape_box", own["tape_box"])
    plan.write_text(yaml.safe_dump({"tasks": ["tape_box", "flip_mug"], "arms": [{"checkpoint": own["tape_box"]}]}))
    with pytest.raises(ConfigError, match="plan.yaml: .*tape-box-pi0-trimmed was not made for flip_mug"):
        planned(LaunchArguments(plan=str(plan)))


def test_the_simulated_system_starts_from_the_world_upwards(checkpoint):
    names = [process.name for process in graph(LaunchArguments(checkpoint=checkpoint, trials=3, record=True))]
    assert names == ["world", "piper_emulator", "camera", "controller", "inference", "recorder", "trial"]


def test_the_robot_has_neither_world_nor_emulators(checkpoint):
    processes = graph(LaunchArguments(**REAL, checkpoint=checkpoint))
    assert [process.name for process in processes] == ["camera", "controller", "inference"]
    text = " ".join(" ".join(command(process)) + str(process) for process in processes)
    assert "sim_bridge" not in text and "piper_hub" not in text


@pytest.mark.parametrize(
    "given, gate", [(REAL, True), (dict(REAL, gate=False), False), (dict(sim=True), False), (dict(sim=True, gate=True), False)]
)
def test_the_robot_alone_asks_for_the_gate_unless_told_otherwise(checkpoint, given, gate):
    inference = next(p for p in graph(LaunchArguments(**given, checkpoint=checkpoint)) if p.name == "inference")
    assert inference.parameters["gate"] is gate


def test_a_policy_on_another_machine_needs_no_directory():
    for address in ("ws://127.0.0.1:8000", "wss://gpu.example:443/pi"):
        inference = next(p for p in graph(LaunchArguments(checkpoint=address)) if p.name == "inference")
        assert inference.parameters["checkpoint"] == address


@pytest.mark.parametrize("arguments", [dict(), dict(record=True, trials=2), dict(checkpoint="demonstrator:hesitant")])
def test_nobody_starts_before_those_it_needs(arguments):
    seen = set()
    for process in graph(LaunchArguments(**arguments)):
        assert seen.issuperset(process.needs)
        seen.add(process.name)


def test_stages_keep_the_order_of_needs(checkpoint):
    groups = [{process.name for process in stage} for stage in stages(graph(LaunchArguments(checkpoint=checkpoint, trials=1)))]
    assert groups == [{"world", "inference"}, {"piper_emulator", "camera"}, {"controller"}, {"trial"}]


def test_the_arm_does_without_the_trainer():
    arguments = LaunchArguments(trainer=True)
    trainer = next(process for process in graph(arguments) if process.name == "trainer")
    assert trainer.parameter_file.name == "trainer.yaml"
    assert consequence(trainer, arguments) == "the arm does not depend on it"
    controller = next(process for process in graph(arguments) if process.name == "controller")
    assert "trainer" not in controller.parameters["required_nodes"]
    assert "trainer" not in [process.name for process in graph(LaunchArguments())]


def test_a_demonstrator_takes_the_place_of_inference_and_is_required_like_it():
    processes = {process.name: process for process in graph(LaunchArguments(checkpoint="demonstrator:hesitant"))}
    assert "inference" not in processes
    assert processes["demonstrator"].parameters["style"] == "hesitant"
    assert processes["controller"].parameters["required_nodes"] == ["camera", "camera/front", "camera/wrist", "demonstrator"]


def test_emulator_and_controller_meet_on_the_same_bus_and_session():
    processes = {process.name: process for process in graph(LaunchArguments(session="lab"))}
    port = processes["controller"].parameters["can_port"]
    assert processes["piper_emulator"].arguments == ("--socket", port, "--session", "lab")
    assert processes["piper_emulator"].socket == port and port.startswith(str(runtime_dir()))
    assert processes["world"].parameters["session"] == processes["camera"].environment["POLICYTRIM_SESSION"] == "lab"
    assert processes["camera"].environment["POLICYTRIM_CAMERA_SIZE"] == "424x240"


@pytest.mark.parametrize(
    "processors, compiler, wished, given, factor, fps",
    [
        (2, True, "", {}, 0.5, 20),
        (2, False, "", {}, 1.0, 10),
        (8, True, "", {}, 1.0, 20),
        (2, True, "1", {}, 1.0, 10),
        (8, True, "0.25", {}, 0.25, 20),
        (8, True, "0.25", dict(real_time_factor=0.5), 0.5, 20),
        (2, True, "0.25", REAL, 1.0, 30),
    ],
)
def test_simulated_time_suits_the_machine_and_every_process_is_on_it(
    processors, compiler, wished, given, factor, fps, checkpoint, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if compiler else None)
    monkeypatch.setenv("POLICYTRIM_REAL_TIME_FACTOR", wished)
    processes = graph(LaunchArguments(checkpoint=checkpoint, trials=1, record=True, trainer=True, session="lab", **given))
    for process in processes:
        slow = ["-m", "sim_bridge.sim_clock", str(clock_file("lab")), f"{factor:g}"]
        line = command(process)
        assert process.clock == (() if factor == 1.0 else tuple(slow[2:]))
        assert factor == 1.0 or line[line.index("-m") :][:4] == slow
        assert given is REAL or process.environment["POLICYTRIM_REAL_TIME_FACTOR"] == f"{factor:g}"
    assert next(process for process in processes if process.name == "camera").parameters["fps"] == fps


def test_a_wish_in_the_environment_that_is_no_factor_is_refused(monkeypatch):
    for wish in ("fast", "2", "0.001", "nan"):
        monkeypatch.setenv("POLICYTRIM_REAL_TIME_FACTOR", wish)
        with pytest.raises(ConfigError, match=f"POLICYTRIM_REAL_TIME_FACTOR={wish} in the environment"):
            graph(LaunchArguments())


@pytest.mark.parametrize(
    "arguments",
    [
        dict(trials=2, record=True, checkpoint="demonstrator:clean"),
        dict(trials=2, horizon=7, mode="async", camera_size="640x480"),
        dict(REAL, speed_scale=0.3, trials=1, record=True, trainer=True),
    ],
)
def test_every_node_knows_every_parameter_that_file_and_graph_give_it(arguments, checkpoint):
    for process in graph(LaunchArguments(**{"checkpoint": checkpoint, **arguments})):
        if process.ros:
            from_file = file_of(process.name)
            assert not set(from_file) & set(process.parameters), (
                f"{process.name}: the launch arguments would silently replace the file's values"
            )
            config_of(process.name).from_mapping({**from_file, **process.parameters})


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "demonstrator"])  # the launch arguments say all of that one
def test_every_key_of_a_parameter_file_is_known_and_explained(name):
    lines = (ROOT / "config" / f"{name}.yaml").read_text().splitlines()
    config_of(name).from_mapping(file_of(name))
    assert lines[0].startswith("# ")
    assert set(yaml.safe_load("\n".join(lines))) == {"/**"}  # a node name here would miss a node in a namespace


def test_every_process_is_a_module_with_an_executable(checkpoint):
    scripts = (ROOT / "setup.py").read_text()
    for chosen in (checkpoint, "demonstrator:clean"):
        for process in graph(LaunchArguments(checkpoint=chosen, trials=1, record=True, trainer=True)):
            assert f'"{process.executable} = {process.module}:main"' in scripts


def test_the_command_line_quotes_what_would_change_its_type():
    process = Process(
        "camera",
        "camera_node",
        "policytrim_ros.nodes.camera",
        parameters=dict(serials=["012"], realsense_context="", fps=30, depth=True),
    )
    line = command(process, "left/")
    assert line[:4] == [sys.executable, "-u", "-m", "policytrim_ros.nodes.camera"]
    assert {'serials:=["012"]', 'realsense_context:=""', "fps:=30", "depth:=true", "__ns:=/left"} <= set(line)


def test_remappings_reach_every_node(checkpoint):
    for process in graph(LaunchArguments(checkpoint=checkpoint, remap="joint_states:=left/joint_states chunk:=c")):
        assert not process.ros or ("chunk", "c") in process.remappings


def test_settings_of_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    monkeypatch.setenv("VK_DRIVER_FILES", "/my/driver.json")
    world = graph(LaunchArguments())[0]
    assert not {"OMP_NUM_THREADS", "ROS_AUTOMATIC_DISCOVERY_RANGE", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"} & set(
        world.environment
    )
    assert renderer() == {}


@pytest.mark.parametrize("robot", [{}, REAL])
def test_what_has_an_arm_stays_on_this_machine_unless_the_user_says_otherwise(robot, monkeypatch, checkpoint):
    monkeypatch.delenv("ROS_AUTOMATIC_DISCOVERY_RANGE", raising=False)
    processes = graph(LaunchArguments(**robot, checkpoint=checkpoint))
    assert {process.environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] for process in processes} == {"LOCALHOST"}
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    processes = graph(LaunchArguments(**robot, checkpoint=checkpoint))
    assert not any("ROS_AUTOMATIC_DISCOVERY_RANGE" in process.environment for process in processes)


def test_the_session_is_named_after_the_ros_domain(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert session_name(LaunchArguments()) == "domain-42"


# ---- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, said",
    [
        (dict(tusk="tape_box"), "unknown argument 'tusk'; known: .*task"),
        (dict(task="juggle"), "task = 'juggle': allowed values are 'tape_box'"),
        (dict(mode="fast"), "allowed values are 'sync', 'async', 'rtc'"),
        (dict(speed_scale="3"), "speed_scale = 3.0: allowed range is 0.05 to 1.0"),
        (dict(speed_scale="fast"), "speed_scale = 'fast': expected a number"),
        (dict(control_rate_hz="50"), "control_rate_hz = 50.0: allowed range is 10.0 to 30.0"),
        (dict(control_rate_hz="10", checkpoint="demonstrator:clean"), "a demonstrator acts 20 times a second"),
        (dict(horizon="2.5"), "horizon = '2.5': expected a whole number"),
        (dict(sim="maybe"), "sim = 'maybe': expected true or false"),
        (dict(cameras="front"), "cameras = 'front': expected name=serial"),
        (dict(cameras="front=1,front=2"), "with each name once"),
        (dict(camera_size="big"), "camera_size = 'big': expected WIDTHxHEIGHT"),
        (dict(remap="a=b"), "remap = 'a=b': expected from:=to"),
        (dict(session="../x"), "session = '../x': use letters"),
        (dict(namespace="9 lives"), "namespace = '9 lives': use letters"),
    ],
)
def test_a_bad_launch_argument_is_refused_in_one_sentence(values, said):
    with pytest.raises(ConfigError, match=said) as refusal:
        from_text(LaunchArguments, values)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(sim=False, checkpoint="demonstrator:clean", cameras="front=1"), "demonstrators know the simulated scene"),
        (dict(checkpoint="demonstrator:brilliant"), "allowed demonstrators are clean, slow, hesitant"),
        (dict(checkpoint="/nowhere"), "no manifest.json there"),
        (dict(REAL, real_time_factor=0.5), "the time of a real robot cannot be slowed; its motion can, by speed_scale"),
        (dict(real_time_factor=0.01), "real_time_factor: at least 0.05, or 0"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        graph(LaunchArguments(**arguments))


def test_a_robot_without_named_cameras_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="name the cameras as front=<serial>"):
        graph(LaunchArguments(sim=False, checkpoint=checkpoint))


@pytest.mark.parametrize("task", TASKS)
def test_without_a_checkpoint_each_task_still_has_somebody_to_move_the_arm(task):
    chosen = resolve_checkpoint(LaunchArguments(task=task))
    assert chosen == "demonstrator:clean" or (Path(chosen) / "manifest.json").is_file()


def test_every_launch_argument_is_explained_and_survives_the_way_through_text():
    for spec in fields(LaunchArguments):
        assert len(explain(spec)) > 15
    defaults = {spec.name: as_text(default_of(spec)) for spec in fields(LaunchArguments)}
    assert from_text(LaunchArguments, defaults) == LaunchArguments()


def test_both_spellings_of_an_argument_mean_the_same():
    parser = argparse.ArgumentParser()
    add_arguments(parser, LaunchArguments)
    assert texts(parser.parse_args(["task:=flip_mug", "sim:=false"]), LaunchArguments) == texts(
        parser.parse_args(["--task", "flip_mug", "--sim", "false"]), LaunchArguments
    )


# ---- the launch file --------------------------------------------------------------------------------------------------


def test_the_launch_file_decides_nothing_about_processes(checkpoint):
    text = LAUNCH_FILE.read_text()
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert "policytrim_ros.graph" in imported
    for process in graph(LaunchArguments(checkpoint=checkpoint, trials=1, record=True)):
        assert process.executable not in text and process.module not in text


@pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None, reason="launch_ros comes with a ROS 2 installation; there is none here"
)
def test_the_launch_file_starts_the_processes_of_the_graph(checkpoint):
    from launch.actions import DeclareLaunchArgument

    from launch import LaunchContext

    spec = importlib.util.spec_from_file_location("piper_deploy", LAUNCH_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    declared = [entity for entity in description.entities if isinstance(entity, DeclareLaunchArgument)]
    assert [action.name for action in declared] == [spec.name for spec in fields(LaunchArguments)]
    context = LaunchContext()
    for action in declared:
        action.execute(context)
    context.launch_configurations["checkpoint"] = checkpoint
    actions = module.start(context)
    assert [action.node_executable for action in actions if hasattr(action, "node_executable")] == [
        "world_node",
        "inference_node",
    ]


# ---- the starter, with processes that only keep a diary ---------------------------------------------------------------


class Scene:
    """Fake processes in tmp_path with a diary, and a thread-free way to act when the starter says something."""

    def __init__(self, tmp_path):
        self.path, self.diary, self.said, self.reactions = tmp_path, tmp_path / "diary", [], {}

    def process(self, name, needs=(), behaviour="", **more):
        path = str(self.path / f"{name}.socket")
        words = (name, str(self.diary), path, *([behaviour] if behaviour else []))
        return Process(
            name,
            name,
            "fake_process",
            ros=False,
            arguments=words,
            socket=path,
            needs=needs,
            environment={"PYTHONPATH": str(ROOT / "tests")},
            **more,
        )

    def say(self, text):
        self.said.append(text)
        for mark, act in self.reactions.items():
            if mark in text:
                act()

    def run(self, *processes, **arguments):
        self.starter = Starter(list(processes), LaunchArguments(**arguments), self.say)
        return self.starter.run()

    def kill(self, name):
        return lambda: self.starter._children[name].popen.kill()

    @property
    def lines(self):
        return self.diary.read_text().split("\n")[:-1]


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.integration
def test_processes_start_in_order_and_end_in_reverse_on_ctrl_c(scene):
    scene.reactions["running;"] = interrupt
    code = scene.run(scene.process("world"), scene.process("arm", ("world",)), scene.process("policy", ("arm",)))
    assert code == 0
    assert scene.lines == ["start world", "start arm", "start policy", "end policy", "end arm", "end world"]
    assert "[policy] policy speaks" in scene.said


@pytest.mark.integration
def test_a_process_that_fails_at_the_start_ends_everything_and_is_named(scene):
    code = scene.run(
        scene.process("world"), scene.process("arm", ("world",), behaviour="fail"), scene.process("policy", ("arm",))
    )
    assert code == 1
    assert any(line.startswith("start refused: arm ended during the start (exit code 3)") for line in scene.said)
    assert "[arm] no arm on the bus" in scene.said
    assert scene.lines == ["start world", "start arm", "end world"]


@pytest.mark.integration
def test_a_required_process_that_dies_is_named_and_the_others_stay_for_inspection(scene):
    scene.reactions["running;"] = scene.kill("camera")
    scene.reactions["camera died"] = interrupt
    code = scene.run(scene.process("camera"), scene.process("controller", ("camera",)))
    assert code == 1
    assert (
        "camera died (signal SIGKILL): the controller holds the arm; the others stay for inspection, end them with Ctrl-C"
        in scene.said
    )
    assert scene.lines == ["start camera", "start controller", "end controller"]


@pytest.mark.integration
def test_what_has_died_is_started_again_when_an_operator_asks_and_the_others_are_left_alone(scene):
    session = f"again-{os.getpid()}"
    speaks = iter([lambda: None, interrupt])
    scene.reactions["[camera] camera speaks"] = lambda: next(speaks)()
    scene.reactions["running;"] = scene.kill("camera")
    scene.reactions["camera died"] = lambda: restart(session)
    lock = SessionLock(session)
    assert scene.run(scene.process("camera"), scene.process("controller", ("camera",))) == 1
    lock.release()
    assert "camera is started again; the arm stays held until `policytrim go`" in scene.said
    assert scene.lines[:3] == ["start camera", "start controller", "start camera"] and scene.lines.count("start controller") == 1
    with pytest.raises(StartRefused, match=f"no `policytrim up` runs session '{session}'"):
        restart(session)


@pytest.mark.integration
def test_on_failure_shutdown_ends_the_others(scene):
    scene.reactions["running;"] = scene.kill("camera")
    assert scene.run(scene.process("camera"), scene.process("controller", ("camera",)), on_failure="shutdown") == 1
    assert any("the controller holds the arm; ending the others" in line for line in scene.said)


@pytest.mark.integration
def test_the_end_of_a_finite_process_ends_the_system_with_its_exit_code(scene):
    code = scene.run(scene.process("world"), scene.process("trial", ("world",), behaviour="brief", finite=True, required=False))
    assert code == 5 and scene.lines[-1] == "end world"


@pytest.mark.integration
def test_ctrl_c_before_the_end_of_a_finite_process_says_that_its_work_is_not_done(scene):
    scene.reactions["[trial] trial speaks"] = interrupt
    assert scene.run(scene.process("world"), scene.process("trial", ("world",), finite=True, required=False)) == 130
    assert scene.lines[-2:] == ["end trial", "end world"]


@pytest.mark.integration
def test_a_killed_starter_leaves_no_orphans(scene):
    script = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_graph import Scene; "
        f"s = Scene(Path({str(scene.path)!r})); s.say = lambda text: print(text, flush=True); s.run(s.process('world'))"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in starter.stdout:
        if line.startswith("running;"):
            break
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 20
    while scene.lines[-1] != "end world" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert scene.lines == ["start world", "end world"]


def test_a_second_start_of_a_session_is_refused_in_one_sentence():
    lock = SessionLock("lab")
    with pytest.raises(StartRefused, match=rf"'lab' is already running \(process {os.getpid()}\); end it with Ctrl-C there"):
        SessionLock("lab")
    lock.release()
    SessionLock("lab").release()


def test_what_is_left_of_a_session_has_no_say_in_the_next_and_nothing_is_left_of_that(checkpoint, monkeypatch):
    left = [make("leftover") for make in (last_good, clock_file)]
    found = []
    monkeypatch.setattr(Starter, "run", lambda self: found.append([path.exists() for path in left]) or touch())

    def touch():
        for path in left:
            path.write_text("")
        return 0

    touch()
    assert up(LaunchArguments(**REAL, checkpoint=checkpoint, session="leftover"), say=lambda text: None) == 0
    assert found == [[False, False]] and not any(path.exists() for path in left)


def test_the_death_of_the_controller_is_told_as_what_it_is(checkpoint):
    arguments = LaunchArguments(checkpoint=checkpoint, record=True)
    processes = {process.name: process for process in graph(arguments)}
    assert consequence(processes["controller"], arguments).startswith("the arm keeps its last setpoint")
    assert consequence(processes["inference"], arguments).startswith("the controller holds the arm")
    assert consequence(processes["recorder"], arguments) == "the arm does not depend on it"


# ---- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_listed_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_list_of_commands_gives_each_a_line(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", out, re.MULTILINE) for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "words, said",
    [
        (["up", "tusk:=tape_box"], "unknown argument 'tusk'"),
        (["up", "tape_box"], "'tape_box': expected name:=value"),
        (["up", "checkpoint:=/nowhere"], "no manifest.json there"),
        (["wait", "nobody"], "no process 'nobody' in this system"),
        (["fault", "arm", "mute"], "no emulated arm answers"),
        (["fault", "arm", "mute", "long"], "expected name=number"),
        (["fault", "front", "melt"], "no fault 'melt'"),
        (["checkpoint", "verify", "/nowhere"], "/nowhere: is not a checkpoint"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_exit_code_1(words, said, capsys):
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert said in err and err.startswith(f"policytrim {words[0]}: ") and err.count("\n") == 1


def test_a_damped_stop_wants_a_yes(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["damped-stop"])
    assert end.value.code == 2 and "--yes" in capsys.readouterr().err


def test_a_running_session_is_not_started_again(capsys):
    lock = SessionLock("lab")
    assert cli.main(["up", "session:=lab"]) == 1
    assert "session 'lab' is already running" in capsys.readouterr().err
    lock.release()


def test_arguments_are_not_shared_between_runs():
    assert replace(LaunchArguments(), task="flip_mug") != LaunchArguments()


def test_the_second_policy_is_handed_to_the_trials(checkpoint):
    trial = graph(LaunchArguments(checkpoint=checkpoint, trials=2, compare=checkpoint))[-1]
    assert trial.name == "trial" and trial.parameters["compare"] == checkpoint
    for arguments, said in [
        (dict(compare=checkpoint), "how many scenes"),
        (dict(compare="nowhere", trials=1), "LaunchArguments.compare = 'nowhere': no manifest.json"),
        (dict(compare=checkpoint, trials=1, checkpoint="demonstrator:clean"), "cannot be exchanged"),
    ]:
        with pytest.raises(ConfigError, match=said):
            graph(LaunchArguments(**{"checkpoint": checkpoint, **arguments}))


def test_a_trimmed_checkpoint_goes_before_its_baseline_and_leads_back_to_it(tmp_path, monkeypatch):
    def save(name, weights, tasks, horizon=10, gate=None, **made):
        (tmp_path / name).mkdir()
        contract = {"execution_horizon": horizon}
        manifest = dict(tasks=tasks, contract=contract, files={"model.safetensors": weights}, made=made, gate=gate)
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        return tmp_path / name

    monkeypatch.setattr("policytrim_ros.graph.share", lambda *parts: tmp_path)
    three, one = ["tape_box", "flip_mug", "hang_mug"], ["tape_box"]
    base = save("a", "1", three, method="sft")
    assert own_checkpoint("tape_box") == base and baseline_of(base) is None
    for_one = save("b", "2", one, method="trim", parent="1")
    assert own_checkpoint("tape_box") == for_one and baseline_of(for_one) == base and own_checkpoint("flip_mug") == base
    for_all = save("c", "3", three, method="trim", parent="1")
    assert own_checkpoint("tape_box") == own_checkpoint("hang_mug") == for_all
    assert baseline_of(save("d", "4", one, 30, method="trim", parent="elsewhere")) is None
    assert own_checkpoint("tape_box") == for_all, "what leads back to no baseline of the project is not taken"
    again = save("e", "5", one, method="trim", parent="2")
    assert own_checkpoint("tape_box") == again and baseline_of(again) == base
    save("f", "6", one, method="sft", parent="1")
    longer = save("g", "7", one, 20, method="trim", parent="6")
    assert baseline_of(save("i", "9", one, method="trim", parent="6", settings={"against": "models/a"})) == base
    failed = save("h", "8", one, 30, gate={"tape_box": {"passed": False}}, method="trim", parent="6")
    assert own_checkpoint("tape_box", gated=False) == failed
    assert own_checkpoint("tape_box") == longer and baseline_of(longer) == tmp_path / "f" and own_checkpoint("flip_mug") == for_all
