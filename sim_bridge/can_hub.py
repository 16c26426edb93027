"""A CAN bus between processes without a CAN kernel module: python-can interface ``piper_hub`` over a Unix socket.

    can.Bus(interface="piper_hub", channel="/tmp/piper.sock")

The emulated arm owns the hub (``Hub``); every bus client (``HubBus``, found by python-can through the entry point group
``can.interface``) connects to it. A frame reaches everybody but its sender. A client that never reads,
such as the send half of piper_sdk, loses frames and disturbs nobody.

On the wire one SEQPACKET packet = time stamp (float64, wall clock, s), loopback (bool), then frames of 16 bytes in the layout of
``struct can_frame``. The stamp is taken when the frames enter the bus, so a reader that was held up sees how old they are.
Without loopback (piper_sdk asks for that) a command reaches the arm and no other client, as on SocketCAN.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import time
from collections import deque
from typing import Iterator

import can

HEAD = struct.Struct("=d?")
FRAME = struct.Struct("=IB3x8s")
EXTENDED, REMOTE, ID_MASK = 0x80000000, 0x40000000, 0x1FFFFFFF

PACKET_BYTES = 4096
"""Longest packet; a tick of the arm's feedback needs 328 bytes."""

SEND_BUFFER_BYTES = 24576
"""Room for about 64 unsent frames: a hub that takes nothing makes sends fail soon, like a controller in bus-off."""

LISTENER_BUFFER_BYTES = 8192
"""Room for about 0.1 s of feedback: a listener that is too slow loses frames instead of living ever further in the past."""


class HubInUse(RuntimeError):
    """Another process already serves this socket; the message says which socket and what to do."""


class Hub:
    """The bus itself, server of the socket at ``path``. Never blocks; ``collect`` and ``broadcast`` are called from one loop.

    Raises HubInUse when a live process serves ``path`` and OSError when the socket cannot be made. A socket file left
    behind by a killed process is replaced.
    """

    def __init__(self, path: str):
        self.path = str(path)
        self.passing = True  # False: bus-off
        self.taking = True  # False: what clients send stays in their buffers
        self._clients: list[socket.socket] = []
        self._listener = listen(self.path, socket.SOCK_SEQPACKET)
        self._poll = select.poll()  # one look at all sockets: asking each of them costs a tick of the arm more than its motors do
        self._poll.register(self._listener, select.POLLIN)

    @property
    def clients(self) -> int:
        return len(self._clients)

    def collect(self) -> list[tuple[float, int, bytes]]:
        """Frames that clients sent since the last call, as (wall-clock stamp, CAN id, 8 data bytes); relays them to the others.

        While ``passing`` (bus-off) or ``taking`` is False nothing is taken from the clients, whose send buffers then fill up.
        """
        ready = {descriptor for descriptor, _ in self._poll.poll(0)}
        if self._listener.fileno() in ready:
            self._accept()
        frames = []
        if not (self.passing and self.taking):
            return frames
        for client in [client for client in self._clients if client.fileno() in ready]:
            for packet in _packets(client):
                if not packet:
                    self._drop(client)
                    break
                stamp, loopback = HEAD.unpack_from(packet)
                if loopback:
                    self._deliver(packet, client)
                for can_id, _length, data in FRAME.iter_unpack(packet[HEAD.size :]):
                    frames.append((stamp, can_id, data))
        return frames

    def broadcast(self, frames: bytes) -> None:
        """Sends concatenated frames (multiples of 16 bytes) to every client, stamped now."""
        if frames and self.passing:
            self._deliver(HEAD.pack(time.time(), True) + frames, None)

    def discard(self) -> None:
        """Throws away what clients have queued: a controller that leaves bus-off starts with empty buffers."""
        for client in self._clients:
            for _ in _packets(client):
                pass  # of one that is gone the next collect hears it again, and drops it

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LISTENER_BUFFER_BYTES)
            self._clients.append(client)
            self._poll.register(client, select.POLLIN)

    def _deliver(self, packet: bytes, sender) -> None:
        for client in tuple(self._clients):
            if client is sender:
                continue
            try:
                client.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass  # it does not read: CAN does not wait for slow listeners either; or it is gone: `collect` has its last words first

    def _drop(self, client) -> None:
        self._clients.remove(client)
        self._poll.unregister(client)
        client.close()


def _packets(client: socket.socket) -> Iterator[bytes]:
    """The packets that ``client`` has sent and nobody has taken; at last an empty one when it is gone."""
    while True:
        try:
            packet = client.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionResetError:  # said once, of a client that left without reading all: its last words come next
            continue
        except OSError:
            packet = b""
        yield packet
        if not packet:
            return


class PythonCanBus:
    """The arm's end of any other python-can bus, such as one end of a vxcan pair, with the methods of ``Hub``.

    Raises OSError with one sentence when the bus cannot be opened. Frames that the bus does not take are lost, as on a real arm.
    """

    def __init__(self, interface: str, channel: str):
        try:
            self._bus = can.Bus(interface=interface, channel=channel)
        except (can.CanError, NotImplementedError, OSError) as error:
            raise OSError(f"{interface} port '{channel}' cannot be opened: {error}") from error

    def collect(self) -> list[tuple[float, int, bytes]]:
        """Frames that arrived since the last call, as (wall-clock stamp, CAN id, 8 data bytes)."""
        frames = []
        while (message := self._bus.recv(0.0)) is not None:
            frames.append((message.timestamp, message.arbitration_id, bytes(message.data).ljust(8, b"\0")))
        return frames

    def broadcast(self, frames: bytes) -> None:
        """Sends concatenated frames (multiples of 16 bytes)."""
        for can_id, length, data in FRAME.iter_unpack(frames):
            try:
                self._bus.send(can.Message(arbitration_id=can_id, dlc=length, data=data[:length], is_extended_id=False))
            except can.CanError:
                return

    def close(self) -> None:
        self._bus.shutdown()


class HubBus(can.BusABC):
    """python-can bus of interface ``piper_hub``; ``channel`` is the socket of a running hub.

    Raises can.CanInitializationError when nobody serves the socket, can.CanOperationError when the hub has gone or when
    the send buffer is full. Options meant for other interfaces (bitrate) are accepted and have no effect.
    """

    def __init__(self, channel, can_filters=None, receive_own_messages: bool = False, local_loopback: bool = True, **kwargs):
        self.channel_info = f"piper_hub on {channel}"
        self._frames: deque[can.Message] = deque()
        self._own, self._loopback = receive_own_messages, local_loopback
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            self._socket.connect(str(channel))
        except OSError as error:
            self._socket.close()
            raise can.CanInitializationError(
                f"no emulated CAN bus at {channel}: {error.strerror or error}", error.errno
            ) from error
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        super().__init__(channel, can_filters=can_filters, **kwargs)

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        flags = (EXTENDED if msg.is_extended_id else 0) | (REMOTE if msg.is_remote_frame else 0)
        packet = HEAD.pack(time.time(), self._loopback) + FRAME.pack(msg.arbitration_id | flags, msg.dlc, bytes(msg.data))
        if timeout:
            writable = select.poll()
            writable.register(self._socket, select.POLLOUT)
            writable.poll(timeout * 1000.0)
        try:
            self._socket.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError as error:
            raise can.CanOperationError("transmit buffer full", errno.ENOBUFS) from error
        except OSError as error:
            raise can.CanOperationError(f"{self.channel_info} has gone: {error.strerror}", error.errno) from error
        if self._own:
            self._frames.append(msg)

    def _recv_internal(self, timeout):
        if not self._frames:
            if not self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000.0):
                return None, False
            try:
                packet = self._socket.recv(PACKET_BYTES)
            except OSError as error:
                raise can.CanOperationError(f"{self.channel_info} has gone: {error.strerror}", error.errno) from error
            if not packet:
                raise can.CanOperationError(f"{self.channel_info} has gone: its process ended", errno.ENETDOWN)
            stamp, _ = HEAD.unpack_from(packet)
            for can_id, length, data in FRAME.iter_unpack(packet[HEAD.size :]):
                self._frames.append(
                    can.Message(
                        timestamp=stamp,
                        arbitration_id=can_id & ID_MASK,
                        is_extended_id=bool(can_id & EXTENDED),
                        is_remote_frame=bool(can_id & REMOTE),
                        dlc=length,
                        data=data[:length],
                        channel=self.channel_info,
                    )
                )
        return self._frames.popleft(), False

    def shutdown(self) -> None:
        super().shutdown()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits in recv
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.EBADF):
                raise
        self._socket.close()


def listen(path: str, kind: int) -> socket.socket:
    """A non-blocking listening Unix socket at ``path``; replaces a socket file whose process is dead, else raises HubInUse."""
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.setblocking(False)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(errno.EEXIST, "a file that is not a socket is in the way; choose another path", path) from None
            if _is_served(path, kind):
                raise HubInUse(f"{path} is already served by another process: stop that one or choose another socket") from None
            os.unlink(path)
            listener.bind(path)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_served(path: str, kind: int) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True  # its queue is full, so it exists
    return True
