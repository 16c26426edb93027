"""A policy behind a socket: the same actions, strangers turned away, and every way in which a server can fail is a sentence."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from policy_samples import at_ready, gentle
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from policytrim_ros.core.contract import robot_contract
from policytrim_ros.core.listening import TOKEN
from policytrim_ros.policies import checkpoint, staging
from policytrim_ros.policies.remote import RemoteError, RemotePolicy, Server, metadata_of
from policytrim_ros.policies.wire import WireError, pack, unpack
from sim_bridge.line import Line

ROBOT = robot_contract({"front": (64, 36), "wrist": (64, 36)})


@pytest.fixture
def served(tmp_path):
    """A function (port, token, policy) -> running server; and the policy that it serves by default."""
    policy, servers = gentle(), []
    manifest = checkpoint.save(tmp_path / "one", policy, made={"recipe": "test"})

    def start(port=0, token="", behind=policy, weights=None):
        metadata = metadata_of(manifest) | ({"weights_sha256": weights} if weights else {})
        server = Server(behind, metadata, port=port, token=token)
        threading.Thread(target=server.run, daemon=True).start()
        servers.append(server)
        return server

    yield start, policy
    for server in servers:
        server.close()


def address(server) -> str:
    return f"ws://127.0.0.1:{server.port}"


def test_it_predicts_what_the_policy_predicts_here(served):
    start, policy = served
    remote, seen = RemotePolicy(address(start())), at_ready(1)
    assert remote.contract == policy.contract
    assert np.array_equal(remote.predict(seen, seeds=[5]), policy.predict(seen, seeds=[5]))
    assert np.array_equal(remote.predict(seen, seeds=[5], steps=2), policy.predict(seen, seeds=[5], steps=2))


def test_it_is_staged_like_any_other_and_refused_when_it_does_not_fit(served):
    start, _ = served
    server = start()
    policy, weights = staging.stage(address(server), ROBOT)
    assert policy.weights_sha256 == weights and len(weights) == 64
    with pytest.raises(staging.StagingError, match="camera 'wrist' is missing"):
        staging.stage(address(server), robot_contract({"front": (64, 36)}))
    with pytest.raises(staging.StagingError, match="was not tried in the simulated twin"):
        staging.stage(address(server), ROBOT, gate_needed=True)
    with pytest.raises(staging.StagingError, match="no policy server there"):
        staging.stage("ws://127.0.0.1:9", ROBOT)


def test_a_client_of_openpi_gets_metadata_first_and_actions_for_an_observation(served):
    start, policy = served
    seen = at_ready(1)
    with connect(address(start()), compression=None, max_size=None) as connection:
        assert unpack(connection.recv())["policytrim"] == 1
        images = {name: pictures[0] for name, pictures in seen.images.items()}
        connection.send(pack({"images": images, "state": seen.state[0], "prompt": seen.instruction[0]}))
        answer = unpack(connection.recv())
    assert np.array_equal(answer["actions"][None], policy.predict(seen, seeds=[0])) and answer["server_timing"]["infer_ms"] > 0


@pytest.mark.parametrize(
    "spoil, why",
    [
        (lambda words: words.pop("state"), "KeyError: 'state'"),
        (lambda words: words.update(state=np.full(14, np.nan, np.float32)), "NaN"),
        (lambda words: words["images"].pop("wrist"), "KeyError: 'wrist'"),
        (lambda words: words["images"].update(front=np.zeros((4, 4), np.uint8)), "front"),
        (lambda words: words.update(steps=10**9), "steps = 1000000000: 1 to 100"),
    ],
)
def test_a_bad_observation_gets_a_sentence_and_the_connection_stays(served, spoil, why):
    seen = at_ready(1)
    words = {"images": {n: p[0] for n, p in seen.images.items()}, "state": seen.state[0], "prompt": seen.instruction[0]}
    good = pack(words)
    spoil(words)
    with connect(address(served[0]()), compression=None) as connection:
        connection.recv()
        connection.send(pack(words))
        answer = connection.recv()
        assert isinstance(answer, str) and answer.startswith("this observation cannot be used: ") and why in answer
        connection.send(good)
        assert "actions" in unpack(connection.recv())


def test_without_the_token_nobody_comes_in_and_the_token_is_never_said(served, monkeypatch, capfd):
    server = served[0](token="a-long-secret")
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(RemoteError, match=f"the token is missing or wrong; set {TOKEN}"):
        RemotePolicy(address(server))
    monkeypatch.setenv(TOKEN, "a-long-secreT")
    with pytest.raises(RemoteError, match="the token is missing or wrong"):
        RemotePolicy(address(server))
    monkeypatch.setenv(TOKEN, "a-long-secret")
    RemotePolicy(address(server)).predict(at_ready(1), seeds=[0])
    assert "secre" not in "".join(capfd.readouterr())


def test_other_machines_need_a_token_and_browsers_are_turned_away(served):
    start, policy = served
    with pytest.raises(RemoteError, match=f"lets everybody in: set {TOKEN}"):
        Server(policy, {}, host="0.0.0.0", port=0)
    with pytest.raises(RemoteError, match="the 5 characters of POLICYTRIM_TOKEN can be guessed .*set 16 or more"):
        Server(policy, {}, host="0.0.0.0", port=0, token="guess")
    with pytest.raises(InvalidStatus, match="403"), connect(address(start()), origin="http://evil.example"):
        pass
    server = start()
    with pytest.raises(RemoteError, match="cannot listen on .*choose another --port"):
        start(port=server.port)


class Slow:
    def __init__(self, policy, seconds):
        self.contract, self._policy, self.seconds = policy.contract, policy, seconds

    def predict(self, *args, **options):
        time.sleep(self.seconds)
        return self._policy.predict(*args, **options)


def test_a_late_answer_is_not_taken_for_that_of_the_next_question(served):
    start, policy = served
    slow = Slow(policy, 0.6)
    remote, seen = RemotePolicy(address(start(behind=slow)), answer_s=0.2), at_ready(1)
    with pytest.raises(RemoteError, match="no answer within 0.2 s"):
        remote.predict(seen, seeds=[1])
    slow.seconds = 0.0
    time.sleep(0.7)
    assert np.array_equal(remote.predict(seen, seeds=[2]), policy.predict(seen, seeds=[2]))


def test_a_server_that_comes_back_is_found_again_and_with_another_policy_refused(served):
    start, policy = served
    server, seen = start(), at_ready(1)
    remote = RemotePolicy(address(server), open_s=1.0)
    server.close()
    with pytest.raises(RemoteError, match="the connection broke"):
        for _ in range(3):  # the goodbye may be under way
            remote.predict(seen, seeds=[0])
            time.sleep(0.1)
    with pytest.raises(RemoteError, match="no policy server there"):
        remote.predict(seen, seeds=[0])
    again = start(port=server.port)
    assert np.array_equal(remote.predict(seen, seeds=[3]), policy.predict(seen, seeds=[3]))
    again.close()
    start(port=server.port, weights="f" * 64)
    with pytest.raises(RemoteError):
        remote.predict(seen, seeds=[0])
    with pytest.raises(RemoteError, match="came back with another policy"):
        remote.predict(seen, seeds=[0])


# -- what travels ---------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    hnp.integer_dtypes(endianness="<"), hnp.unsigned_integer_dtypes(endianness="<"), hnp.floating_dtypes(endianness="<")
)


@given(hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_arrays_come_back_bit_for_bit(array):
    back = unpack(pack({"a": array, "list": [array]}))
    assert back["a"].dtype == array.dtype and back["a"].shape == array.shape and back["a"].tobytes() == array.tobytes()
    assert back["list"][0].tobytes() == array.tobytes()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_ours(data):
    try:
        unpack(data)
    except WireError:
        pass


@pytest.mark.parametrize(
    "array",
    [
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": (10**9,)},
        {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": (-1,)},
        {b"__ndarray__": True, b"data": b"12345678", b"dtype": "|O", b"shape": (1,)},
        {b"__ndarray__": True, b"data": b"", b"dtype": "no such", b"shape": ()},
        {b"__ndarray__": True},
    ],
)
def test_malformed_arrays_are_refused(array):
    import msgpack

    with pytest.raises(WireError):
        unpack(msgpack.packb(array))


def test_objects_and_sentences_of_bytes_do_not_travel():
    with pytest.raises(TypeError, match="cannot be sent"):
        pack({"a": np.array([object()])})


# ---- a network between them ----------------------------------------------------------------------------------------------


@pytest.fixture
def line(served):
    start, _ = served
    made = Line(start().port)
    yield made
    made.close()


def test_a_line_that_takes_its_time_changes_nothing_but_when(line, served):
    remote, seen = RemotePolicy(f"ws://127.0.0.1:{line.port}"), at_ready(1)
    line.delay_s = 0.15
    began = time.monotonic()
    assert np.array_equal(remote.predict(seen, seeds=[5]), served[1].predict(seen, seeds=[5]))
    assert time.monotonic() - began >= 0.3
    remote.close()


def test_a_line_that_falls_silent_is_a_sentence_in_time_and_back_it_serves_again(line):
    remote, seen = RemotePolicy(f"ws://127.0.0.1:{line.port}", answer_s=0.3, open_s=0.3), at_ready(1)
    line.silent = True
    with pytest.raises(RemoteError, match="no answer within 0.3 s"):
        remote.predict(seen, seeds=[0])
    with pytest.raises(RemoteError, match="no policy server there"):
        remote.predict(seen, seeds=[0])
    line.silent = False
    assert remote.predict(seen, seeds=[0]).shape == (1, remote.contract.prediction_horizon, 7)
    remote.close()


def test_a_server_ends_at_once_where_the_line_to_its_client_has_fallen_silent(served):
    server = served[0]()
    far = Line(server.port)
    remote = RemotePolicy(f"ws://127.0.0.1:{far.port}")
    remote.predict(at_ready(1), seeds=[0])
    far.silent = True
    ending = threading.Thread(target=server.close, daemon=True)
    ending.start()
    ending.join(8.0)  # it would wait for 20 s otherwise: twice what the library waits for
    assert not ending.is_alive()
    far.close()


def test_a_line_that_is_cut_is_a_sentence_and_the_next_question_finds_another(line):
    remote, seen = RemotePolicy(f"ws://127.0.0.1:{line.port}"), at_ready(1)
    line.cut()
    with pytest.raises(RemoteError, match="the connection broke"):
        remote.predict(seen, seeds=[0])
    assert remote.predict(seen, seeds=[0]).shape == (1, remote.contract.prediction_horizon, 7)
    remote.close()


def test_an_array_on_the_wire_is_byte_by_byte_that_of_openpis_client():
    """Written out by the msgpack specification from openpi_client/msgpack_numpy.py: a map of four byte-string keys."""
    one = "84" "c40b5f5f6e6461727261795f5f" "c3" "c40464617461" "c4040000803f" "c4056474797065" "a33c6634" "c4057368617065" "9101"
    assert pack(np.array([1.0], np.float32)) == bytes.fromhex(one)
    assert unpack(bytes.fromhex(one)).tolist() == [1.0]
    number = "83" "c40d5f5f6e7067656e657269635f5f" "c3" "c40464617461" "cb3ff8000000000000" "c4056474797065" "a33c6634"
    assert unpack(bytes.fromhex(number)) == 1.5
