"""The console in a terminal, over SSH for instance: the same state, keys and words as the page, from the same server.

Full screen by curses; plain lines where the output is no terminal: a line for every change, keys and orders read a line at a time.
What comes from elsewhere is shown without control characters, so that no name or note can steer the terminal.
"""

from __future__ import annotations

import asyncio
import curses
import getpass
import json
import locale
import os
import re
import secrets
import shlex
import signal
import sys
import textwrap
import time
import unicodedata
from contextlib import suppress
from typing import Any, Callable, Mapping
from urllib.parse import quote, urlsplit

import aiohttp
import yaml

from policytrim_ros.console.access import ConsoleError, checked_name
from policytrim_ros.console.cockpit import ORDERS, Malformed
from policytrim_ros.console.language import Words, keys, language_of
from policytrim_ros.core.listening import TOKEN
from policytrim_ros.files import replace_file

SILENCE_S = 3.0  # the server speaks at least every second
ANSWER_S = 130.0
LONGEST_WAIT_S = 8.0
LEAVE_S = 5.0
REDRAW_S = 0.25
REPAINT = "\x0c"  # Ctrl-L, as everywhere
KEEP = "k"  # control, when somebody asks for it
OWN_ORDERS = {"report": {"session": (str, "")}, "keep": {}}
"""Typed as orders are, and done here: a report is saved where the terminal runs, of the newest session if none is named."""
LISTED = 6
"""Sessions that are shown, the newest."""
TONES = {
    "danger": curses.COLOR_RED,
    "attention": curses.COLOR_YELLOW,
    "go": curses.COLOR_GREEN,
    "ready": curses.COLOR_BLUE,
    "calm": curses.COLOR_CYAN,
}


def main(url: str, token: str = "", who: str = "", language: str = "") -> int:
    """Shows the console at ``url`` until q or Ctrl-C; returns an exit code, 1 after one sentence about what went wrong.

    ``who``: name in the record, '' for the user's; ``language``: en or zh, '' for the environment's.
    """
    with suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "")
    words = Words(language or language_of(os.environ))
    try:
        seat = Seat(Client(url, token), checked_name(who or getpass.getuser()), words)
        if sys.stdin.isatty() and sys.stdout.isatty():
            curses.set_escdelay(25)
            curses.wrapper(lambda screen: asyncio.run(seat.sit(Screen(screen, seat))))
        else:
            asyncio.run(seat.sit(Lines(seat)))
    except (ConsoleError, Malformed) as error:
        print(f"console: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


class Client:
    """The connection to a console server: `state` is the newest, or None while nothing is heard; comes back by itself."""

    def __init__(self, url: str, token: str):
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConsoleError(f"{url} is no address; expected http://host:port")
        self.url, self.state, self.you = url.rstrip("/"), None, {}
        self.heard = 0.0
        self._id = secrets.token_hex(16)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def listen(self, changed: Callable[[], None]) -> None:
        """Hears states until cancelled; ConsoleError when the server does not let it in."""
        attempt = 0
        async with aiohttp.ClientSession(headers=self._headers) as self._session:
            while True:
                try:
                    async with self._session.ws_connect(f"{self.url}/ws", timeout=aiohttp.ClientWSTimeout(ws_close=1.0)) as live:
                        for word in (json.dumps({"client": self._id}), "next", "next"):
                            await live.send_str(word)
                        while True:
                            message = json.loads(await live.receive_str(timeout=SILENCE_S))
                            await live.send_str("next")
                            self.state, self.you, self.heard, attempt = message["state"], message["you"], time.monotonic(), 0
                            changed()
                except aiohttp.WSServerHandshakeError as error:
                    if error.status in (401, 403):
                        why = f"the token is missing or wrong; set {TOKEN}" if error.status == 401 else "does not serve us (403)"
                        raise ConsoleError(f"{self.url}: {why}") from error
                except (aiohttp.ClientError, OSError, asyncio.TimeoutError, TypeError, ValueError):
                    pass  # lost, and tried again
                self.state = None
                changed()
                await asyncio.sleep(min(LONGEST_WAIT_S, 0.25 * 2 ** min(attempt, 6)))
                attempt += 1

    async def post(self, path: str, who: str, **more) -> tuple[bool, str | None]:
        """Whether it was done, and what the server said; None when nobody answered."""
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_S)
            body = {"client": self._id, "who": who, **more}
            async with self._session.post(self.url + path, json=body, timeout=timeout) as answer:
                said = await answer.json()
                return answer.status == 200, said.get("said") or said.get("error") or str(answer.status)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError):
            return False, None


    async def report(self, session: str) -> tuple[bool, str | None]:
        """The report of ``session`` in Markdown, or why there is none; None when nobody answered."""
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_S)
            async with self._session.get(f"{self.url}/report/{quote(session, safe='')}.md", timeout=timeout) as answer:
                text = await answer.text()
                return answer.status == 200, text if answer.status == 200 else json.loads(text)["error"]
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, KeyError):
            return False, None


class Seat:
    """What the operator does at a terminal: keys become orders, answers become a line to read."""

    def __init__(self, client: Client, who: str, words: Words):
        self.client, self.who, self.words = client, who, words
        self.said, self.prompt, self.typed, self.help = "", "", "", False
        self._keys, self._tasks, self._ended = keys(), set(), None

    async def sit(self, face) -> None:
        """Shows everything on ``face`` (Screen or Lines) until the operator leaves."""
        self._ended, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ended.set)
        leave = asyncio.ensure_future(self._ended.wait())
        work = [leave, *(asyncio.ensure_future(one) for one in (self.client.listen(face.show), face.read(), face.refresh()))]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what it ended with
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LEAVE_S)  # what was ordered last is still delivered
        finally:
            for task in [*work, *self._tasks]:
                task.cancel()
            await asyncio.gather(*work, *self._tasks, return_exceptions=True)

    def press(self, key: str) -> None:
        """One key, by the name that a browser gives it."""
        if key == "Escape":  # holds whatever else is going on
            self.prompt = self.typed = ""
            self._order("hold")
        elif self.prompt:
            self._type(key)
        elif key == "q":
            self._ended.set()
        elif key == ":":
            self.prompt = "order"
        elif key == KEEP:
            self._later(self._post("/control/keep", ""))
        else:
            self._act(self._keys.get(key.lower() if len(key) == 1 else key))

    def line(self, text: str) -> None:
        """One line instead of keys: a key, `x the reason`, or `:order detail=value`."""
        if text.startswith(":"):
            self._command(text[1:])
        elif text[:2].lower() == "x ":
            self._order("label", outcome="invalid", reason=text[2:].strip())
        else:
            self.press(text.strip() or "Enter")

    def _act(self, act: str | None) -> None:
        moves = self.client.state is not None and self.client.state["word"]["name"] in ("running", "moving", "disturb")
        if act == "hold" or (act == "space" and moves):
            self._order("hold")
        elif act in ("success", "failure"):
            self._order("label", outcome=act)
        elif act == "invalid":
            self.prompt = "reason"
        elif act in ("go", "undo", "confirm", "pause"):
            self._order(act)
        elif act == "control":
            self._later(self._control())
        elif act == "language":
            self.words = self.words.other()
        elif act == "help":
            self.help = not self.help

    def _type(self, key: str) -> None:
        if key == "Enter":
            what, text, self.prompt, self.typed = self.prompt, self.typed.strip(), "", ""
            if text:
                self._order("label", outcome="invalid", reason=text) if what == "reason" else self._command(text)
        elif key == "Backspace":
            self.typed = self.typed[:-1]
        elif len(key) == 1:
            self.typed += key

    def _command(self, text: str) -> None:
        try:
            name, details = parsed(text)
        except Malformed as error:
            self.said = f"✖ {error}"
            return
        if name == "report":
            self._later(self._report(**details))
        elif name == "keep":
            self.press(KEEP)
        else:
            self._order(name, **details)

    def _order(self, name: str, **details) -> None:
        self.said = f"… {self.words.say(f'order.{name}')}"
        self._later(self._post(f"/order/{name}", name, details=details))

    async def _control(self) -> None:
        await self._post(f"/control/{'give' if self.client.you.get('control') else 'ask'}", "")

    async def _post(self, path: str, name: str, **more) -> None:
        done, text = await self.client.post(path, self.who, **more)
        if text is None:
            text = self.words.say("hold_lost" if name == "hold" else "not_delivered")
        self.said = f"{'✔' if done else '✖'} {self.words.understood(text)}"

    async def _report(self, session: str = "") -> None:
        known = (self.client.state or {}).get("sessions") or ()
        session = session or (known[0]["id"] if known else "")
        name = re.sub(r"[^\w.-]", "_", f"report-{session}.md")
        self.said = f"… {self.words.say('sessions.report')} {session}"
        done, text = await self.client.report(session)
        if done:
            try:
                replace_file(name, text.encode())
                text = f"{self.words.say('sessions.report')}: {os.path.abspath(name)}"
            except OSError as error:
                done, text = False, f"{name}: {error.strerror or error}"
        self.said = f"{'✔' if done else '✖'} {self.words.say('not_delivered') if text is None else text}"

    def _later(self, work) -> None:
        """In a task of its own: no order waits behind another."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """`lock session=ID reason="a sentence"` as name and details; a detail that is an object is a YAML file, `plan=@FILE`."""
    try:
        name, *rest = shlex.split(text)
    except ValueError as error:
        raise Malformed(f"{text}: {error}") from error
    orders = {**ORDERS, **OWN_ORDERS}
    if name not in orders:
        raise Malformed(f"unknown order '{name}'; orders: {', '.join(orders)}")
    details = {}
    for word in rest:
        key, given, value = word.partition("=")
        if not given or key not in orders[name]:
            raise Malformed(f"order {name}: '{word}'; details: {', '.join(f'{key}=...' for key in orders[name]) or 'none'}")
        details[key] = _detail(orders[name][key][0], key, value)
    return name, details


def _detail(kind: type, key: str, value: str) -> Any:
    if kind is bool and value not in ("true", "false"):
        raise Malformed(f"{key}={value}: true or false")
    if kind is not dict:
        return value == "true" if kind is bool else value
    try:
        with open(os.path.expanduser(value.removeprefix("@")), encoding="utf-8") as file:
            found = yaml.safe_load(file)  # JSON, too
        json.dumps(found)  # as it will be sent: YAML knows more, dates for instance
    except TypeError as error:
        raise Malformed(f"{key}={value}: {error}; put a date in quotes") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Malformed(f"{key}={value}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise Malformed(f"{key}={value}: expected names with values, such as `tasks: [tape_box]`, in the file")
    return found


# ---- what is to be read -------------------------------------------------------------------------------------------------


def printable(text: Any) -> str:
    """``text`` without anything that a terminal would obey or that turns the writing round."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(text))


def cut(text: str, columns: int) -> str:
    """As much of ``text`` as fits in ``columns``; Chinese characters take two."""
    width = 0
    for i, one in enumerate(text):
        width += 2 if unicodedata.east_asian_width(one) in "WF" else 0 if unicodedata.combining(one) else 1
        if width > columns:
            return text[:i]
    return text


def headline(state: Mapping[str, Any], words: Words) -> tuple[str, str, str]:
    """The word with its symbol, its reason, its tone."""
    word = state["word"]
    name, reason = word["name"], printable(word["reason"])
    why = words.say("why.silent", process=reason) if name == "silent" else words.understood(reason) or words.say(f"why.{name}")
    if word["failsafe"]:
        advice = words.say(f"failsafe.{word['failsafe']}")
        why += f"  → {advice}"
    return f"{word['symbol']} {words.say(f'word.{name}')}", why, word["tone"]


def lines(state: Mapping[str, Any], you: Mapping[str, Any], words: Words, waited_s: float) -> list[str]:
    """Everything below the word; ``waited_s``: how long ago the state was heard."""
    said = [one for part in (_trial, _cameras, _policy, _comparison, _system) for one in part(state, words, waited_s)]
    return [printable(one) for one in (*said, control(state["control"], you, words), *_sessions(state, words))]


def _trial(state, words: Words, waited_s: float) -> list[str]:
    say, trial, session = words.say, state.get("trial") or {}, state.get("session")
    found = [f"! {one}" for one in [*trial.get("alarms", ()), state.get("policy_alarm")] if one]
    card = trial.get("card")
    if session:
        progress = {name: session[name] for name in ("done", "planned", "arms", "id")}
        found.append(say("comparison.progress", **progress))
    if canary := trial.get("canary"):
        found.append(_canary(canary, words))
    if not card:
        return [*found, say("trial.none")]
    arm = f"  {say('trial.arm')} {card['arm']}" if "arm" in card else ""
    found.append(f"{say('trial.number')} {card['number']}  [ {card['code']} ]  {card['task']} {card['setting']}{arm}")
    timer = trial.get("since_s", 0.0) + waited_s if trial.get("phase") == "running" else 0.0
    found.append(f"{say('trial.scene')} {card['seed']}  {timer:.1f} s  {say('trial.timeout', seconds=card['timeout_s'])}")
    if instruction := (state.get("scene") or {}).get("instruction"):
        found.append(instruction)
    found += laid(state.get("layout"), words)
    if last := trial.get("last"):
        outcome = say(f"outcome.{last['outcome']}")
        told = dict(number=last["number"], code=last["code"], outcome=outcome, seconds=_told(last["seconds"], ".1f"))
        found.append(say("trial.last", **told, reason=last["reason"]))
    return found


def laid(layout: Mapping[str, Any] | None, words: Words) -> list[str]:
    """Where the objects of the wanted scene lie, and where the target is moved to, a sentence each."""
    if not layout:
        return []
    say = words.say

    def aside(value: float, unit: str) -> str:
        amount = f"{abs(value):g}{unit}"
        return say("pose.right" if value < 0 else "pose.left", amount=amount) if value else amount

    def line(family: str, key: str, one: Mapping[str, Any]) -> str:
        known = f"{family}.{key}" if words.knows(f"{family}.{key}") else f"{family}.other"
        place = say("pose.place", x=f"{one['x_cm']:g}", y=aside(one["y_cm"], " cm"))
        values = dict(name=one["name"], cm=one.get("cm"), turn=aside(one["turn_deg"], "°"), place=place)
        return say(known, **values)

    moved = [line("move", layout["move"]["name"], layout["move"])] if layout["move"] else []
    return [say("layout.how"), *(line("pose", one["pose"], one) for one in layout["objects"]), *moved]


def _canary(canary, words: Words) -> str:
    evidence = canary["evidence"]
    told = {name: canary[name] for name in ("candidate", "every", "trials")}
    told |= dict(worse=_told(evidence["worse"]), good=_told(evidence["as_good"]), needed=_told(evidence["needed"]))
    return words.say("canary.line", **told, verdict=words.say(f"canary.{canary['verdict'].replace(' ', '_')}"))


def _cameras(state, words: Words, waited_s: float) -> list[str]:
    older_ms = 1000 * waited_s
    ages = [
        f"{one['name']} {_told(None if one['age_ms'] is None else one['age_ms'] + older_ms, '.0f')} ms"
        for one in state.get("cameras") or ()
    ]
    return [f"{words.say('cameras.title')}: {', '.join(ages)}"] if ages else []


def _policy(state, words: Words, waited_s: float) -> list[str]:
    say, policy = words.say, state.get("policy")
    if not policy:
        return []
    if policy.get("hidden"):
        return [f"{say('policy.title')}: {say('hidden_while_blind')}"]
    probation = say("policy.on_probation", chunks=policy["probation"]) if policy.get("probation") else say("policy.proven")
    latency = f"{_told(policy.get('latency_ms_p50'), '.0f')} / {_told(policy.get('latency_ms_p99'), '.0f')} ms"
    return [
        f"{say('budget.slack')} {_told(policy.get('slack_ms'), '.0f')} ms  {say('budget.latency')} {latency}  "
        f"{say('budget.horizon')} {_told(policy.get('horizon_now'))} / {_told(policy.get('horizon'))}  "
        f"{say('budget.tail')} {_told(policy.get('tail_rad'), '.3f')} rad",
        f"{say('policy.generation')} {_told(policy.get('generation'))}  {say('policy.probation')} {probation}  "
        f"{_told(policy.get('checkpoint'))}  {policy.get('complaint') or policy.get('news') or ''}",
    ]


def _comparison(state, words: Words, waited_s: float) -> list[str]:
    rows = (state.get("session") or {}).get("comparison") or ()
    return [
        f"{row['task']:10} {row['setting']:9} {row['arm'][:20]:20} {_bar(row)} {row['successes']}/{row['n']} "
        f"[{100 * row['low']:.0f}, {100 * row['high']:.0f}] %  {_told(row['seconds'], '.1f')} s"
        for row in rows
    ]


def _bar(row, columns: int = 30) -> str:
    """An interval between 0 and 100 % in characters."""
    at = lambda share: min(columns - 1, int(columns * share))  # noqa: E731
    whisker = ["-" if at(row["low"]) <= i <= at(row["high"]) else " " for i in range(columns)]
    if row["n"]:
        whisker[at(row["successes"] / row["n"])] = "o"
    return f"|{''.join(whisker)}|"


def _system(state, words: Words, waited_s: float) -> list[str]:
    say, robot, found = words.say, state.get("robot") or {}, []
    found.append(f"{say('system.arm')}: {_told(robot.get('state'))} {robot.get('reason') or ''}")
    if recorder := state.get("recorder"):
        known = {name: _told(recorder.get(name)) for name in ("state", "file", "messages", "dropped")}
        text = say("system.recording", **known, free=_told(recorder.get("free_mb"), ".0f"), reason=recorder.get("reason") or "")
        found.append(f"{say('system.recorder')}: {text}")
    if trainer := state.get("trainer"):
        known = {name: _told(trainer.get(name)) for name in ("state", "phase", "iteration", "iterations")}
        rate, left = _told(trainer.get("success_rate"), ".2f"), _told(trainer.get("eta_s"), ".0f")
        found.append(f"{say('system.trainer')}: {say('system.training', **known, rate=rate, left=f'{left} s')}")
    return found


def _sessions(state, words: Words) -> list[str]:
    """A line for each of the newest sessions, with the name that `resume`, `lock` and `report` want."""
    say, known = words.say, state.get("sessions") or ()
    found = []
    for one in known[:LISTED]:
        more = say("sessions.lock_first") if one["blind"] else f":report session={one['id']}"
        tasks = ", ".join(one.get("tasks") or ())
        found.append(f"  {one['id']}  {tasks}  {one['trials']}  {say(f'sessions.{_condition(one, state)}')}  {more}")
    return [f"{say('sessions.title')}:", *found] if found else []


def _condition(one: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Of a session: locked, runs or open."""
    now = state.get("session") or {}
    return "locked" if one["locked"] else "runs" if now.get("running") and now.get("id") == one["id"] else "open"


def control(now: Mapping[str, Any], you: Mapping[str, Any], words: Words) -> str:
    """Who is in control, and what may be done about it."""
    say = words.say
    if you.get("read_only"):
        return say("read_only")
    if you.get("control"):
        asked = f"  [t] {say('control.give_to', name=now['asking'])}  [{KEEP}] {say('control.keep')}" if now["asking"] else ""
        return say("control.yours") + asked
    if now["holder"]:
        return say("control.holder", name=now["holder"]) + f"  [t] {say('control.ask')}"
    return words.say("control.nobody")


def _told(value: Any, form: str = "") -> str:
    return "–" if value is None or value == "" else format(value, form) if isinstance(value, (int, float)) else str(value)


# ---- where it is shown --------------------------------------------------------------------------------------------------


class Screen:
    """The full screen, by curses."""

    KEYS = {
        "\n": "Enter",
        "\r": "Enter",
        "\x1b": "Escape",
        "\x7f": "Backspace",
        "\b": "Backspace",
        curses.KEY_BACKSPACE: "Backspace",
    }

    def __init__(self, screen, seat: Seat):
        self._screen, self._seat = screen, seat
        screen.nodelay(True)
        with suppress(curses.error):
            curses.curs_set(0)
            curses.use_default_colors()
            for tone, color in enumerate(TONES.values(), start=1):
                curses.init_pair(tone, curses.COLOR_WHITE if color != curses.COLOR_YELLOW else curses.COLOR_BLACK, color)

    async def read(self) -> None:
        """Passes keys on; ends when the terminal is gone."""
        pressed, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), pressed.set)
        try:
            while True:
                await pressed.wait()
                pressed.clear()
                got = 0
                with suppress(curses.error):  # no key any more
                    while True:
                        key = self._screen.get_wch()
                        got += 1
                        if key == REPAINT:
                            self._screen.redrawwin()
                        elif isinstance(key, str) or key in self.KEYS or key == curses.KEY_ENTER:
                            self._seat.press("Enter" if key == curses.KEY_ENTER else self.KEYS.get(key, key))
                if not got and not os.isatty(sys.stdin.fileno()):
                    return
                self.show()
        finally:
            loop.remove_reader(sys.stdin.fileno())

    async def refresh(self) -> None:
        """The timer goes on between two states."""
        while True:
            await asyncio.sleep(REDRAW_S)
            self.show()

    def show(self) -> None:
        with suppress(curses.error):  # a window of one line: what does not fit is not there
            self._draw()

    def _draw(self) -> None:
        seat, screen, (rows, columns) = self._seat, self._screen, self._screen.getmaxyx()
        words, state = seat.words, seat.client.state
        screen.erase()
        if state is None:
            word, why, tone, rest = (
                f"⚡ {words.say('lost')}",
                words.say("lost_hold"),
                "danger",
                [words.say("lost_why"), seat.client.url],
            )
        else:
            word, why, tone = headline(state, words)
            rest = lines(state, seat.client.you, words, time.monotonic() - seat.client.heard)
        if seat.help:
            rest = [f"{key if key != ' ' else words.say('key_space'):8} {words.say(f'key.{act}')}" for key, act in keys().items()]
            rest += [f"{KEEP:8} {words.say('control.keep')}", words.say("help.typing")]
            rest += [f"{words.say('terminal.orders')}: {', '.join((*ORDERS, *OWN_ORDERS))}"]
        bar = curses.A_BOLD | (curses.color_pair(1 + list(TONES).index(tone)) if curses.has_colors() else curses.A_REVERSE)
        for row, text in enumerate(("", "   " + (" ".join(word) if words.language == "en" else word), "")):
            self._put(row, text, bar, fill=columns)
        self._put(3, why, curses.A_BOLD)
        row = 5
        for text in rest:
            for part in textwrap.wrap(text, max(columns - 1, 10)) or [""]:
                if row < rows - 3:
                    self._put(row, part)
                row += 1
        self._put(rows - 2, printable(seat.said), curses.A_BOLD)
        if seat.prompt:
            self._put(rows - 1, f"{words.say(f'terminal.{seat.prompt}')}: {printable(seat.typed)}_", curses.A_REVERSE)
        else:
            self._put(rows - 1, words.say("terminal.keys"))
        screen.refresh()

    def _put(self, row: int, text: str, style: int = 0, fill: int = 0) -> None:
        columns = self._screen.getmaxyx()[1]
        text = text.encode(self._screen.encoding, "replace").decode(self._screen.encoding)
        self._screen.addstr(row, 0, cut(text, columns - 1), style)
        if fill:
            self._screen.chgat(row, 0, style)


class Lines:
    """Plain lines: one for every change of the word or of what was said; keys and orders come a line at a time."""

    def __init__(self, seat: Seat):
        self._seat, self._told = seat, ("", "", "", "", "")

    async def read(self) -> None:
        """Passes lines on. The end of the input ends nothing: whoever reads a log goes on reading."""
        reader = asyncio.StreamReader()
        try:
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            while text := await reader.readline():
                self._seat.line(text.decode(errors="replace").rstrip("\r\n"))
        except (ValueError, OSError):
            pass  # a file or a device that cannot be waited for
        await asyncio.Event().wait()

    async def refresh(self) -> None:
        while True:
            await asyncio.sleep(REDRAW_S)
            self.show()

    def show(self) -> None:
        seat = self._seat
        state = seat.client.state
        if state is None:
            word, reason, scene, holder, known = f"⚡ {seat.words.say('lost')}", "", "", "", ""
        else:
            word, reason, _ = headline(state, seat.words)
            card = (state.get("trial") or {}).get("card")
            word += f"  {printable(card['number'])} {printable(card['code'])}" if card else ""
            scene = printable("; ".join(laid(state.get("layout"), seat.words)[1:]))
            holder = printable(control(state["control"], seat.client.you, seat.words))
            newest = (f"{one['id']} {seat.words.say(f'sessions.{_condition(one, state)}')}" for one in state.get("sessions") or ())
            known = printable("; ".join(list(newest)[:LISTED]))
        now = (f"{word}  {reason}", scene, holder, known, printable(seat.said))
        for text, before in zip(now, self._told):
            if text and text != before:
                encoding = sys.stdout.encoding or "utf-8"
                print(f"{time.strftime('%H:%M:%S')} {text}".encode(encoding, "replace").decode(encoding), flush=True)
        self._told = now
