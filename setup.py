"""Packaging for pip and for colcon (ament_python). What each dependency is for stands beside its pin."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "policytrim_ros"
ROOT = Path(__file__).parent
SHARED = ("launch", "config", "urdf", "models")


def shared_files():
    """(target directory, files) of everything that belongs under share/policytrim_ros, folders kept."""
    for top in SHARED:
        folders = sorted({file.parent for file in (ROOT / top).rglob("*") if file.is_file() and "__pycache__" not in file.parts})
        for folder in folders:
            files = sorted(str(file.relative_to(ROOT)) for file in folder.iterdir() if file.is_file())
            yield f"share/{PACKAGE}/{folder.relative_to(ROOT)}", files


EXTRAS = {
    # rclpy, Fast DDS and the messages of ROS 2 Jazzy from wheels, for a machine without a ROS 2 installation. Never a hard
    # requirement: beside a sourced /opt/ros they would shadow its libraries.
    "ros": [
        "ros-rclpy[fastrtps]==7.1.6",  # the client library and the middleware, as in Jazzy
        "ros-std-msgs==5.3.6",  # heartbeat, states, consumed actions
        "ros-sensor-msgs==5.3.6",  # images, camera_info, joint_states
        "ros-trajectory-msgs==5.3.6",  # chunks
        "ros-geometry-msgs==5.3.6",  # end_pose of the AgileX topics
        "ros-diagnostic-msgs==5.3.6",  # diagnostics
        "ros-std-srvs==5.3.6",  # Trigger and SetBool services
        "ros-lifecycle-msgs==2.0.3",  # state names that lifecycle tools expect
    ],
    "robot": [
        "piper_sdk==0.6.2",  # the vendor's driver of the arm; its feedback layout is tied to this release
        "python-can>=4.4,<5",  # SocketCAN, and the plug-in group through which the emulator's bus is found
        "pyrealsense2>=2.55",  # the cameras; older releases lack software devices with metadata
        "opencv-python>=4.8",  # JPEG and V4L2; the same distribution that the simulator asks for, so that cv2 exists once
    ],
    "policy": [
        "torch==2.13.0",  # policies; checkpoints were trained and compared with this release
        "transformers==5.23.0; python_version >= '3.11'",  # the PI0 architecture; its internals change between minor releases
        "transformers>=5.18,<5.21; python_version < '3.11'",  # the last ones for Python 3.10
        "safetensors>=0.5",  # weights on disk without pickle
        "pillow>=10",  # image transforms
        "websockets>=13",  # a policy on another machine, in openpi's protocol
        "msgpack>=1.0",  # what travels to it, without pickle
    ],
    "sim": [
        "mani_skill==3.0.1",  # the scene; its state and controller interfaces are used beyond the public environments
        "sapien>=3.0.3,<3.1",  # physics and rendering below it; determinism was checked with 3.0.3
    ],
    "metaworld": ["metaworld==3.1.1"],  # a second set of tasks, with MuJoCo 3.3.0; it draws scenes and judges success
    "train": [
        "matplotlib>=3.8",  # figures of evaluations; the simulator brings it, too
        "tensorboard>=2.14",  # training curves
        "accelerate>=1.10",  # several processes and machines; `accelerate launch`
        "peft>=0.17",  # low-rank adapters
        "pyarrow>=17",  # demonstrations: the parquet files of LeRobot's layout
    ],
    "ray": [
        "ray>=2.40,<3",  # rollouts on several machines: `policytrim train trim --ray`; one machine needs none
    ],
    "record": [
        "mcap>=1.6,<2",  # recordings that Foxglove and rosbag2 read
        "mcap-ros2-support==0.6.0",  # reads them without ROS, for the clips of a report
    ],
    "console": [
        "aiohttp>=3.14,<4",  # the operator's page and its terminal client; older ones keep connections that never send a header
    ],
    "rerun": [
        "rerun-sdk>=0.23",  # `policytrim replay --rerun`; the first with set_time and Scalars. Optional: nothing but its test needs it
    ],
    "test": [
        "pytest>=7.4",  # the tests
        "pytest-rerunfailures>=14",  # a test of real processes that a busy machine has spoilt is tried again, and that is said
        "pytest-xdist>=3.8",  # unit tests in two processes, the long files first
        "hypothesis>=6.100",  # properties of core
        "scipy>=1.13",  # statistics to compare ours with
        "statsmodels>=0.14",  # the same, for rates and sample sizes
        "selenium>=4.20",  # drives a browser through the console
        "rosbags>=0.11",  # reads recordings as ros2 bag files, by code that is not ours and not MCAP's
    ],
}

setup(
    name=PACKAGE,
    version=re.search(r'__version__ = "(.+)"', (ROOT / PACKAGE / "__init__.py").read_text())[1],
    description="Trimmed vision-language-action policies on an AgileX Piper: ROS 2 nodes, simulation and training",
    author="policytrim_ros maintainers",
    maintainer="policytrim_ros maintainers",
    maintainer_email="maintainers@policytrim-ros.example",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[f"{PACKAGE}*", "sim_bridge*"]),
    package_data={f"{PACKAGE}.console": ["page/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        *shared_files(),
    ],
    install_requires=["setuptools", "numpy>=1.26", "PyYAML>=6"],  # what a ROS 2 installation already has
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "policytrim = policytrim_ros.cli:main",
            "camera_node = policytrim_ros.nodes.camera:main",
            "controller_node = policytrim_ros.nodes.controller:main",
            "inference_node = policytrim_ros.nodes.inference:main",
            "trial_node = policytrim_ros.nodes.trial:main",
            "console_node = policytrim_ros.nodes.console:main",
            "recorder_node = policytrim_ros.nodes.recorder:main",
            "trainer_node = policytrim_ros.nodes.trainer:main",
            "demonstration_recorder_node = policytrim_ros.nodes.demos:main",
            "world_node = sim_bridge.world:main",
            "piper_emulator = sim_bridge.piper_emulator:main",
            "demonstrator_node = sim_bridge.demonstrator_node:main",
        ],
        "can.interface": ["piper_hub = sim_bridge.can_hub:HubBus"],
    },
)
