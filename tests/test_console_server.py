"""The console's server on a real socket: what it serves, whom it turns away, and that nobody can make it wait."""

import asyncio
import gzip
import hmac
import json
import logging
import socket
import struct
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import aiohttp
import pytest
from console_cockpit import MemoryCockpit

from policytrim_ros.console import access, glance, server
from policytrim_ros.console.access import GONE_S, Access, ConsoleError, Control, checked_name
from policytrim_ros.console.cockpit import ORDERS, Malformed, Refused, checked
from policytrim_ros.console.server import Server
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.safety import FAILSAFES
from policytrim_ros.trials.session import Session

ANN, BOB = "a" * 32, "b" * 32
TOKEN = "correct horse battery staple"
PLAN = {"tasks": ["tape_box"], "settings": ["standard"], "arms": [{"name": "one"}, {"name": "two"}], "scenes": 2, "seed": 7}


@pytest.fixture
def cockpit():
    return MemoryCockpit()


@pytest.fixture
def serve(cockpit):
    """A function (options of Server) -> running server."""
    servers = []

    def start(behind=cockpit, **options):
        servers.append(Server(behind, port=0, **options).start())
        return servers[-1]

    yield start
    cockpit.gate.set()
    for one in servers:
        one.close()


def ask(served, method, path, body=None, **headers):
    """(status, headers, body) of one request, made as it is given."""
    connection = HTTPConnection("127.0.0.1", served.port, timeout=15)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def post(served, path, body, **headers):
    """(status, JSON) of an order."""
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    status, _, answer = ask(served, "POST", path, text, **{"Content_Type": "application/json"} | headers)
    return status, json.loads(answer)


def order(served, name, client=ANN, who="Ann", **details):
    return post(served, f"/order/{name}", {"client": client, "who": who, "details": details})


@contextmanager
def connected(served):
    """A plain socket to the server."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        yield connection


def ended(connection) -> bytes:
    """Everything that comes until the server closes the connection."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def live(served, work, path="/ws", client=ANN, **options):
    """Runs ``work(socket)`` with a WebSocket that has asked for two messages."""

    async def run():
        async with aiohttp.ClientSession() as session, session.ws_connect(served.url + path, **options) as socket:
            for word in ([json.dumps({"client": client})] if path == "/ws" else []) + ["next", "next"]:
                await socket.send_str(word)
            return await work(socket)

    return asyncio.run(asyncio.wait_for(run(), 30))


async def states(socket, condition):
    """The first message of which ``condition`` is true, asking for more until then."""
    while True:
        message = json.loads(await socket.receive_str(timeout=5))
        if condition(message):
            return message
        await socket.send_str("next")


# ---- what it serves -----------------------------------------------------------------------------------------------------


def test_the_page_comes_with_headers_that_let_no_other_site_in(serve):
    served = serve()
    status, headers, body = ask(served, "GET", "/")
    assert status == 200 and b"<!doctype html>" in body and headers["Connection"] == "close"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("name", sorted(server.FILES))
def test_every_file_of_the_page_is_served(serve, name):
    status, headers, body = ask(serve(), "GET", f"/page/{name}")
    assert status == 200 and body == server.FILES[name].read_bytes() and headers["X-Content-Type-Options"] == "nosniff"


def test_the_state_comes_with_its_word_and_who_is_in_control(serve):
    async def first(socket):
        return json.loads(await socket.receive_str())

    message = live(serve(), first)
    state = message["state"]
    assert state["word"] == {"name": "hold", "symbol": "■", "tone": "calm", "reason": "held by the operator", "failsafe": ""}
    assert state["control"] == {"holder": "", "since_s": 0, "asking": ""} and message["you"] == {
        "control": False,
        "read_only": False,
    }
    assert set(state["orders"]) == {"hold", "start", "resume", "lock", "swap", "roll_back", "home"}


def test_a_change_is_told_at_once_and_no_change_once_a_second(serve):
    served = serve()

    async def watch(socket):
        for _ in range(2):
            await states(socket, lambda _: True)
            await socket.send_str("next")
        began = time.monotonic()
        await states(socket, lambda _: True)
        quiet_s = time.monotonic() - began
        await socket.send_str("next")
        order_given = asyncio.get_running_loop().run_in_executor(None, lambda: order(served, "start", plan=PLAN))
        await states(socket, lambda message: message["state"]["word"]["name"] == "ready")
        return quiet_s, await order_given

    quiet_s, (status, _) = live(served, watch)
    assert 0.5 < quiet_s < 1.5 and status == 200


def test_a_number_that_is_none_reaches_the_page_as_null(serve, cockpit):
    cockpit.now["policy"]["tail_rad"] = float("nan")

    async def first(socket):
        return json.loads(await socket.receive_str(), parse_constant=pytest.fail)

    assert live(serve(), first)["state"]["policy"]["tail_rad"] is None


def test_a_client_that_does_not_ask_gets_nothing_and_then_the_newest_alone(serve, cockpit):
    async def sleepy(socket):
        for _ in range(2):
            await socket.receive_str()
        for number in range(30):
            cockpit.now["robot"]["reason"] = f"reason {number}"
            await asyncio.sleep(0.05)
        with pytest.raises(asyncio.TimeoutError):
            await socket.receive_str(timeout=0.5)
        await socket.send_str("next")
        return await states(socket, lambda _: True)

    assert live(serve(), sleepy)["state"]["robot"]["reason"] == "reason 29"


def test_a_state_that_fails_is_silence_and_orders_go_on(serve, cockpit):
    good = cockpit.state
    served = serve()

    async def watch(socket):
        await states(socket, lambda _: True)
        cockpit.state = lambda: 1 / 0
        await socket.send_str("next")
        with pytest.raises(asyncio.TimeoutError):
            while True:
                await socket.receive_str(timeout=2.5)
                await socket.send_str("next")
        held = await asyncio.get_running_loop().run_in_executor(None, lambda: order(served, "hold"))
        cockpit.state = good
        return held

    assert live(served, watch) == (200, {"said": "held"})


def test_pictures_are_passed_on_as_they_are_with_their_age(serve, cockpit):
    async def first(socket):
        return unpacked(await socket.receive_bytes(timeout=5))

    pictures = live(serve(), first, "/pictures")
    assert {name: jpeg for name, (_, jpeg) in pictures.items()} == {name: jpeg for name, (jpeg, _) in cockpit.pictures.items()}
    assert all(0 <= age_s < 10 for age_s, _ in pictures.values())


def test_only_what_is_new_is_sent_again(serve, cockpit):
    async def watch(socket):
        await socket.receive_bytes(timeout=5)
        cockpit.pictures["wrist"] = (b"\xff\xd8 another", time.time())
        while not (pictures := unpacked(await socket.receive_bytes(timeout=5))):
            await socket.send_str("next")
        return pictures

    pictures = live(serve(), watch, "/pictures")
    assert set(pictures) == {"wrist"} and pictures["wrist"][1] == b"\xff\xd8 another"


def unpacked(message):
    """{camera: (age in s, JPEG)} of a message."""
    found, at = {}, 0
    while at < len(message):
        length = message[at]
        name = message[at + 1 : at + 1 + length].decode()
        age_s, size = struct.unpack_from(">fI", message, at + 1 + length)
        begin = at + 1 + length + 8
        found[name], at = (age_s, message[begin : begin + size]), begin + size
    return found


def test_a_single_picture_a_card_and_a_report_can_be_fetched(serve, cockpit):
    served = serve()
    wait_for_state(served)
    status, headers, body = ask(served, "GET", "/camera/front.jpg")
    assert status == 200 and body == cockpit.pictures["front"][0] and abs(float(headers["X-Stamp"]) - time.time()) < 10
    assert ask(served, "GET", "/card/front.jpg")[0] == 200
    assert ask(served, "GET", "/card/wrist.jpg")[0] == 204
    order(served, "start", plan=PLAN | {"blind": False})
    session = cockpit.now["session"]["id"]
    wait_for_state(served, lambda state: state["session"])
    status, headers, body = ask(served, "GET", f"/report/{session}")
    assert status == 200 and f"Report of {session}".encode() in body
    assert "sandbox" in headers["Content-Security-Policy"] and "script-src" not in headers["Content-Security-Policy"]
    status, headers, body = ask(served, "GET", f"/report/{session}.md")
    assert status == 200 and headers["Content-Type"].startswith("text/plain") and body.startswith(b"# Report")


def test_the_report_of_a_blind_session_is_refused(serve, cockpit):
    served = serve()
    order(served, "start", plan=PLAN)
    wait_for_state(served, lambda state: state["session"])
    status, _, body = ask(served, "GET", f"/report/{cockpit.now['session']['id']}")
    assert status == 409 and "blind" in json.loads(body)["error"]


def with_sessions(cockpit, served, names):
    cockpit.now["sessions"] = [dict(id=name, began=0.0, locked=True, trials=1, tasks=[]) for name in names]
    wait_for_state(served, lambda state: len(state["sessions"]) == len(names))


def asked_together(served, paths):
    """Answers to requests that were made at once; a function gives them when it is called."""
    answers = []
    threads = [threading.Thread(target=lambda p=path: answers.append(ask(served, "GET", p))) for path in paths]
    for thread in threads:
        thread.start()

    def all_answers():
        for thread in threads:
            thread.join()
        return answers

    return all_answers


def test_more_reports_at_once_than_a_few_are_refused_with_what_to_do_and_served_later(serve, cockpit):
    served = serve()
    names = [f"s{i}" for i in range(server.REPORTS + 1)]
    with_sessions(cockpit, served, names)
    cockpit.gate.clear()
    answers = asked_together(served, [f"/report/{name}" for name in names[:-1]])
    end = time.monotonic() + 10
    while len(cockpit.reported) < server.REPORTS:
        assert time.monotonic() < end
    status, _, body = ask(served, "GET", f"/report/{names[-1]}")
    assert status == 503 and "ask again in a minute" in json.loads(body)["error"]
    cockpit.gate.set()
    assert {status for status, _, _ in answers()} == {200}
    assert ask(served, "GET", f"/report/{names[-1]}.md")[0] == 200


def test_a_long_report_is_made_once_for_all_who_wait_and_who_waits_too_long_is_told_before_the_connection_is_cut(
    serve, cockpit, monkeypatch
):
    monkeypatch.setattr(server, "REPORT_S", 0.5)
    served = serve()
    with_sessions(cockpit, served, ["s1"])
    cockpit.gate.clear()
    for status, _, body in asked_together(served, ["/report/s1"] * 8)():
        assert status == 503 and "still being made" in json.loads(body)["error"]
    assert cockpit.reported == [("s1", True)]
    monkeypatch.setattr(server, "REPORT_S", 10.0)
    answers = asked_together(served, ["/report/s1", "/report/s1.md"])
    cockpit.gate.set()
    assert {status for status, _, _ in answers()} == {200}


def test_a_card_is_drawn_once_for_all_viewers_and_again_for_the_next_scene(serve, cockpit):
    served = serve()
    wait_for_state(served)
    threads = [threading.Thread(target=ask, args=(served, "GET", f"/card/front.jpg?scene={i}")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cockpit.drawn == 1
    order(served, "start", plan=PLAN)
    wait_for_state(served, lambda state: state["trial"]["card"])
    assert ask(served, "GET", "/card/front.jpg")[0] == 200 and cockpit.drawn == 2


def wait_for_state(served, condition=lambda state: True):
    """Until the server's own state fits."""

    async def watch(socket):
        await states(socket, lambda message: condition(message["state"]))

    live(served, watch)


# ---- orders -------------------------------------------------------------------------------------------------------------


def test_an_order_reaches_the_cockpit_with_who_gave_it_and_its_defaults(serve, cockpit):
    assert order(serve(), "start", plan=PLAN, who="王小明") == (200, {"said": "session 20261123-201500-ab12 has begun"})
    assert cockpit.given == [("start", {"plan": PLAN, "attended": True}, "王小明")]


def test_what_the_cockpit_refuses_is_answered_with_its_sentence(serve):
    assert order(serve(), "go") == (409, {"error": "go is given when a trial is ready"})


def test_a_cockpit_that_fails_is_an_error_without_its_inside(serve, cockpit, caplog):
    cockpit.do_go = lambda who: 1 / 0
    status, answer = order(serve(), "go")
    assert status == 500 and "Zero" not in answer["error"] and "ZeroDivisionError" in caplog.text


@pytest.fixture
def slow_order(serve, cockpit):
    """A running server in which Ann's `swap` is being carried out until `cockpit.gate` is set; its answer comes last."""
    served, answers = serve(), []
    cockpit.gate.clear()
    thread = threading.Thread(target=lambda: answers.append(order(served, "swap", checkpoint="x")))
    thread.start()
    assert cockpit.entered.wait(5)
    yield served
    cockpit.gate.set()
    thread.join()
    assert answers == [(200, {"said": "x speaks"})]


def test_hold_waits_behind_no_other_order(slow_order, cockpit):
    began = time.monotonic()
    for _ in range(20):
        assert order(slow_order, "hold", client=BOB, who="Bob") == (200, {"said": "held"})
    assert time.monotonic() - began < 5.0 and [name for name, _, _ in cockpit.given] == 20 * ["hold"]


def test_an_order_that_is_being_carried_out_is_not_begun_again_and_others_are(slow_order, cockpit):
    assert order(slow_order, "swap", checkpoint="y") == (409, {"error": "'swap' is already being carried out"})
    assert order(slow_order, "home") == (200, {"said": "home"})


def test_hold_needs_no_client_and_no_control(serve, cockpit):
    served = serve()
    order(served, "start", plan=PLAN)
    assert post(served, "/order/hold", {"who": "a passer-by"})[0] == 200
    assert cockpit.given[-1] == ("hold", {}, "a passer-by")


@pytest.mark.parametrize(
    "path, body, why",
    [
        ("/order/fly", {"client": ANN, "who": "Ann"}, "unknown order 'fly'"),
        ("/order/go", {"client": ANN, "who": "Ann", "more": 1}, "unknown field 'more'"),
        ("/order/go", {"client": ANN, "who": "Ann", "details": {"now": True}}, "unknown field 'now'"),
        ("/order/go", {"client": ANN}, "'who' is missing"),
        ("/order/go", {"who": "Ann"}, "'client' is missing"),
        ("/order/go", {"client": "short", "who": "Ann"}, "16 to 64"),
        ("/order/go", {"client": ANN, "who": "Ann\nroot"}, "printable"),
        ("/order/go", {"client": ANN, "who": "A\u202enn"}, "printable"),
        ("/order/go", {"client": ANN, "who": "n" * 41}, "1 to 40"),
        ("/order/label", {"client": ANN, "who": "Ann", "details": {"outcome": 1}}, "must be of type str"),
        ("/order/label", {"client": ANN, "who": "Ann", "details": {"outcome": "success", "reason": "x" * 2001}}, "longer than"),
        ("/order/start", {"client": ANN, "who": "Ann", "details": {"plan": {}, "attended": 1}}, "must be of type bool"),
        ("/order/go", [], "must be a JSON object"),
        ("/order/go", "{", "no JSON"),
        ("/order/go", '{"who": "Ann", "who": "Bob"}', "no JSON"),
        ("/order/go", '{"who": NaN}', "no JSON"),
        ("/order/go", b'{"who": "\xff"}', "no JSON"),
        ("/order/go", '{"who": "\\ud800"}', "no JSON"),
        ("/order/go", "[" * 60000, "no JSON"),
        ("/order/go", '{"details":' * 5000 + "1" + "}" * 5000, "no JSON"),
        ("/order/go", '{"who": ' + "9" * 60000 + "}", ""),
        ("/login", {"token": 5}, "must be of type str"),
        ("/control/ask", {"client": ANN, "who": ""}, "1 to 40"),
    ],
)
def test_a_malformed_order_is_refused_and_does_nothing(serve, cockpit, path, body, why):
    status, answer = post(serve(), path, body)
    assert status == 400 and why in answer["error"] and cockpit.given == []


def test_an_order_must_be_json_by_its_type(serve, cockpit):
    served = serve()
    body = json.dumps({"client": ANN, "who": "Ann"})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert post(served, "/order/hold", body, Content_Type=kind)[0] == 415
    assert ask(served, "GET", "/order/hold")[0] == 405 and cockpit.given == []


def test_a_body_that_is_too_large_is_refused_packed_or_not(serve, cockpit):
    served = serve()
    large = json.dumps({"client": ANN, "who": "Ann", "details": {"reason": "x" * 100_000}})
    assert post(served, "/order/go", large)[0] == 413
    packed = gzip.compress(json.dumps({"who": "x" * 30_000_000}).encode())
    assert len(packed) < 64 * 1024
    assert post(served, "/order/go", packed, Content_Encoding="gzip")[0] in (400, 413) and cockpit.given == []


# ---- control ------------------------------------------------------------------------------------------------------------


def test_one_operator_is_in_control_and_hands_over_when_asked(serve, cockpit):
    served = serve()
    assert order(served, "start", plan=PLAN)[0] == 200
    assert order(served, "go", client=BOB, who="Bob") == (409, {"error": "Ann is in control; ask for it"})
    assert post(served, "/control/ask", {"client": BOB, "who": "Bob"}) == (200, {"said": "Ann was asked for control"})
    wait_for_state(served, lambda state: state["control"]["asking"] == "Bob")
    assert post(served, "/control/give", {"client": BOB, "who": "Bob"})[0] == 409
    assert post(served, "/control/give", {"client": ANN, "who": "Ann"}) == (200, {"said": "Bob is in control"})
    assert order(served, "go", client=BOB, who="Bob")[0] == 200 and order(served, "pause")[0] == 409
    assert [(name, who) for name, _, who in cockpit.given] == [("start", "Ann"), ("go", "Bob")]


def test_a_client_sees_that_it_is_in_control_itself_and_no_secret_of_another(serve):
    served = serve()
    order(served, "start", plan=PLAN)

    async def first(socket):
        return await socket.receive_str()

    mine, other = live(served, first), live(served, first, client=BOB)
    assert json.loads(mine)["you"]["control"] and not json.loads(other)["you"]["control"]
    assert json.loads(other)["state"]["control"]["holder"] == "Ann" and ANN not in other


def test_control_is_kept_while_there_is_a_sign_of_life_and_free_ten_seconds_after_the_last():
    control = Control()
    control.operate(ANN, "Ann", 0.0)
    control.hear(ANN, 9.0)
    with pytest.raises(Refused, match="Ann is in control"):
        control.operate(BOB, "Bob", 9.0 + GONE_S)
    control.operate(BOB, "Bob", 9.1 + GONE_S)
    assert control.seen(9.1 + GONE_S)["holder"] == "Bob" and control.is_holder(BOB) and not control.is_holder(ANN)


def test_control_can_be_given_to_nobody_kept_and_is_not_given_to_one_who_has_left():
    control = Control()
    assert control.ask(ANN, "Ann", 0.0) == "you are in control"
    control.ask(BOB, "Bob", 1.0)
    assert control.keep(ANN, 2.0) == "you stay in control" and control.seen(2.0)["asking"] == ""
    control.ask(BOB, "Bob", 3.0)
    control.hear(ANN, 9.0)
    assert control.give(ANN, 14.0) == "nobody is in control"
    assert control.seen(14.0) == {"holder": "", "since_s": 0, "asking": ""} and not control.is_holder("")
    with pytest.raises(Refused):
        control.give(ANN, 15.0)


# ---- who is let in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "robot.lab", ""])
def test_listening_beyond_this_machine_without_a_token_is_refused_in_one_sentence(cockpit, host):
    with pytest.raises(ConsoleError, match="lets everybody in: set POLICYTRIM_TOKEN, or listen on 127.0.0.1"):
        Server(cockpit, host=host)
    with pytest.raises(ConsoleError, match="the 15 characters of POLICYTRIM_TOKEN can be guessed .*set 16 or more"):
        Server(cockpit, host=host, token="x" * 15)
    Server(cockpit, host=host, token="x" * 16)


def test_a_port_that_is_taken_is_named(serve, cockpit):
    served = serve()
    with pytest.raises(ConsoleError, match=f"cannot listen on 127.0.0.1:{served.port}: .*choose another port"):
        Server(cockpit, port=served.port).start()


@pytest.mark.parametrize(
    "path",
    ["/camera/front.jpg", "/card/front.jpg", "/report/x", "/report/x.md", "/ws", "/pictures", "/order/hold", "/control/ask"],
)
def test_with_a_token_nothing_is_told_or_done_without_it(serve, cockpit, monkeypatch, path):
    monkeypatch.setattr(server, "GUESS_S", 0.01)
    served = serve(token=TOKEN)
    method = "POST" if path.startswith(("/order", "/control")) else "GET"
    body = json.dumps({"client": ANN, "who": "Ann"}) if method == "POST" else None
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "policytrim_console=wrong"},
        {"Cookie": f"policytrim_console={TOKEN}"},
    ):
        assert ask(served, method, path, body, Content_Type="application/json", **headers)[0] == 401
    assert ask(served, method, f"{path}?token={TOKEN.replace(' ', '%20')}", body, Content_Type="application/json")[0] == 401
    assert cockpit.given == []


def test_the_token_opens_as_a_header_and_as_a_cookie_after_the_login(serve, cockpit):
    served = serve(token=TOKEN)
    assert json.loads(ask(served, "GET", "/access")[2]) == {"login": True, "read_only": False}
    body = {"client": ANN, "who": "Ann"}
    assert post(served, "/order/hold", body, Authorization=f"Bearer {TOKEN}")[0] == 200
    status, headers, _ = ask(served, "POST", "/login", json.dumps({"token": TOKEN}), Content_Type="application/json")
    cookie = headers["Set-Cookie"]
    assert status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    shown = cookie.split(";")[0]
    assert post(served, "/order/hold", body, Cookie=shown)[0] == 200
    assert json.loads(ask(served, "GET", "/access", Cookie=shown)[2])["login"] is False


def test_a_wrong_token_is_answered_slowly_on_every_way_and_others_do_not_wait(serve):
    served = serve(token=TOKEN)
    ways = [
        lambda: post(served, "/login", {"token": "guess"}),
        lambda: ask(served, "GET", "/access", Authorization="Bearer guess"),
        lambda: ask(served, "GET", "/camera/front.jpg", Cookie="policytrim_console=guess"),
    ]
    seconds = []
    threads = [threading.Thread(target=lambda way=way: seconds.append(timed(way))) for way in ways]
    for thread in threads:
        thread.start()
    assert timed(lambda: post(served, "/order/hold", {"who": "Ann"}, Authorization=f"Bearer {TOKEN}")) < 0.9
    for thread in threads:
        thread.join()
    assert min(seconds) >= server.GUESS_S


def timed(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr("policytrim_ros.console.access.hmac.compare_digest", lambda a, b: compared.append(1) or real(a, b))
    access = Access("0.0.0.0", TOKEN)
    assert access.has_token({"Authorization": f"bearer {TOKEN}"}, {}) and not access.has_token({"Authorization": "Bearer x"}, {})
    assert access.has_token({}, {"policytrim_console": access.cookie}) and access.is_token(TOKEN) and len(compared) == 4


def test_the_token_stands_in_no_log(serve, caplog):
    caplog.set_level(logging.DEBUG)
    served = serve(token=TOKEN)
    post(served, "/login", {"token": TOKEN})
    post(served, "/order/hold", {"who": "Ann"}, Authorization=f"Bearer {TOKEN}")
    ask(served, "GET", "/camera/front.jpg", Authorization=f"Bearer {TOKEN}x")
    assert "event=order name=hold who='Ann'" in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1", "a b"]
)
def test_a_name_that_is_not_this_machines_is_refused(serve, cockpit, host):
    served = serve()
    assert ask(served, "GET", "/", Host=host)[0] in (400, 403)
    assert ask(served, "POST", "/order/hold", "{}", Host=host, Content_Type="application/json")[0] in (400, 403)
    assert cockpit.given == []


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:9999", "[::1]:8765", "192.168.1.5", socket.gethostname()])
def test_an_address_and_the_machines_own_names_are_served_also_through_a_tunnel(serve, host):
    assert ask(serve(), "GET", "/", Host=host)[0] == 200


def test_requests_of_other_sites_are_refused(serve, cockpit):
    served = serve()
    body = {"client": ANN, "who": "Ann"}
    own = f"http://127.0.0.1:{served.port}"
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": own + ".evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": own, "Sec_Fetch_Site": "same-site"},
    ):
        assert post(served, "/order/hold", body, **headers)[0] == 403
        if "Origin" in headers and "Sec_Fetch_Site" not in headers:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                live(served, None, headers={"Origin": headers["Origin"]})
    assert cockpit.given == []
    assert post(served, "/order/hold", body, Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


def test_a_console_that_is_read_only_takes_no_order_at_all(serve, cockpit):
    served = serve(read_only=True)
    for name in ORDERS:
        assert order(served, name)[0] == 403
    assert post(served, "/control/ask", {"client": ANN, "who": "Ann"})[0] == 403 and cockpit.given == []

    async def first(socket):
        return json.loads(await socket.receive_str())

    assert live(served, first)["you"]["read_only"] is True


@pytest.mark.parametrize(
    "path",
    [
        "/page/../server.py",
        "/page/..%2fserver.py",
        "/page/%2e%2e/server.py",
        "/page//etc/passwd",
        "/camera/../../etc/passwd.jpg",
        "/camera/..%2f..%2fetc%2fpasswd.jpg",
        "/camera/nobody.jpg",
        "/card/..%2ffront.jpg",
        "/report/..%2f..%2fetc%2fpasswd",
        "/report/../../etc/passwd.md",
        "/report/%00",
        "/report/None",
        "/order/../report/x",
    ],
)
def test_names_that_do_not_exist_lead_nowhere(serve, cockpit, path):
    served = serve()
    wait_for_state(served)
    cockpit.picture = cockpit.card = cockpit.report = lambda *_: pytest.fail("the cockpit was asked")
    assert ask(served, "GET", path)[0] in (403, 404, 405)


def test_a_camera_with_a_hostile_name_is_served_under_that_name(serve):
    name = "<img src=x onerror=alert(1)>/.."
    served = serve(MemoryCockpit(cameras=(name,)))
    wait_for_state(served)
    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
    assert ask(served, "GET", f"/camera/{quoted}.jpg")[0] == 200


@pytest.mark.parametrize(
    "plan",
    [
        {"arms": 5},
        {"tasks": [[1]]},
        {"settings": [{}]},
        {"scenes": 10**400},
        {"arms": [{"name": str(i)} for i in range(3000)], "scenes": 10_000},
        {"arms": [{"name": "a\x1b[2J"}]},
    ],
)
def test_a_plan_of_nonsense_is_answered_with_400_and_a_sentence(serve, cockpit, plan):
    cockpit.do_start = lambda plan, attended, who: session_of(plan)
    status, answer = order(serve(), "start", plan=plan)
    assert status == 400 and answer["error"].startswith(("Session", "Arm"))


def session_of(plan):
    """As the console's node makes a session of a plan (nodes/console.py)."""
    try:
        return Session.from_mapping(plan)
    except ConfigError as error:
        raise Malformed(str(error)) from error


def test_hand_overs_and_refused_orders_are_handed_to_the_record(serve, cockpit):
    served = serve()
    for client, who, path in ((ANN, "Ann", "ask"), (BOB, "Bob", "ask"), (BOB, "Bob", "give"), (ANN, "Ann", "give")):
        post(served, f"/control/{path}", {"client": client, "who": who})
    order(served, "go", client=ANN, who="Ann")
    served.close()  # writes what is left
    assert [(kind, detail.get("what", detail.get("order")), detail["who"]) for kind, detail in cockpit.noted] == [
        ("control", "ask", "Ann"),
        ("in control", None, "Ann"),
        ("control", "ask", "Bob"),
        ("refused", "give control", "Bob"),
        ("control", "give", "Ann"),
        ("in control", None, "Bob"),
        ("refused", "go", "Ann"),
    ]
    assert cockpit.noted[-1][1]["why"] == "Bob is in control; ask for it"


def test_tokens_of_any_length_are_compared_by_digests_of_one_length(monkeypatch):
    compared = []
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    door = Access("0.0.0.0", TOKEN)
    assert door.is_token(TOKEN) and not door.is_token("x") and not door.is_token("x" * 5000)
    assert compared == [(32, 32)] * 3


# ---- slow and many clients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_client_whose_headers_trickle_is_cut(serve, monkeypatch, first):
    monkeypatch.setattr(server, "HEADERS_S", 1.0)
    served = serve()
    with connected(served) as connection:
        connection.sendall(first)
        began = time.monotonic()
        try:
            while time.monotonic() - began < server.HEADERS_S + 5:
                connection.sendall(b"X")
                connection.settimeout(0.2)
                try:
                    if not connection.recv(1024):
                        break
                except socket.timeout:
                    pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert time.monotonic() - began < server.HEADERS_S + 3


def test_a_client_whose_body_trickles_is_cut_and_others_do_not_wait(serve, cockpit, monkeypatch):
    monkeypatch.setattr(server, "BODY_S", 1.0)
    served = serve()
    with connected(served) as connection:
        head = "POST /order/hold HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        connection.sendall(head.encode())
        assert order(served, "hold")[0] == 200
        began = time.monotonic()
        assert b" 408 " in ended(connection).split(b"\r\n")[0] and time.monotonic() - began < server.BODY_S + 3
    assert len(cockpit.given) == 1


def test_headers_that_are_too_many_or_too_long_are_refused(serve):
    served = serve()
    for head in (b"X: " + b"y" * 100_000, b"\r\n".join(b"X-%d: y" % i for i in range(1000))):
        with connected(served) as connection:
            try:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert not ended(connection).startswith(b"HTTP/1.1 200")


def test_a_request_that_lasts_too_long_is_cut_and_a_websocket_is_not(serve, cockpit, monkeypatch):
    monkeypatch.setattr(server, "LONGEST_S", 1.0)
    served = serve()
    cockpit.gate.clear()

    async def watch(socket):
        given = asyncio.get_running_loop().run_in_executor(None, lambda: order(served, "swap", checkpoint="x"))
        with pytest.raises(OSError):
            await given
        await states(socket, lambda _: True)
        await socket.send_str("next")
        await states(socket, lambda _: True)

    live(served, watch)


def test_connections_of_one_address_are_bounded_and_free_again_when_they_end(serve, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS_OF_ONE", 8)
    served = serve()
    crowd = [socket.create_connection(("127.0.0.1", served.port), timeout=5) for _ in range(8)]
    try:
        with connected(served) as one_too_many:
            assert ended(one_too_many) == b""
        with pytest.raises(OSError):
            ask(served, "GET", "/")
    finally:
        for connection in crowd:
            connection.close()
    end = time.monotonic() + 5
    while True:
        try:
            assert ask(served, "GET", "/")[0] == 200
            break
        except OSError:
            assert time.monotonic() < end


def test_a_viewer_that_reads_nothing_is_cut_and_never_slows_the_others(serve, cockpit, monkeypatch):
    monkeypatch.setattr(server, "SEND_S", 1.0)
    served = serve()
    handshake = (
        "GET /pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    )
    handshake += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    cockpit.pictures["front"] = (b"\xff\xd8" + b"x" * 8_000_000, time.time())
    with connected(served) as deaf:
        deaf.sendall(handshake.encode() + masked(b"next") + masked(b"next"))

        async def watch(socket):
            end, number = time.monotonic() + 3 * server.SEND_S, 0
            while time.monotonic() < end:
                number += 1
                cockpit.pictures["wrist"] = (b"\xff\xd8%d" % number, time.time())
                while "wrist" not in unpacked(await socket.receive_bytes(timeout=2)):
                    await socket.send_str("next")
                await socket.send_str("next")

        live(served, watch, "/pictures", max_msg_size=0)
        deaf.settimeout(10)
        received = len(ended(deaf))
    assert received < 8_000_000


def masked(text: bytes) -> bytes:
    """A WebSocket text frame of a client, its mask zero."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


@pytest.mark.parametrize("words", [["next", "next", "next"], ["give me everything"], ["x" * 5000]])
def test_a_client_that_says_more_than_it_may_is_closed(serve, words):
    async def chatter(socket):
        await socket.receive(timeout=3)
        await socket.receive(timeout=3)
        for word in words:
            await socket.send_str(word)
        while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
            pass
        return message.type

    assert live(serve(), chatter) in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED)


def test_a_client_without_a_secret_of_its_own_is_closed(serve):
    async def wait(socket):
        return (await socket.receive(timeout=5)).type

    assert live(serve(), wait, client="guessable") in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


def test_closing_tells_the_viewers_frees_the_port_and_can_be_done_twice(serve, cockpit):
    served = serve()

    async def watch(socket):
        await socket.receive_str()
        await asyncio.get_running_loop().run_in_executor(None, served.close)
        while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
            pass
        return message

    assert live(served, watch).data == 1001
    served.close()
    with Server(cockpit, port=served.port) as again:
        assert ask(again, "GET", "/")[0] == 200


# ---- a glance -----------------------------------------------------------------------------------------------------------


def state_with(**changes):
    state = MemoryCockpit().state()
    for path, value in changes.items():
        *parts, last = path.split("__")
        target = state
        for part in parts:
            target = target[part]
        target[last] = value
    return state


@pytest.mark.parametrize(
    "changes, name, reason",
    [
        (dict(robot__state="fault", robot__reason="joint 3", trial__phase="running"), "fault", "joint 3"),
        (dict(robot__silent="inference", trial__phase="running"), "silent", "inference"),
        (dict(robot__state="unconfigured"), "unconfigured", "held by the operator"),
        (dict(robot__state="odd"), "unknown", "held by the operator"),
        (dict(disturb=True, trial__phase="running"), "disturb", ""),
        (dict(trial__phase="running"), "running", "held by the operator"),
        (dict(trial__phase="ending"), "ending", ""),
        (dict(trial__phase="ending", robot__state="moving"), "moving", "held by the operator"),
        (dict(trial__phase="ending", trial__unlabelled=6), "label", ""),
        (dict(trial__phase="labelling"), "label", "held by the operator"),
        (dict(trial__phase="ready", trial__unlabelled=6), "label", ""),
        (dict(trial__phase="preparing", scene__by_hand=True, scene__phase="laying"), "lay", "put the tape in the box"),
        (dict(trial__phase="homing"), "homing", ""),
        (dict(trial__phase="homing", robot__state="unconfigured"), "homing", ""),
        (dict(trial__phase="preparing"), "preparing", ""),
        (dict(trial__phase="ready"), "ready", ""),
        (dict(trial__phase="done"), "done", ""),
        (dict(trial__phase="complete", session={"ended": "complete"}), "complete", "complete"),
        (dict(robot__state="moving"), "moving", "held by the operator"),
        (dict(), "hold", "held by the operator"),
    ],
)
def test_a_state_is_one_word_the_worst_that_is_true(changes, name, reason):
    word = glance.word(state_with(**changes))
    assert (word["name"], word["reason"]) == (name, reason)


@pytest.mark.parametrize("row", FAILSAFES.values(), ids=lambda row: row.name)
def test_what_to_do_about_a_failsafe_is_left_to_the_operators_language(row):
    word = glance.word(state_with(robot__state="fault", robot__reason=f"{row.name}: why; how; {row.advice}"))
    assert word["reason"] == f"{row.name}: why; how" and word["failsafe"] == row.name.replace(" ", "_")


def test_an_empty_state_is_unknown_and_only_holding_and_beginning_fit_it():
    assert glance.word({})["name"] == "unknown"
    assert glance.sensible_orders({}) == ["hold", "start", "resume", "lock", "swap"]


@pytest.mark.parametrize(
    "changes, fits, does_not",
    [
        (dict(trial__phase="ready", session={"running": True}), {"go", "pause"}, {"start", "lock", "swap", "home", "label"}),
        (dict(trial__phase="ready", trial__unlabelled=3), {"label"}, {"go", "undo"}),
        (dict(trial__phase="running", trial__last={"number": 1}), {"label", "hold"}, {"undo", "go"}),
        (dict(trial__phase="ending", trial__last={"number": 1}), {"hold"}, {"label", "undo", "go"}),
        (dict(trial__last={"number": 1}), {"undo"}, {"label"}),
        (dict(trial__last={"number": 1}, session={"locked": True}), {"lock"}, {"undo"}),
        (dict(scene__by_hand=True, scene__phase="laying"), {"confirm"}, {"go"}),
        (dict(robot__state="fault"), {"clear_fault"}, {"home"}),
        (dict(policy={"hidden": True}), {"hold"}, {"roll_back"}),
    ],
)
def test_orders_are_offered_when_they_make_sense(changes, fits, does_not):
    offered = set(glance.sensible_orders(state_with(**changes)))
    assert fits <= offered and not does_not & offered


def test_an_order_is_completed_by_its_defaults():
    assert checked("label", {"outcome": "success"}) == {"outcome": "success", "reason": ""}
    with pytest.raises(Malformed, match="'session' is missing"):
        checked("lock", {})
    assert checked_name("  Ann ") == "Ann"
