"""The console in a terminal, a real one (pty), against a real server: what is read there, what keys do, how it is left."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from console_cockpit import CANARY, LAYOUT, SAID, MemoryCockpit

from policytrim_ros.console import glance, terminal
from policytrim_ros.console.cockpit import Malformed
from policytrim_ros.console.language import Words
from policytrim_ros.console.server import Server
from policytrim_ros.core.safety import FAILSAFES

pytestmark = pytest.mark.alone

PLAN = {"tasks": ["tape_box"], "settings": ["standard"], "arms": [{"name": "one"}, {"name": "two"}], "scenes": 3, "seed": 7}
START = "import sys; from policytrim_ros.console import terminal; {before}; sys.exit(terminal.main({url!r}, {token!r}, 'Ann', {language!r}))"
CTRL_C, CTRL_L, ESCAPE = "\x03", "\x0c", "\x1b"


class Terminal:
    """A program in a terminal of its own, 110 x 40."""

    def __init__(self, url, token="", language="en", before="0", **environment):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        environment = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment}
        code = START.format(url=url, token=token, language=language, before=before)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment,
            preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),
        )
        self.output = ""

    def read(self) -> str:
        """What has come since it was emptied, after 50 ms without anything new."""
        while select.select([self.master], [], [], 0.05)[0]:
            try:
                self.output += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # the program has ended
                break
        return self.output

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def shows(self, *texts: str, timeout_s: float = 30.0) -> None:
        """Until the screen, painted anew, has all of ``texts``; blanks are not compared, curses moves over them."""
        end = time.monotonic() + timeout_s
        while True:
            self.output = ""
            self.press(CTRL_L)
            painted = time.monotonic() + 2.0
            while time.monotonic() < painted:
                self.read()
                if all(re.sub(r"\s", "", text) in plain(self.output) for text in texts):
                    return
            assert time.monotonic() < end, plain(self.output)

    def ended(self) -> int:
        """The exit code, after the terminal was found as it had been."""
        code = self.process.wait(15)
        self.read()
        assert termios.tcgetattr(self.slave) == self.before
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def plain(output: str) -> str:
    """What is written, without sequences that steer the terminal, and without blanks."""
    return re.sub(r"\s", "", re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|[()][AB0]|[=>78])", "", output))


@pytest.fixture
def cockpit():
    return MemoryCockpit()


@pytest.fixture
def served(cockpit):
    with Server(cockpit, port=0) as server:
        yield server


@pytest.fixture
def sit():
    """A function (url, ...) -> the console in a terminal."""
    opened = []

    def start(*arguments, **options):
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def wait_for(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def begin(cockpit):
    cockpit.order("start", {"plan": PLAN, "attended": True}, "Ann")
    cockpit.given.clear()


# ---- full screen --------------------------------------------------------------------------------------------------------


def test_an_operator_runs_trials_by_the_same_keys_as_on_the_page(served, cockpit, sit):
    begin(cockpit)
    seat = sit(served.url)
    seat.shows("READY", "g starts the trial.", "Trial 1", "[ Q2RT ]", "Hidden until the session is locked", "0 of 6 trials")
    seat.press("g")
    seat.shows("RUNNING", "You are in control")
    seat.press("s")
    seat.shows("READY", "Trial 2", "success, 3.2 s")
    seat.press("u")
    seat.shows("LABEL")
    seat.press("f")
    seat.shows("READY", "failure, 3.2 s")
    seat.press("\r")
    seat.shows("RUNNING")
    seat.press("x")
    seat.shows("Why is it invalid?")
    seat.press("the lampe\x7f fell, so go\r")
    seat.shows("READY", "the lamp fell, so go")
    assert cockpit.given == [
        ("go", {}, "Ann"),
        ("label", {"outcome": "success", "reason": ""}, "Ann"),
        ("undo", {}, "Ann"),
        ("label", {"outcome": "failure", "reason": ""}, "Ann"),
        ("go", {}, "Ann"),
        ("label", {"outcome": "invalid", "reason": "the lamp fell, so go"}, "Ann"),
    ]
    seat.press("q")
    assert seat.ended() == 0


def test_escape_h_and_space_hold_escape_also_while_a_reason_is_typed(served, cockpit, sit):
    begin(cockpit)
    seat = sit(served.url)
    for number, keys in enumerate((ESCAPE, "h", " ", "x" + "half a reason"), start=1):
        cockpit._phase("running")
        seat.shows("RUNNING")
        seat.press(keys)
        if number == 4:
            seat.shows("half a reason")
            seat.press(ESCAPE)
        wait_for(lambda n=number: len(cockpit.given) == n)
        seat.shows("LABEL")
    assert cockpit.given == 4 * [("hold", {}, "Ann")]


def test_hold_does_not_wait_behind_another_order(served, cockpit, sit):
    seat = sit(served.url)
    seat.shows("HOLD")
    cockpit.gate.clear()
    seat.press(":swap checkpoint=models/other\r")
    assert cockpit.entered.wait(10)
    seat.press("h")
    wait_for(lambda: cockpit.given == [("hold", {}, "Ann")])
    cockpit.gate.set()
    seat.shows("models/other speaks")


def test_an_order_with_details_is_typed_behind_a_colon(served, cockpit, sit, tmp_path):
    seat = sit(served.url)
    seat.shows("HOLD")
    (tmp_path / "plan.json").write_text(
        '{"tasks": ["tape_box"], "settings": ["standard"], "arms": [{"name": "one"}], "scenes": 1, "seed": 1}'
    )
    seat.press(f":start plan=@{tmp_path}/plan.json attended=false\r")
    seat.shows("READY")
    seat.press(":lock session=20261123-201500-ab12 reason='a bad day'\r")
    seat.shows("20261123-201500-ab12 is locked", "14/20", "[48, 86] %")
    assert cockpit.given[0][1]["attended"] is False and cockpit.given[1][1]["reason"] == "a bad day"
    seat.press(":fly\r")
    seat.shows("unknown order 'fly'")


def test_a_session_is_begun_from_the_yaml_file_of_its_plan(served, cockpit, sit, tmp_path):
    seat = sit(served.url)
    seat.shows("HOLD")
    (tmp_path / "plan.yaml").write_text(
        "# a comment\ntasks: [tape_box]\nsettings: [standard]\narms:\n  - {name: one}\nscenes: 1\nseed: 1\n"
    )
    seat.press(f":start plan=@{tmp_path}/plan.yaml attended=false\r")
    seat.shows("READY")
    assert cockpit.given[0][1]["plan"]["arms"] == [{"name": "one"}]


@pytest.mark.parametrize(
    "text, why",
    [
        ("tasks: [tape_box\nseed: 1\n", "expected ',' or ']'"),
        ("notes: 2026-11-23\n", "put a date in quotes"),
        ("- tape_box\n", "expected names with values"),
        ("", "expected names with values"),
        ("arms: &a [*a]\n", "Circular reference"),
        (b"\xff\xfe\xff", "decode"),
    ],
)
def test_a_plan_that_cannot_be_read_is_one_sentence_that_names_the_file(text, why, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Malformed, match=re.escape(why)) as refusal:
        terminal.parsed(f"start plan=@{file}")
    assert str(refusal.value).startswith(f"plan=@{file}: ") and "\n" not in str(refusal.value)


def test_everything_is_said_in_chinese(served, sit):
    seat = sit(served.url, language="zh")
    seat.shows("保持", "机械臂", "h 保持")
    seat.press("l")
    seat.shows("HOLD", "h HOLD")
    seat.press("?")
    seat.shows("take the last outcome back", "roll_back")


def test_a_failsafe_says_what_to_do_in_both_languages():
    reason = f"beyond limits: the goal holds NaN or infinity; {FAILSAFES['beyond limits'].advice}"
    state = {"robot": {"state": "holding", "reason": reason}}
    state["word"] = glance.word(state)
    assert state["word"]["failsafe"] == "beyond_limits"
    for language, says, advice in (
        ("en", "beyond limits: the goal holds NaN or infinity", "Check the checkpoint and the limits; then Go."),
        ("zh", "超出限位：目标含有 NaN 或无穷大", "然后按“出发”。"),
    ):
        _, why, _ = terminal.headline(state, Words(language))
        assert why.startswith(f"{says}  → ") and why.endswith(advice)
    assert glance.word({"robot": {"state": "holding", "reason": "go first"}})["failsafe"] == ""


def test_training_and_a_disturbance_that_is_due_are_shown():
    state = {"disturb": True, "robot": {"state": "moving"}, "trial": {"phase": "running"}, "control": {}}
    state["trainer"] = dict(state="running", phase="saving", iteration=30, iterations=120, success_rate=0.94, eta_s=600)
    state["word"], words = glance.word(state), Words("en")
    word, why, tone = terminal.headline(state, words)
    assert words.say("word.disturb") in word and why == words.say("why.disturb") and tone == "attention"
    [line] = [line for line in terminal._system(state, words, 0.0) if line.startswith(words.say("system.trainer"))]
    assert all(part in line for part in ("saving", "30", "120", "0.94", "600 s"))


def test_a_lost_server_is_shown_and_found_again(cockpit, sit):
    with Server(cockpit, port=0) as first:
        seat, port = sit(first.url), first.port
        seat.shows("HOLD")
    seat.shows("NO CONNECTION")
    seat.press("h")
    seat.shows("HOLD WAS NOT DELIVERED")
    with Server(cockpit, port=port):
        seat.shows("held by the operator", timeout_s=20)


def test_sessions_stand_with_the_names_that_orders_want_and_a_report_is_saved_once_its_session_is_locked(served, cockpit, tmp_path, sit):
    begin(cockpit)
    seat = sit(served.url, before=f"import os; os.chdir({str(tmp_path)!r})")
    seat.shows("Sessions:", "20261123-201500-ab12  tape_box  0  runs  Report: lock it first")
    seat.press(":report\r")
    seat.shows("the session is blind; lock it first")
    assert not list(tmp_path.iterdir())
    seat.press(":lock session=20261123-201500-ab12\r")
    seat.shows("locked  :report session=20261123-201500-ab12")
    seat.press(":report session=20261123-201500-ab12\r")
    seat.shows(f"{tmp_path.name}/report-20261123-201500-ab12.md")
    assert (tmp_path / "report-20261123-201500-ab12.md").read_text() == "# Report of 20261123-201500-ab12"
    seat.press(":report session=../../etc/passwd\r")
    seat.shows("no such session")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_request_for_control_is_kept_from_by_a_key(served, cockpit, sit):
    holder = sit(served.url)
    begin(cockpit)
    holder.shows("READY")
    holder.press("g")
    holder.shows("You are in control")
    other = sit(served.url)
    other.shows("Ann is in control", "[t] Ask for control")
    other.press("t")
    holder.shows("Ann asks for control: give it", "[k] Keep it")
    holder.press("k")
    holder.shows("You are in control")
    wait_for(lambda: served._state["control"]["asking"] == "")
    assert served._state["control"]["holder"] == "Ann"
    other.shows("Ask for control")


def test_nothing_that_comes_from_elsewhere_steers_the_terminal(served, cockpit, sit):
    hostile = "\x1b]0;owned\x07\x1b[2J\u202eevil"
    begin(cockpit)
    cockpit.now["trial"]["card"].update(task=hostile, code=hostile)
    cockpit.now["trial"]["alarms"] = [hostile]
    cockpit.now["robot"].update(state="fault", reason=hostile)
    seat = sit(served.url)
    seat.shows("FAULT", "\N{REPLACEMENT CHARACTER}]0;owned")
    assert "\x1b]0;" not in seat.output and "\x07" not in seat.output and "\u202e" not in seat.output


@pytest.mark.parametrize("rows, columns", [(1, 10), (5, 20), (200, 300)])
def test_a_window_of_any_size_will_do(served, cockpit, sit, rows, columns):
    seat = sit(served.url)
    seat.shows("HOLD")
    fcntl.ioctl(seat.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.kill(seat.process.pid, signal.SIGWINCH)
    seat.press("h")
    wait_for(lambda: cockpit.given)
    seat.press("q")
    assert seat.ended() == 0


LEFT_SCREEN = "\x1b[?1049l"


@pytest.mark.parametrize(
    "leave",
    [
        lambda seat: seat.press(CTRL_C),
        lambda seat: seat.press("q"),
        lambda seat: seat.process.send_signal(signal.SIGTERM),
        lambda seat: seat.process.send_signal(signal.SIGHUP),
    ],
    ids=["ctrl-c", "q", "sigterm", "sighup"],
)
def test_the_terminal_is_left_as_it_was(served, sit, leave):
    seat = sit(served.url)
    seat.shows("HOLD")
    leave(seat)
    assert seat.ended() == 0 and LEFT_SCREEN in seat.output and "Traceback" not in seat.output


def test_the_terminal_is_left_as_it_was_after_a_failure_inside_which_is_told(served, sit):
    seat = sit(served.url, before="terminal.lines = lambda *_: 1 / 0")
    assert seat.ended() == 1
    assert LEFT_SCREEN in seat.output and "ZeroDivisionError" in seat.output.split(LEFT_SCREEN)[1]


def test_a_wrong_token_is_one_sentence_after_the_terminal_was_restored(cockpit, sit):
    with Server(cockpit, port=0, token="right") as server:
        seat = sit(server.url, token="wrong")
        assert seat.ended() == 1
        last = seat.output.split(LEFT_SCREEN)[1]
        assert "the token is missing or wrong; set POLICYTRIM_TOKEN" in last and "Traceback" not in last
        sit(server.url, token="right").shows("HOLD")


def test_a_terminal_without_colours_or_utf_8_will_do(served, cockpit, sit):
    seat = sit(served.url, TERM="vt100", LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    seat.press("h")
    wait_for(lambda: cockpit.given)
    seat.press("q")
    assert seat.ended() == 0 and "HOLD" in plain(seat.output)


# ---- plain lines --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(served):
    """The console with a pipe on either side: (process, a function that reads until a text comes)."""
    code = START.format(url=served.url, token="", language="en", before="0")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def until(text):
        while text not in (line := process.stdout.readline()):
            assert line, f"ended before '{text}'"
        return line

    yield process, until
    process.kill()
    process.communicate()


def say(process, text):
    process.stdin.write(text + "\n")
    process.stdin.flush()


def test_without_a_terminal_it_is_a_line_for_each_change_and_orders_a_line_at_a_time(lines, cockpit):
    process, until = lines
    assert re.match(r"\d\d:\d\d:\d\d ■ HOLD  held by the operator", until("HOLD"))
    begin(cockpit)
    until("● READY  1 Q2RT")
    say(process, "g")
    until("▶ RUNNING")
    say(process, "x the lamp fell")
    until("● READY  2")
    say(process, "")
    until("▶ RUNNING")
    say(process, "h")
    until("? LABEL")
    say(process, ":label outcome=failure")
    until("● READY  3")
    assert [(name, details) for name, details, _ in cockpit.given] == [
        ("go", {}),
        ("label", {"outcome": "invalid", "reason": "the lamp fell"}),
        ("go", {}),
        ("hold", {}),
        ("label", {"outcome": "failure", "reason": ""}),
    ]
    say(process, "q")
    assert process.wait(10) == 0


def test_who_reads_lines_is_told_of_new_sessions_and_of_who_asks_for_control(lines, cockpit, served):
    process, until = lines
    until("Nobody is in control")
    begin(cockpit)
    assert "20261123-201500-ab12 runs" in until("20261123-201500-ab12")
    say(process, "g")
    until("You are in control")
    served._control.ask("f" * 32, "Bob", time.monotonic())
    assert "[k] Keep it" in until("Bob asks for control")
    say(process, "k")
    until("You are in control")


def test_a_card_is_one_line_for_who_reads_lines(lines, cockpit):
    process, until = lines
    begin(cockpit)
    cockpit.now["layout"] = LAYOUT
    assert "; ".join(SAID["en"]) in until("Mug, on its side")
    cockpit.now["layout"] = None


def test_the_end_of_the_input_ends_nothing(lines, cockpit):
    process, until = lines
    until("HOLD")
    process.stdin.close()
    cockpit.now["robot"].update(state="fault", reason="joint 3")
    until("✖ FAULT  joint 3")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    process.stdin = None


def test_an_order_given_just_before_leaving_is_delivered(served, cockpit):
    code = START.format(url=served.url, token="", language="en", before="0")
    assert (
        subprocess.run([sys.executable, "-c", code], input="h\nq\n", text=True, stdout=subprocess.DEVNULL, timeout=20).returncode
        == 0
    )
    assert cockpit.given == [("hold", {}, "Ann")]


def test_input_from_nowhere_will_do(served):
    code = START.format(url=served.url, token="", language="en", before="0")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert "HOLD" in process.stdout.readline() or "HOLD" in process.stdout.readline()
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_said_in_one_sentence(url, capsys):
    assert terminal.main(url, who="Ann") == 1
    assert capsys.readouterr().err.startswith(f"console: {url} is no address")


def test_a_name_that_cannot_be_printed_is_refused(capsys):
    assert terminal.main("http://127.0.0.1:1", who="A\nB") == 1
    assert "printable" in capsys.readouterr().err


# ---- pieces -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, found",
    [
        ("home", ("home", {})),
        ('lock session=a reason="two words"', ("lock", {"session": "a", "reason": "two words"})),
        ("resume session=a attended=false", ("resume", {"session": "a", "attended": False})),
        ("swap checkpoint=ws://a:1/?b=c", ("swap", {"checkpoint": "ws://a:1/?b=c"})),
    ],
)
def test_a_typed_order_is_a_name_and_details(text, found):
    assert terminal.parsed(text) == found


@pytest.mark.parametrize(
    "text, why",
    [
        ("fly", "unknown order"),
        ("home now", "details: none"),
        ("lock when=now", "details: session=..., reason=..."),
        ("resume attended=yes", "true or false"),
        ("start plan=@/nowhere.json", "No such file"),
        ("lock reason='open", "No closing quotation"),
    ],
)
def test_a_typed_order_that_is_none_says_why(text, why):
    with pytest.raises(Malformed, match=re.escape(why)):
        terminal.parsed(text)


def test_chinese_characters_take_two_columns_and_are_not_cut_in_half():
    assert (
        terminal.cut("保持HOLD", 6) == "保持HO" and terminal.cut("保持", 3) == "保" and terminal.cut("e\u0301a", 1) == "e\u0301"
    )


def test_a_blind_session_shows_no_figures_and_an_open_one_does():
    cockpit = MemoryCockpit()
    state = cockpit.state() | {"control": {"holder": "", "since_s": 0, "asking": ""}}
    shown = "\n".join(terminal.lines(state | {"word": glance.word(state)}, {}, Words("en"), 0.0))
    assert "212 ms" in shown and "models/trimmed" in shown and "0.021 rad" in shown
    begin(cockpit)
    state = cockpit.state() | {"control": {"holder": "Bob", "since_s": 0, "asking": ""}}
    shown = "\n".join(terminal.lines(state | {"word": glance.word(state)}, {}, Words("en"), 0.0))
    assert (
        re.findall(r"\w+ ms", shown) == ["40 ms", "40 ms"]
        and "rad" not in shown
        and "models" not in shown
        and "Bob is in control" in shown
    )


def test_a_picture_grows_older_between_two_states():
    cockpit = MemoryCockpit()
    state = cockpit.state() | {"control": {"holder": "", "since_s": 0, "asking": ""}}
    state |= {"word": glance.word(state), "cameras": [{"name": "front", "age_ms": 40}, {"name": "wrist", "age_ms": None}]}
    for waited_s, ages in ((0.0, "front 40 ms, wrist –"), (1.5, "front 1540 ms, wrist –")):
        assert any(ages in line for line in terminal.lines(state, {}, Words("en"), waited_s))


def test_only_the_newest_sessions_are_listed_and_their_names_steer_nothing():
    cockpit = MemoryCockpit()
    state = cockpit.state() | {"control": {"holder": "", "since_s": 0, "asking": ""}}
    known = dict(began=0, locked=True, blind=False, trials=2, tasks=["tape_box"])
    state |= {"word": glance.word(state), "sessions": [known | {"id": f"s{number}\x1b"} for number in range(20)]}
    shown = [line for line in terminal.lines(state, {}, Words("zh"), 0.0) if "tape_box" in line and "已锁定" in line]
    assert len(shown) == terminal.LISTED and shown[0].lstrip().startswith("s0") and "\x1b" not in "".join(shown)


@pytest.mark.parametrize("language, said", [("en", "RETURNED, the arm was held after 3"), ("zh", "已退回（机械臂被保持）")])
def test_what_has_become_of_a_canary_is_one_line(language, said):
    cockpit = MemoryCockpit()
    state = cockpit.state() | {"control": {"holder": "", "since_s": 0, "asking": ""}}
    state |= {"word": glance.word(state)}
    before = terminal.lines(state, {}, Words(language), 0.0)
    state["trial"]["canary"] = CANARY
    (line,) = [one for one in terminal.lines(state, {}, Words(language), 0.0) if one not in before]
    assert said in line and "1.25" in line and "{" not in line


@pytest.mark.parametrize("language", SAID)
def test_a_card_says_in_words_where_things_lie_and_where_the_target_goes_blind_or_not(language):
    cockpit = MemoryCockpit()
    begin(cockpit)
    state = cockpit.state() | {"control": {"holder": "", "since_s": 0, "asking": ""}, "layout": LAYOUT}
    shown = terminal.lines(state | {"word": glance.word(state)}, {}, Words(language), 0.0)
    assert state["session"]["blind"] and [line for line in shown if line in SAID[language]] == SAID[language]
    assert terminal.laid(LAYOUT | {"move": None}, Words(language))[1:] == SAID[language][:-1]
    assert terminal.laid(None, Words(language)) == []
