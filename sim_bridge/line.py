"""A network line with faults on command: what is between a policy server and its client. TCP, on this machine.

    line = Line(8000)                     # to 127.0.0.1:8000; clients connect to line.port
    line.delay_s = 0.2                    # of every byte, each way, from now on
    line.silent = True                    # nothing arrives any more, and nobody is told
    line.cut()                            # every connection ends; new ones are possible
    line.close()
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress

PIECE = 1 << 16


class Line:
    """See the module. Whoever connects while nobody listens at the other end is hung up on, as by a machine that is there."""

    def __init__(self, target: int):
        self.delay_s, self.silent, self._target = 0.0, False, target
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="line", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [writer.close() for writer in tuple(self._writers)])

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set_result, None)
        self._thread.join(timeout=5.0)

    async def _serve(self) -> None:
        await self._ended
        self._server.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)
        for writer in self._writers:
            writer.close()

    async def _carry(self, reader, writer) -> None:
        self._writers.add(writer)
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(far_writer)
            await asyncio.gather(self._one_way(reader, far_writer), self._one_way(far_reader, writer))
            self._writers.discard(far_writer)
        writer.close()
        self._writers.discard(writer)

    async def _one_way(self, reader, writer) -> None:
        """Every piece arrives ``delay_s`` after it was sent, in order; the end of the connection too."""
        pieces: asyncio.Queue = asyncio.Queue()

        async def deliver():
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                while self.silent:
                    await asyncio.sleep(0.01)
                if not piece:
                    return writer.close()
                writer.write(piece)
                await writer.drain()

        delivering = asyncio.ensure_future(deliver())
        piece = b"?"
        while piece:
            try:
                piece = await reader.read(PIECE)
            except OSError:
                piece = b""
            pieces.put_nowait((time.monotonic() + self.delay_s, piece))
        with suppress(OSError):
            await delivering
