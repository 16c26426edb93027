"""A policy on another machine: a server that loads a checkpoint, and a client that looks like any other policy.

    policytrim serve models/mine                                     # where the GPU is; says ws://127.0.0.1:8000
    policytrim up checkpoint:=ws://127.0.0.1:8000                    # where the arm is

Protocol: openpi's websocket policy server (wire.py). After the connection the server sends its metadata; then every message
is an observation {"images": {camera: (h, w, 3) uint8}, "state": (14,) float32, "prompt": str, "seed": int} and every answer
{"actions": (H, 7) float32, "server_timing": {"infer_ms": float}}, or a string that says what was wrong. GET /healthz answers 200.

The server listens on 127.0.0.1 unless a token is given; then a client must send `Authorization: Api-Key <token>`. Tokens come from
the environment (POLICYTRIM_TOKEN), are compared in constant time and appear in no log. Use a tunnel (ssh -L) or a TLS proxy
(wss://) beyond a network that you trust.

A slow server is a chunk that comes late, a lost one holds the arm (docs/failsafes.md, "chunk late", "server lost"). The client
connects again by itself; a server that came back with other weights is refused.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from contextlib import ExitStack, suppress

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect
from websockets.sync.server import serve

from policytrim_ros.core.contract import Contract
from policytrim_ros.core.listening import TOKEN, objection
from policytrim_ros.policies.pictures import resize_images
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.wire import WireError, pack, unpack

PROTOCOL = 1
LARGEST = 1 << 24
"""Bytes of one message; two pictures of 1920 x 1080 fit."""
CLOSE_S = 0.5
"""How long either side waits for the other's goodbye, twice: it may be on a line that is dead."""


class RemoteError(RuntimeError):
    """The server cannot be reached, refuses, or does not answer as it should; one sentence."""


class RemotePolicy:
    """The policy behind ``address``, with `contract` and `predict` as `ChunkPolicy` has them, for one observation at a time.

    ``answer_s``: a server that takes longer has not answered. RemoteError from the constructor and from `predict`.
    """

    family = "remote"
    guided = False  # the protocol knows no plan

    def __init__(self, address: str, answer_s: float = 2.0, open_s: float = 5.0):
        self.address, self._answer_s, self._open_s = address, answer_s, open_s
        self._connection = None
        self.metadata = self._open()
        try:
            self.contract = Contract.from_dict(self.metadata["contract"])
            self.weights_sha256 = str(self.metadata["weights_sha256"])
        except (KeyError, TypeError, ValueError) as error:
            raise RemoteError(
                f"{address}: the server does not say what its policy needs ({error}); use `policytrim serve`"
            ) from error

    def _open(self) -> dict:
        token = os.environ.get(TOKEN, "")
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        options = dict(additional_headers=headers, compression=None, max_size=LARGEST, proxy=None)
        try:
            self._open_until_dropped = ExitStack()
            self._connection = self._open_until_dropped.enter_context(
                connect(self.address, open_timeout=self._open_s, close_timeout=CLOSE_S, **options)
            )
            return unpack(self._connection.recv(timeout=self._open_s))
        except InvalidStatus as error:
            code = error.response.status_code
            why = f"the token is missing or wrong; set {TOKEN}" if code in (401, 403) else f"answers {code}"
            raise RemoteError(f"{self.address}: {why}") from error
        except (WebSocketException, OSError, TimeoutError, WireError, TypeError) as error:
            self._drop()
            raise RemoteError(f"{self.address}: no policy server there ({error}); start `policytrim serve DIR`") from error

    def _again(self) -> None:
        metadata = self._open()
        if metadata.get("weights_sha256") != self.weights_sha256:
            self._drop()
            raise RemoteError(f"{self.address}: the server came back with another policy; exchange it with `policytrim swap`")

    def predict(self, observation: Observation, seeds, steps: int | None = None) -> np.ndarray:
        """(1, H, 7) float32; pictures travel at the policy's own size."""
        if len(observation.state) != 1:
            raise ValueError(f"a remote policy takes one observation at a time, not {len(observation.state)}")
        images = {name: pictures[0] for name, pictures in resize_images(observation.images, self.contract.cameras).items()}
        words = {"images": images, "state": observation.state[0], "prompt": observation.instruction[0], "seed": int(seeds[0])}
        if self._connection is None:
            self._again()
        try:
            self._connection.send(pack(words | ({"steps": steps} if steps else {})))
            answer = self._connection.recv(timeout=self._answer_s)
            if isinstance(answer, str):
                raise RemoteError(f"{self.address}: {answer.strip().splitlines()[-1]}")
            actions = np.asarray(unpack(answer)["actions"], np.float32)
        except TimeoutError as error:
            self._drop()  # a late answer must not be taken for that of the next question
            raise RemoteError(f"{self.address}: no answer within {self._answer_s:g} s") from error
        except (WebSocketException, OSError, WireError, KeyError, TypeError, ValueError) as error:
            self._drop()
            raise RemoteError(f"{self.address}: the connection broke ({error})") from error
        if actions.shape != (self.contract.prediction_horizon, 7):
            raise RemoteError(
                f"{self.address}: a chunk of shape {actions.shape}, expected {(self.contract.prediction_horizon, 7)}"
            )
        return actions[None]

    def close(self) -> None:
        """Ends the connection; `predict` would open another."""
        self._drop()

    def _drop(self) -> None:
        self._connection = None
        self._open_until_dropped.close()


class Server:
    """Serves ``policy`` until `close`. ``token``: what clients must show; needed unless ``host`` is this machine's own."""

    def __init__(self, policy, metadata: dict, host: str = "127.0.0.1", port: int = 8000, token: str = ""):
        if why_not := objection(host, token):
            raise RemoteError(why_not)
        self._policy, self._metadata, self._token, self._turn = policy, pack(metadata), token, threading.Lock()
        self._cameras = [camera.name for camera in policy.contract.cameras]
        try:
            options = dict(compression=None, max_size=LARGEST, open_timeout=5.0, close_timeout=CLOSE_S)
            self._server = serve(self._talk, host, port, process_request=self._admit, **options)
        except OSError as error:
            raise RemoteError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error
        self.port = self._server.socket.getsockname()[1]

    def run(self) -> None:
        self._server.serve_forever()

    def close(self) -> None:
        self._server.shutdown()

    def _admit(self, connection, request):
        if request.path == "/healthz":
            return connection.respond(200, "OK\n")
        shown = request.headers.get("Authorization", "")
        if self._token and not hmac.compare_digest(shown.encode(), f"Api-Key {self._token}".encode()):
            return connection.respond(401, "the token is missing or wrong\n")
        if request.headers.get("Origin"):  # a page in somebody's browser
            return connection.respond(403, "browsers are not served\n")
        return None

    def _talk(self, connection) -> None:
        with suppress(ConnectionClosed):  # a client that went away
            connection.send(self._metadata)
            for message in connection:
                try:
                    answer = pack(self._answer(message))
                except (WireError, ValueError, TypeError, KeyError) as error:
                    answer = f"this observation cannot be used: {type(error).__name__}: {error}"
                connection.send(answer)

    def _answer(self, message) -> dict:
        if isinstance(message, str):
            raise WireError("expected bytes")
        words = unpack(message)
        images = {name: np.asarray(words["images"][name])[None] for name in self._cameras}
        observation = Observation(images, np.asarray(words["state"], np.float32)[None], [str(words["prompt"])])
        steps = words.get("steps")
        if steps is not None and not 1 <= int(steps) <= 100:
            raise ValueError(f"steps = {steps}: 1 to 100")
        with self._turn:  # one policy, several clients
            began = time.perf_counter()
            actions = self._policy.predict(observation, seeds=[int(words.get("seed", 0))], steps=steps and int(steps))
        actions = np.asarray(actions, np.float32)[0]
        return {"actions": actions, "server_timing": {"infer_ms": 1000 * (time.perf_counter() - began)}}


def metadata_of(manifest: dict) -> dict:
    """What a server says of its checkpoint."""
    kept = {name: manifest.get(name) for name in ("contract", "family", "tasks", "gate")}
    return {"policytrim": PROTOCOL, **kept, "weights_sha256": manifest["files"]["model.safetensors"]}


# -- command line ---------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """``policytrim serve``."""
    parser.add_argument("checkpoint", help="directory of the checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help=f"address to listen on (127.0.0.1; others need {TOKEN})")
    parser.add_argument("--port", type=int, default=8000, help="port (8000)")
    parser.add_argument("--device", default="cpu", help="torch device of the policy")
    parser.add_argument("--threads", type=int, default=1, choices=range(1, 257), metavar="N", help="torch threads (1)")


def main(args) -> int:
    """Serves until Ctrl-C; 1 after one sentence about what went wrong."""
    import signal

    import torch

    from policytrim_ros.policies import checkpoint, staging

    torch.set_num_threads(args.threads)
    try:
        manifest = checkpoint.read_manifest(args.checkpoint)
        own = checkpoint.contract_of(manifest, args.checkpoint)
        if own.object_slots:
            raise RemoteError(f"{args.checkpoint}: is told the true poses of objects, which only the simulator knows")
        policy, _ = staging.stage(args.checkpoint, own, device=args.device, say=lambda text: print(f"serve: {text}", flush=True))
        server = Server(policy, metadata_of(manifest), args.host, args.port, os.environ.get(TOKEN, ""))
    except (RemoteError, staging.StagingError, checkpoint.CheckpointError) as error:
        print(f"serve: {error}", flush=True)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=server.close).start())
    print(f"serve: {args.checkpoint} on ws://{args.host}:{server.port}, until Ctrl-C", flush=True)
    server.run()
    print("serve: ended", flush=True)
    return 0
