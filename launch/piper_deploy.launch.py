"""ros2 launch policytrim_ros piper_deploy.launch.py [name:=value ...]: policytrim_ros/graph.py in ROS 2's launch.

Nothing about the processes is decided here. Ctrl-C reaches all of them at once (that is how launch works); each ends by
itself, and the controller leaves the arm holding. `policytrim up` ends them one after the other.
"""

import sys
from dataclasses import fields
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, LogInfo, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from policytrim_ros.arguments import as_text, explain, from_text, values_of
from policytrim_ros.graph import (
    RUNNING,
    LaunchArguments,
    command,
    consequence,
    forget,
    graph,
    prefix,
    session_name,
    stages,
)


def generate_launch_description():
    """The declared arguments, then the processes made from their values."""
    declared = [
        DeclareLaunchArgument(
            spec.name,
            default_value=as_text(spec.default),
            description=explain(spec),
            choices=list(spec.metadata["choices"]) if spec.metadata["choices"] else None,
        )
        for spec in fields(LaunchArguments)
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context):
    """The first processes, and handlers that start the later ones when those they need are ready."""
    refuse_unknown(context.argv)
    texts = {spec.name: LaunchConfiguration(spec.name).perform(context) for spec in fields(LaunchArguments)}
    arguments = from_text(LaunchArguments, texts)
    processes = graph(arguments)
    forget(session_name(arguments))
    progress = {"missing": {process.name for process in processes if not process.finite}}
    begin = None
    for stage in reversed(stages(processes)):
        begin = stage_actions(stage, arguments, texts, begin, progress)
    return begin


def stage_actions(stage, arguments, texts, following, progress):
    """Actions that start ``stage``, wait for it and then start ``following`` (None after the last stage)."""
    actions = []
    for process in stage:
        action = as_action(process, arguments)
        actions += [
            action,
            RegisterEventHandler(OnProcessExit(target_action=action, on_exit=on_exit(process, arguments, progress))),
        ]
    lasting = [process.name for process in stage if not process.finite]
    if not lasting:
        return actions
    waiter = ExecuteProcess(
        name=f"wait_{stage[0].name}",
        output="screen",
        cmd=[sys.executable, "-m", "policytrim_ros.cli", "wait", *lasting, *(f"{name}:={text}" for name, text in texts.items())],
    )

    def go_on(event, context):
        if context.is_shutdown:
            return []
        if event.returncode:
            raise RuntimeError(f"{', '.join(lasting)} did not become ready; its output above says why")
        progress["missing"] -= set(lasting)
        return following or [LogInfo(msg=RUNNING)]

    return [RegisterEventHandler(OnProcessExit(target_action=waiter, on_exit=go_on)), *actions, waiter]


def as_action(process, arguments):
    """A launch_ros Node, or a plain process for what is none. Its own node name stays: the heartbeat goes by it."""
    if not process.ros:
        return ExecuteProcess(cmd=command(process), name=process.name, additional_env=dict(process.environment), output="screen")
    return Node(
        package="policytrim_ros",
        executable=process.executable,
        exec_name=process.name,
        namespace=arguments.namespace,
        output="screen",
        prefix=" ".join(prefix(process)) or None,
        parameters=[*([str(process.parameter_file)] if process.parameter_file else []), dict(process.parameters)],
        remappings=list(process.remappings),
        arguments=list(process.arguments),
        additional_env=dict(process.environment),
    )


def on_exit(process, arguments, progress):
    """What the end of ``process`` means: a refused start, a hold, or the end of the system."""

    def react(event, context):
        if context.is_shutdown:
            return []
        if process.finite:
            return [EmitEvent(event=Shutdown(reason=f"{process.name} has ended"))]
        if progress["missing"]:
            raise RuntimeError(
                f"start refused: {process.name} ended during the start (exit code {event.returncode}); its last lines say why"
            )
        said = [LogInfo(msg=f"{process.name} died (exit code {event.returncode}): {consequence(process, arguments)}")]
        if process.required and arguments.on_failure == "shutdown":
            said.append(EmitEvent(event=Shutdown(reason=f"{process.name} died")))
        return said

    return react


def refuse_unknown(argv):
    """launch ignores names that nobody declared; a misspelt argument must not start an arm with a default."""
    if not any(Path(word).name == Path(__file__).name for word in sys.argv):
        return  # included by another launch file, whose arguments these are
    values_of(LaunchArguments, dict(word.split(":=", 1) for word in argv or () if ":=" in word))
