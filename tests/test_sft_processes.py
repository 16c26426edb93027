"""Training as processes: killed and resumed, divided among several, and on a disk that is full."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from policy_samples import reach_recipe
from safetensors.torch import load_file

from policytrim_ros.training import demos, run_state, sft

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
TRAINING = dict(steps=60, batch=8, accumulate=2, ema=0.98, save_every=5, evaluate_every=20, shift_px=[1], held_out=0.25)


@pytest.fixture
def place(tmp_path):
    """A directory with demonstrations and a recipe of the stand-in task."""
    demos.make(reach_recipe(), tmp_path / "data", progress=False)
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(place, **training):
    recipe = {
        "name": "reach",
        "dataset": "data",
        "pictures": {"cameras": ["front"], "width": 32, "height": 18},
        "network": dict(horizon=6, hidden=16, feed_forward=16, layers=1, heads=2, head_dim=8, keypoints=4),
        "training": {**TRAINING, **training},
    }
    (place / "reach.yaml").write_text(yaml.safe_dump(recipe))


def command(name, launcher=("-m",)):
    options = ("--recipe", "reach.yaml", "--run-dir", f"runs/{name}", "--out", f"models/{name}", "--device", "cpu")
    return [sys.executable, *launcher, "policytrim_ros.cli", "train", "sft", *options]


def run(place, name, launcher=("-m",), **options):
    return subprocess.run(
        command(name, launcher), cwd=place, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False, **options
    )


def wait_for_state(process, path):
    """Until the process has written its next state."""
    deadline, seen = time.monotonic() + 300, path.stat().st_mtime_ns if path.exists() else 0
    while not path.exists() or path.stat().st_mtime_ns == seen:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def weights(place, name):
    return load_file(place / "models" / name / "model.safetensors")


def test_a_run_killed_with_sigkill_and_repeated_ends_with_the_same_weights(place):
    assert run(place, "whole").returncode == 0
    state = place / "runs/killed" / sft.STATE_FILE
    for kill in range(2):
        with subprocess.Popen(command("killed"), cwd=place, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
            wait_for_state(process, state)
            process.send_signal(signal.SIGKILL)
        step = run_state.load(state)[1]["step"]
        assert 0 < step < TRAINING["steps"], f"kill {kill} came too late"
    assert not (place / "models/killed").exists()
    assert run(place, "killed").returncode == 0
    whole, killed = weights(place, "whole"), weights(place, "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_two_processes_end_with_the_weights_of_one(place):
    write_recipe(place, steps=6)
    assert run(place, "one").returncode == 0
    done = run(place, "two", ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 x cpu") == 1 and done.stdout.count("train:") == 2  # one process speaks for both
    one, two = weights(place, "one"), weights(place, "two")
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6


def test_a_full_disk_ends_the_run_with_one_sentence_and_leaves_the_last_state(place):
    state = place / "runs/full" / sft.STATE_FILE
    with subprocess.Popen(
        command("full"), cwd=place, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as first:
        wait_for_state(first, state)
        first.send_signal(signal.SIGTERM)
        assert b"the same command resumes" in first.communicate(timeout=300)[0] and first.returncode == 130
    before = state.read_bytes()

    def no_room():  # as a full disk, for files as large as a state
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    refused = run(place, "full", preexec_fn=no_room)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert refused.stdout.splitlines()[-1].endswith("the last state is intact") and "could not be written" in refused.stdout
    assert state.read_bytes() == before and len(list(state.parent.glob("*.safetensors*"))) == 1
    assert run(place, "full").returncode == 0
