"""The console's web server, in a thread of its own beside the program whose `Cockpit` it shows.

    GET  /                      the page; GET /page/<file>: what belongs to it. The same for everybody, nothing secret in it
    GET  /access                {"login": whether a token has to be shown first, "read_only"}
    POST /login                 {"token"} -> a cookie
    GET  /ws                    WebSocket: {"state", "you"} as JSON, at once after a change, 5 times a second while something moves
    GET  /pictures              WebSocket: pictures of all cameras, see `_picture_message`
    GET  /camera/<name>.jpg     one picture;  GET /card/<camera>.jpg: the scene that is wanted
    GET  /report/<session>      HTML;  /report/<session>.md: Markdown
                                503 with {"error"} while it, or too many others, are still being made
    POST /order/<name>          {"client", "who", "details"} -> {"said"} or, with 4xx, {"error"}
    POST /control/<ask|give|keep>   {"client", "who"}

Both WebSockets send only when the client has asked for more by the text "next" (twice at the beginning): what a slow client does not
take is skipped, never queued, and what it sees is never older than its network. On /ws the client first sends {"client": its secret}.
Pictures are passed on as the JPEG that the cockpit has, to all viewers the same bytes.

Every order has a thread of its own, so that none waits behind another, `hold` least of all; reports have few, and one serves all who
wait for it. Every response closes its connection:
headers and bodies that trickle in are cut after a few seconds, connections are counted, and no request takes longer than LONGEST_S.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import queue
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Mapping

from aiohttp import WSMsgType, web

from policytrim_ros.console import glance
from policytrim_ros.console.access import COOKIE, Access, ConsoleError, Control, checked_client, checked_name
from policytrim_ros.console.cockpit import NEEDED, Cockpit, Malformed, Refused, checked, checked_fields

PAGE = Path(__file__).parent / "page"
FILES = {path.name: path for path in PAGE.iterdir() if path.suffix in (".js", ".css", ".json", ".svg")}
PICTURES_HZ = 30.0
"""How often new pictures are looked for; so many of a camera a viewer gets at most."""
STATE_S = 0.2
QUIET_S = 1.0
"""A client that hears nothing for three times as long has lost the connection."""
UNASKED = 2
"""How many times "next" a client may be ahead."""
BODY_BYTES = 64 * 1024
HEADERS_S = BODY_S = 5.0
SEND_S = 10.0
REPORTS = 4
"""So many reports at once, the one that is being made and those that wait."""
REPORT_S = 100.0
"""So long a request waits for its report; one that comes later finds it made."""
GUESS_S = 1.0
"""How long an answer to a wrong token takes."""
LONGEST_S = 120.0
CONNECTIONS, CONNECTIONS_OF_ONE = 256, 64
"""At most so many connections; of one address."""
UNREAD_BYTES = 256 * 1024
"""What the kernel keeps for a client that does not read."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REPORT_POLICY = (
    "sandbox allow-popups; default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A report is one file without scripts; a hostile note in it could do nothing."""

ADMITTED = web.RequestKey("admitted", bool)
"""Whether a request has shown the token, or needs none."""

log = logging.getLogger("policytrim.console")


class Server:
    """Serves ``cockpit`` from `start` to `close`; ``port`` 0: any free one. ConsoleError when the address cannot be used.

    ``token``: what has to be shown; needed unless ``host`` is this machine's own. ``read_only``: no orders at all, not even hold.
    """

    def __init__(self, cockpit: Cockpit, host: str = "127.0.0.1", port: int = 8765, token: str = "", read_only: bool = False):
        self._cockpit, self._host, self._access = cockpit, host, Access(host, token)
        self.port, self.read_only = port, read_only
        self._control = Control()
        self._holder, self._notes = "", queue.SimpleQueue()  # who was in control when that was last noted; events for the record
        self._state: dict[str, Any] = {}
        self._steady: Any = None
        self._published = 0.0
        self._busy: set[str] = set()
        self._sockets: set[web.WebSocketResponse] = set()
        self._lasting: set[Any] = set()  # protocols of WebSockets
        self._cards: dict[str, tuple[Any, asyncio.Task]] = {}
        self._reports: dict[tuple[str, bool], asyncio.Task] = {}
        self._ready, self._asked, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    # ---- life --------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        host = socket.gethostname() if self._host in ("0.0.0.0", "::", "") else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def start(self) -> "Server":
        self._spawn(lambda: asyncio.run(self._serve()), "console")
        self._ready.wait()
        if isinstance(self._failure, OSError):
            why = self._failure.strerror or self._failure
            raise ConsoleError(f"cannot listen on {self._host}:{self.port}: {why}; choose another port") from self._failure
        if self._failure is not None:
            raise self._failure
        self._spawn(self._watch_state, "console_state")
        self._spawn(self._watch_pictures, "console_pictures")
        self._spawn(self._write_notes, "console_notes")
        return self

    def close(self) -> None:
        """Tells all clients, then ends; orders that are being carried out are not waited for."""
        if self._closing.is_set() or not self._threads:
            return
        self._closing.set()
        self._asked.set()
        self._on_loop(self._end.set)
        self._notes.put(None)
        for thread in self._threads:
            thread.join(5.0)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_) -> None:
        self.close()

    def _spawn(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _on_loop(self, work: Callable, *arguments) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(work, *arguments)

    async def _serve(self) -> None:
        try:
            self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
            self._states, self._pictures = Newest(), Newest()
            app = web.Application(middlewares=[self._guard], client_max_size=BODY_BYTES)
            app.add_routes(self._routes())
            app.on_response_prepare.append(_add_headers)
            runner = web.AppRunner(app, access_log=None, keepalive_timeout=HEADERS_S, lingering_time=1.0, shutdown_timeout=1.0)
            await runner.setup()
            door = lambda: Door(runner.server, self._lasting)  # noqa: E731
            listening = await self._loop.create_server(door, self._host, self.port)
            self.port = listening.sockets[0].getsockname()[1]
        except BaseException as error:
            self._failure = error
            return
        finally:
            self._ready.set()
        await self._end.wait()
        listening.close()
        for one in list(self._sockets):
            with suppress(Exception):
                await asyncio.wait_for(one.close(code=1001, message=b"the console ends"), 0.5)
        await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self._index),
            web.get("/page/{file}", self._file),
            web.get("/access", self._tell_access),
            web.post("/login", self._login),
            web.get("/ws", self._live),
            web.get("/pictures", self._show),
            web.get("/camera/{camera:.+}.jpg", self._picture),
            web.get("/card/{camera:.+}.jpg", self._card),
            web.get("/report/{session:.+}.md", self._markdown),
            web.get("/report/{session:.+}", self._report),
            web.post("/order/{name}", self._order),
            web.post("/control/{what:ask|give|keep}", self._hand_over),
        ]

    # ---- who comes in ------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler) -> web.StreamResponse:
        """Every request passes here."""
        try:
            await self._check(request)
            response = await handler(request)
        except Malformed as error:
            response = _error(400, str(error))
        except Refused as error:
            response = _error(409, str(error))
        except Denied as error:
            response = _error(error.status, str(error))
        except web.HTTPRequestEntityTooLarge:
            response = _error(413, f"larger than {BODY_BYTES} bytes")
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):  # the last: the client has gone, which aiohttp knows
            raise
        except Exception:
            log.exception("event=console_error path=%r", request.path)
            response = _error(500, "the console has failed; its log says how")
        if not isinstance(response, web.WebSocketResponse):
            response.force_close()
        return response

    async def _check(self, request: web.Request) -> None:
        if not self._access.knows_host(request.headers.get("Host", "")):
            raise Denied(403, "this machine is not called so; use its IP address or its host name")
        if (request.method == "POST" or request.path in ("/ws", "/pictures")) and not self._access.same_site(request.headers):
            raise Denied(403, "requests of other sites are not served")
        shown = self._access.has_token(request.headers, request.cookies)
        if shown is False:
            await asyncio.sleep(GUESS_S)
        request[ADMITTED] = bool(shown)
        if request.path in ("/", "/access", "/login") or request.path.startswith("/page/"):
            return
        if not shown:
            raise Denied(401, "the token is missing or wrong")
        if request.method == "POST" and self.read_only:
            raise Denied(403, "this console is read-only")

    async def _tell_access(self, request: web.Request) -> web.Response:
        return web.json_response({"login": not request[ADMITTED], "read_only": self.read_only})

    async def _login(self, request: web.Request) -> web.Response:
        body = checked_fields(await _body(request), {"token": (str, NEEDED)}, "login")
        if not self._access.is_token(body["token"]):
            await asyncio.sleep(GUESS_S)
            raise Denied(401, "the token is wrong")
        response = web.json_response({"said": "welcome"})
        response.set_cookie(COOKIE, self._access.cookie, httponly=True, samesite="Strict", path="/")
        return response

    # ---- the page ----------------------------------------------------------------------------------------------------

    async def _index(self, _request) -> web.Response:
        return web.Response(body=(PAGE / "index.html").read_bytes(), content_type="text/html", charset="utf-8")

    async def _file(self, request: web.Request) -> web.Response:
        path = FILES.get(request.match_info["file"])
        if path is None:
            raise Denied(404, "no such file")
        kinds = {".js": "text/javascript", ".css": "text/css", ".json": "application/json", ".svg": "image/svg+xml"}
        return web.Response(body=path.read_bytes(), content_type=kinds[path.suffix], charset="utf-8")

    # ---- the state, to every client ----------------------------------------------------------------------------------

    def _watch_state(self) -> None:
        """Thread: asks for the state. A cockpit that fails or hangs is silence, which clients show as a lost connection."""
        while not self._closing.is_set():
            try:
                state = _plain(self._cockpit.state())
                state["word"], state["orders"] = glance.word(state), glance.sensible_orders(state)
                self._on_loop(self._take, state)
            except Exception:
                log.exception("event=console_state_failed")
                self._closing.wait(QUIET_S)
            self._asked.wait(STATE_S)
            self._asked.clear()

    def _take(self, state: dict) -> None:
        """A new state; told at once when it differs in more than its clocks, or something moves."""
        self._note_control()  # whoever was in control may have left
        self._state = state | {"control": self._control.seen(time.monotonic())}
        steady = _without_clocks(self._state)
        moves = state["word"]["name"] in ("running", "moving", "disturb")
        if moves or steady != self._steady or time.monotonic() - self._published >= QUIET_S - STATE_S / 2:
            self._steady, self._published = steady, time.monotonic()
            self._states.put(json.dumps(self._state, ensure_ascii=False, allow_nan=False))

    async def _live(self, request: web.Request) -> web.WebSocketResponse:
        client = ""

        def begin(text: str) -> None:
            nonlocal client
            body = checked_fields(_parsed(text.encode("utf-8", "surrogatepass")), {"client": (str, NEEDED)}, "/ws")
            client = checked_client(body["client"])
            self._control.hear(client, time.monotonic())

        def message(state: str, _before) -> str:
            return f'{{"state": {state}, "you": {json.dumps({"control": self._control.is_holder(client), "read_only": self.read_only})}}}'

        return await self._feed(request, self._states, message, begin, lambda: self._control.hear(client, time.monotonic()))

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def _watch_pictures(self) -> None:
        """Thread: takes each camera's newest picture when somebody looks, and tells that there is none at least every QUIET_S."""
        newest: dict[str, tuple[bytes, float]] = {}
        told = 0.0
        while not self._closing.wait(1 / PICTURES_HZ):
            if not self._lasting:
                continue
            fresh = False
            for camera in self._cameras():
                try:
                    picture = self._cockpit.picture(camera)
                except Exception:
                    log.exception("event=console_picture_failed camera=%r", camera)
                    picture = None
                if picture is not None and picture[1] != newest.get(camera, (b"", None))[1]:
                    newest[camera], fresh = picture, True
            if fresh or time.monotonic() - told > QUIET_S:
                told = time.monotonic()
                self._on_loop(self._pictures.put, dict(newest))

    async def _show(self, request: web.Request) -> web.WebSocketResponse:
        return await self._feed(request, self._pictures, _picture_message)

    async def _picture(self, request: web.Request) -> web.Response:
        camera = self._known_camera(request)
        picture = await self._in_thread(self._cockpit.picture, camera)
        if picture is None:
            raise Denied(404, "no picture yet")
        return web.Response(body=picture[0], content_type="image/jpeg", headers={"X-Stamp": f"{picture[1]:.3f}"})

    async def _card(self, request: web.Request) -> web.Response:
        """Drawn once for a scene, however many look."""
        camera = self._known_camera(request)
        trial, scene = self._state.get("trial") or {}, self._state.get("scene") or {}
        wanted = [(trial.get("card") or scene).get(key) for key in ("task", "setting", "seed")]
        if self._cards.get(camera, (None,))[0] != wanted:
            self._cards[camera] = wanted, asyncio.ensure_future(self._in_thread(self._cockpit.card, camera))
        drawn = self._cards[camera][1]
        try:
            card = await asyncio.shield(drawn)
        except Exception:
            card = None
            raise
        finally:
            if drawn.done() and card is None and self._cards.get(camera, (None, None))[1] is drawn:
                del self._cards[camera]  # perhaps there is one later
        if card is None:
            return web.Response(status=204)
        return web.Response(body=card, content_type="image/jpeg")

    def _cameras(self) -> list[str]:
        return [camera["name"] for camera in self._state.get("cameras") or ()]

    def _known_camera(self, request: web.Request) -> str:
        camera = request.match_info["camera"]
        if camera not in self._cameras():
            raise Denied(404, "no such camera")
        return camera

    # ---- reports -----------------------------------------------------------------------------------------------------

    async def _report(self, request: web.Request) -> web.Response:
        text = await self._made_report(self._known_session(request), True)
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return web.Response(text=text, content_type="text/html", charset="utf-8", headers=headers)

    async def _markdown(self, request: web.Request) -> web.Response:
        text = await self._made_report(self._known_session(request), False)
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    async def _made_report(self, session: str, html: bool) -> str:
        """Asked for once, however many wait for it."""
        wanted = session, html
        if wanted not in self._reports:
            if len(self._reports) >= REPORTS:
                raise Denied(503, f"{REPORTS} reports are being made already; ask again in a minute")
            self._reports[wanted] = asyncio.ensure_future(self._in_thread(self._cockpit.report, session, html))
            self._reports[wanted].add_done_callback(
                lambda made: (self._reports.pop(wanted), made.cancelled() or made.exception())
            )
        try:
            return await asyncio.wait_for(asyncio.shield(self._reports[wanted]), REPORT_S)
        except asyncio.TimeoutError:
            raise Denied(503, "the report is still being made; ask again in a minute") from None

    def _known_session(self, request: web.Request) -> str:
        session, current = request.match_info["session"], self._state.get("session") or {}
        if session not in {current.get("id")} | {one["id"] for one in self._state.get("sessions") or ()}:
            raise Denied(404, "no such session")
        return session

    # ---- orders ------------------------------------------------------------------------------------------------------

    async def _order(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        known = {"who": (str, NEEDED), "client": (str, "" if name == "hold" else NEEDED), "details": (dict, NEEDED)}
        body = checked_fields({"details": {}, **await _body(request)}, known, f"/order/{name[:40]}")
        who, details = checked_name(body["who"]), checked(name, body["details"])
        if name != "hold":
            self._take_turn(name, checked_client(body["client"]), who)
        try:
            said = await self._in_thread(self._cockpit.order, name, details, who)
        except (Refused, Malformed) as error:
            log.info("event=order name=%s who=%r refused=%r", name, who, str(error))
            raise
        finally:
            self._busy.discard(name)
            self._asked.set()
        log.info("event=order name=%s who=%r said=%r", name, who, said)
        return web.json_response({"said": said})

    def _take_turn(self, name: str, client: str, who: str) -> None:
        """Lets one order of each name through, of whoever is in control."""
        try:
            self._control.operate(client, who, time.monotonic())
            if name in self._busy:
                raise Refused(f"'{name}' is already being carried out")
        except Refused as error:
            log.info("event=order name=%s who=%r refused=%r", name, who, str(error))
            self._note("refused", order=name, who=who, why=str(error))
            raise
        self._busy.add(name)
        self._note_control()

    def _note_control(self) -> None:
        """Keeps in the record who is in control, when that has changed."""
        holder = self._control.seen(time.monotonic())["holder"]
        if holder != self._holder:
            self._holder, before = holder, self._holder
            log.info("event=in_control who=%r before=%r", holder, before)
            self._note("in control", who=holder, before=before)

    def _note(self, kind: str, **detail) -> None:
        """Hands an event to the cockpit, in its order and without waiting for the disk."""
        self._notes.put((kind, detail))

    def _write_notes(self) -> None:
        """Thread: until None comes."""
        while (note := self._notes.get()) is not None:
            try:
                self._cockpit.note(*note)
            except Exception:
                log.exception("event=console_note_failed")

    async def _hand_over(self, request: web.Request) -> web.Response:
        known = {"who": (str, NEEDED), "client": (str, NEEDED)}
        body = checked_fields(await _body(request), known, "/control")
        who, client, now = checked_name(body["who"]), checked_client(body["client"]), time.monotonic()
        what = request.match_info["what"]
        try:
            said = self._control.ask(client, who, now) if what == "ask" else getattr(self._control, what)(client, now)
        except Refused as error:
            self._note("refused", order=f"{what} control", who=who, why=str(error))
            raise
        log.info("event=control what=%s who=%r said=%r", what, who, said)
        self._note("control", what=what, who=who, said=said)
        self._note_control()
        self._asked.set()
        return web.json_response({"said": said})

    async def _in_thread(self, work: Callable, *arguments) -> Any:
        """The result of ``work``, done in a thread of its own."""
        future = self._loop.create_future()

        def settle(result, error) -> None:
            if not future.done():
                future.set_exception(error) if error is not None else future.set_result(result)

        def run() -> None:
            try:
                outcome = work(*arguments), None
            except Exception as error:
                outcome = None, error
            self._on_loop(settle, *outcome)

        threading.Thread(target=run, name="console_order", daemon=True).start()
        return await future

    # ---- one WebSocket -----------------------------------------------------------------------------------------------

    async def _feed(
        self, request, newest: "Newest", message: Callable, begin: Callable | None = None, alive: Callable = lambda: None
    ) -> web.WebSocketResponse:
        """Sends what is newest each time the client has asked for more; ends with a client that says anything else or nothing."""
        live = web.WebSocketResponse(max_msg_size=1024, compress=False, timeout=1.0)
        await live.prepare(request)
        transport = request.transport
        if transport is None:  # gone already
            return live
        self._sockets.add(live)
        self._lasting.add(request.protocol)
        asked, ahead = asyncio.Event(), 0

        async def send() -> None:
            nonlocal ahead
            version, before = 0, None
            try:
                while True:
                    await asked.wait()
                    version, value = await newest.after(version)
                    ahead -= 1
                    if not ahead:
                        asked.clear()
                    words = message(value, before)
                    sending = live.send_str(words) if isinstance(words, str) else live.send_bytes(words)
                    await asyncio.wait_for(sending, SEND_S)
                    before = value
            except (asyncio.TimeoutError, ConnectionError):
                transport.abort()

        sender = asyncio.ensure_future(send())
        try:
            while True:
                words = await live.receive(timeout=SEND_S)
                if words.type is not WSMsgType.TEXT:
                    break
                if begin is not None:
                    begin, started = None, begin
                    started(words.data)
                elif words.data == "next" and ahead < UNASKED:
                    ahead += 1
                    asked.set()
                    alive()
                else:
                    break
        except (asyncio.TimeoutError, Malformed):
            pass
        finally:
            sender.cancel()
            self._sockets.discard(live)
            self._lasting.discard(request.protocol)
            try:
                with suppress(Exception):
                    await asyncio.wait_for(live.close(code=1008), 1.0)
                await asyncio.wait([sender], timeout=1.0)
            finally:
                transport.abort()  # whatever a deaf client has not read is dropped
        return live


class Newest:
    """One value, of which only the newest counts."""

    def __init__(self):
        self._version, self._value, self._changed = 0, None, asyncio.Event()

    def put(self, value: Any) -> None:
        self._version, self._value = self._version + 1, value
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, version: int) -> tuple[int, Any]:
        """The newest value as soon as it is newer than ``version``, with its own version."""
        while self._version <= version:
            await self._changed.wait()
        return self._version, self._value


class Door(asyncio.Protocol):
    """Lets a connection through to ``server`` (aiohttp's) unless there are too many; cuts it when it lasts too long.

    aiohttp itself cuts one whose headers do not come within its keep-alive time.
    """

    def __init__(self, server: web.Server, lasting: set):
        self._server, self._lasting = server, lasting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = lambda one: (one.get_extra_info("peername") or ("",))[0]  # noqa: E731
        others = [one.transport for one in self._server.connections if one.transport is not None]
        if len(others) >= CONNECTIONS or sum(address(one) == address(transport) for one in others) >= CONNECTIONS_OF_ONE:
            transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        handler = self._server()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        cut = lambda: handler in self._lasting or transport.abort()  # noqa: E731
        asyncio.get_running_loop().call_later(LONGEST_S, cut)


class Denied(Exception):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


def _error(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


async def _add_headers(_request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def _body(request: web.Request) -> dict:
    """The JSON object in the body of a request."""
    if request.content_type != "application/json":
        raise Denied(415, "send application/json")
    try:
        return _parsed(await asyncio.wait_for(request.read(), BODY_S))
    except asyncio.TimeoutError:
        raise Denied(408, f"the body did not come within {BODY_S:.0f} s") from None


def _parsed(text: bytes) -> dict:
    """A JSON object without NaN, doubled keys or broken characters; Malformed."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False).encode()  # lone surrogates, which neither disk nor log could take
    except (ValueError, RecursionError):
        raise Malformed("the body is no JSON that can be used") from None
    if not isinstance(value, dict):
        raise Malformed("the body must be a JSON object")
    return value


def _refuse_constant(name: str):
    raise ValueError(name)


def _once(pairs: list[tuple[str, Any]]) -> dict:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _plain(value: Any) -> Any:
    """JSON values that a browser can read: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


CLOCKS = {"stamp", "since_s", "age_ms", "fps", "messages", "free_mb", "eta_s", "left_s"}


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(one) for key, one in value.items() if key not in CLOCKS}
    return [_without_clocks(one) for one in value] if isinstance(value, list) else value


def _picture_message(pictures: dict[str, tuple[bytes, float]], before: dict | None) -> bytes:
    """What is new since ``before``, of each camera: length of its name (uint8), name, age in s (float32), bytes (uint32), JPEG;
    all big-endian."""
    parts = []
    for camera, (jpeg, stamp) in pictures.items():
        if before is None or before.get(camera) is not pictures[camera]:
            name = camera.encode()[:255]
            parts += [struct.pack(">B", len(name)), name, struct.pack(">fI", time.time() - stamp, len(jpeg)), jpeg]
    return b"".join(parts)
