"""Which profile of the middleware a process takes that must not wait for others."""

import os

import pytest

from policytrim_ros.nodes.process import PROFILES, RANGE, udp_alone
from policytrim_ros.share import share

SHARED_MEMORY = str(share("config", "fastdds_shm.xml"))


@pytest.mark.parametrize(
    "before, profile, range_",
    [
        ({}, "fastdds_udp.xml", None),
        ({PROFILES: SHARED_MEMORY}, "fastdds_udp.xml", None),
        ({RANGE: "SUBNET"}, "fastdds_udp.xml", "SUBNET"),
        ({RANGE: "LOCALHOST", PROFILES: SHARED_MEMORY}, "fastdds_udp_local.xml", "SYSTEM_DEFAULT"),
        ({"ROS_LOCALHOST_ONLY": "1"}, "fastdds_udp_local.xml", "SYSTEM_DEFAULT"),
    ],
)
def test_a_process_that_must_not_wait_speaks_udp_and_stays_on_this_machine_where_it_was_told_to(
    monkeypatch, before, profile, range_
):
    for name in (PROFILES, RANGE, "ROS_LOCALHOST_ONLY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    udp_alone()
    assert os.environ[PROFILES] == str(share("config", profile)) and os.environ.get(RANGE) == range_
    assert "ROS_LOCALHOST_ONLY" not in os.environ


def test_a_profile_of_the_users_own_stays_and_what_it_may_cost_is_said(monkeypatch, capsys):
    monkeypatch.setenv(PROFILES, "/home/lab/network.xml")
    monkeypatch.setenv(RANGE, "LOCALHOST")
    udp_alone()
    assert os.environ[PROFILES] == "/home/lab/network.xml" and os.environ[RANGE] == "LOCALHOST"
    assert "network.xml stays: with shared memory in it" in capsys.readouterr().err
