"""For all tests: few threads, a ROS domain of their own on this machine alone, and the unit tests before those that start processes."""

import os

import pytest
import real_time

from policytrim_ros.awake import Awake
from policytrim_ros.graph import FACTOR, renderer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 49))  # a running system on this machine is not disturbed
os.environ.setdefault(FACTOR, "1")  # what a test starts goes by the test's own clock
os.environ.update(renderer())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    def turn(item) -> tuple[bool, bool]:
        return item.get_closest_marker("integration") is not None, item.get_closest_marker("long") is None

    items.sort(key=turn)  # stable: files stay in order


@pytest.fixture(scope="session")
def awake_processors():
    """From the first test of running processes on, also while those start: see policytrim_ros/awake.py."""
    made = Awake()
    yield
    made.close()


@pytest.fixture(autouse=True)
def awake(request):
    if request.node.get_closest_marker("integration"):
        request.getfixturevalue("awake_processors")


BEGAN = pytest.StashKey[real_time.Processor]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[BEGAN] = real_time.Processor.now()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and item.get_closest_marker("integration"):
        if why := real_time.excuse(item.stash[BEGAN], real_time.Processor.now()):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1], f"Skipped: {why}; it failed: {call.excinfo.exconly()[:500]}")
    return report


@pytest.fixture
def stack(tmp_path):
    """Real processes of one test, none started yet, all ended afterwards."""
    from stack import Stack  # ROS: not for tests that do without

    made = Stack(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Demonstrations of the stand-in task, for tests that only read them."""
    from policy_samples import reach_recipe  # torch and the simulator's interfaces: not for tests that do without

    from policytrim_ros.training import demos

    directory = tmp_path_factory.mktemp("demos") / "reach"
    demos.make(reach_recipe(), directory, progress=False)
    return directory


@pytest.fixture(scope="session")
def baseline(dataset, tmp_path_factory):
    """A policy of the stand-in task that reaches the dot most of the time: what tests trim."""
    from policy_samples import reach_recipe

    from policytrim_ros.training import sft

    directory = tmp_path_factory.mktemp("baseline")
    recipe = reach_recipe(steps=150, batch=16, learning_rate=3e-3, evaluate_every=1000, save_every=1000, warmup_steps=10)
    trainer = sft.Trainer(recipe, dataset, directory / "run", progress=False, device="cpu")
    trainer.run()
    trainer.save_checkpoint(directory / "reach")
    return directory / "reach"
