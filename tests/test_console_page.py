"""The page in a real browser: what an operator reads, presses and must never be misled by."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from console_cockpit import CANARY, LAYOUT, SAID, MemoryCockpit, jpeg

from policytrim_ros.console.cockpit import ORDERS
from policytrim_ros.console.glance import WORDS
from policytrim_ros.console.language import LANGUAGES, Words, answers, keys, language_of, strings
from policytrim_ros.console.server import PAGE, Server
from policytrim_ros.core.canary import AS_GOOD
from policytrim_ros.core.safety import FAILSAFES
from policytrim_ros.core.sequential import UNDECIDED
from policytrim_ros.trials.canary import RETURNED

CONSOLE = PAGE.parent
TOKEN = "correct horse battery staple"
HOSTILE = '<img src=x onerror="window.broken=1"><script>window.broken=1</script>'


# ---- texts, without a browser -------------------------------------------------------------------------------------------


def families():
    """Keys that are put together from parts: all that there can be."""
    yield from (f"word.{name}" for name in WORDS)
    yield from (f"why.{name}" for name in WORDS)
    yield from (f"order.{name}" for name in ORDERS)
    yield from (f"key.{act}" for act in keys().values())
    yield from (f"failsafe.{name.replace(' ', '_')}" for name in FAILSAFES)
    yield from (f"outcome.{name}" for name in ("success", "failure", "invalid", "unlabelled", "aborted"))
    yield from (f"sessions.{name}" for name in ("locked", "runs", "open"))
    yield from (f"start.arm_{name}" for name in ("name", "checkpoint", "horizon"))
    yield from (f"terminal.{name}" for name in ("reason", "order"))
    yield from (f"pose.{name}" for name in ("tape", "box", "rack", "mug", "mug_left", "mug_right", "other"))
    yield from (f"move.{name}" for name in ("tape", "mug", "other"))
    yield from (f"canary.{verdict.replace(' ', '_')}" for verdict in (UNDECIDED, AS_GOOD, *RETURNED))


def literal_keys():
    """Keys that the page and the terminal name."""
    for path in [*PAGE.glob("*.js"), *PAGE.glob("*.html"), *CONSOLE.glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        yield from re.findall(r'data-say="([\w.]+)"', text)
        for call in re.findall(r"\bsay\(([^()]*)", text):
            chosen = re.split(r"""(?<=["']), """, call)[0]  # the key, or a choice of keys; what follows are values
            chosen = re.sub(r"""[!=]==? ["'].*?["']|\{.*?\}""", "", chosen)
            yield from re.findall(r"""["']([a-z_]+(?:\.[a-z_]+)?)["']""", chosen)


def test_both_languages_say_the_same_things_with_the_same_gaps():
    english, chinese = strings("en"), strings("zh")
    assert list(english) == list(chinese) and all(english.values()) and all(chinese.values())
    gaps = lambda text: sorted(re.findall(r"\{\w+\}", text))  # noqa: E731
    for key in english:
        assert gaps(english[key]) == gaps(chinese[key]), key
    same = {key for key in english if english[key] == chinese[key]}
    assert same == {"order.sent"}


def test_every_text_that_is_used_exists_and_every_text_is_used():
    known, used = set(strings("en")), set(literal_keys()) | set(families())
    assert len(set(literal_keys())) > 80 and used - known == set() and known - used == set()


def test_what_the_processes_answer_is_understood_in_chinese_and_every_such_sentence_is_really_said():
    code = "".join(path.read_text() for path in PAGE.parents[1].rglob("*.py"))
    gaps = lambda text: sorted(set(re.findall(r"\{\w+\}", text)))  # noqa: E731
    for english, chinese in answers("zh").items():
        assert gaps(english) == gaps(chinese) and english != chinese, english
        missing = [part for part in re.split(r"\{\w+\}|[:;] |camera |node |the arm ", english) if part not in code]
        assert missing == [], f"nobody says '{english}'"
    chinese, english = Words("zh"), Words("en")
    for said, means in (
        ("Ann is in control; ask for it", "Ann 正在操作；请先请求控制权"),
        ("nobody is in control", "无人掌握控制权"),
        ("this system was started for tape_box, not for juggle; start it with task:=juggle", "本系统为 tape_box 启动，而非 juggle；请用 task:=juggle 启动"),
        ("this system was started for a, not for b; start it with task:=c", "this system was started for a, not for b; start it with task:=c"),
        ("controller/home refused: the arm is not enabled", "controller/home 拒绝：机械臂未使能"),
        ("holding: home: arrived", "保持：已回位"),
        ("arm status: collision detected; joint2: collision", "机械臂报告：检测到碰撞；关节 2：碰撞"),
        ("arm status: the arm is in teach mode: leave it with the button on the arm", "机械臂报告：机械臂处于示教模式：请用机械臂上的按钮退出"),
        ("camera stale: 'wrist' is silent for 0.6 s", "相机没有图像：“wrist”已静默 0.6 秒"),
        ("beyond limits: joint2 asked for 3.400 rad, allowed is 0.015 to 3.125", "超出限位：joint2 被要求到 3.400 弧度，允许范围是 0.015 至 3.125"),
        ("a sentence (with [signs]) that nobody knows", "a sentence (with [signs]) that nobody knows"),
        ("", ""),
    ):
        assert chinese.understood(said) == means and english.understood(said) == said


def test_the_language_of_a_terminal_is_that_of_its_environment():
    assert language_of({"LANG": "zh_CN.UTF-8"}) == "zh" and language_of({"LANG": "de_DE"}) == "en" == language_of({})
    assert language_of({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}) == "en"
    assert Words("en").other().say("word.hold") == "保持" and Words("zh").say("no such key") == "no such key"


def test_texts_enter_the_page_as_text_alone():
    for path in PAGE.glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text()), (
            path
        )
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=|https?://", html)


def test_nothing_of_the_page_comes_from_elsewhere():
    for path in [*PAGE.glob("*.js"), *PAGE.glob("*.css")]:
        found = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}", path.read_text())
        assert set(found) <= {"http://www.w3.org"}, path


# ---- in the browser -----------------------------------------------------------------------------------------------------

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
no_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install both")


def in_a_browser(test):
    return pytest.mark.integration(no_browser(test))


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


class Page:
    """What a person does with the page, and reads on it."""

    def __init__(self, browser, url: str):
        self.browser, self.first = browser, browser.current_window_handle
        browser.get(url)

    def at(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.at(selector).text

    def seen(self, selector: str) -> bool:
        return self.at(selector).is_displayed()

    def press(self, key: str, selector: str = "body") -> None:
        self.at(selector).send_keys(key)

    def click(self, selector: str) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.at(selector))
        self.at(selector).click()

    def until(self, condition, timeout_s: float = 10.0):
        """The first true value of ``condition()``; what is on the page is told when none comes."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + timeout_s
        while True:
            try:
                if value := condition():
                    return value
            except StaleElementReferenceException:
                pass  # replaced while it was read
            assert time.monotonic() < end, f"{self.text('#word')}: {self.text('#reason')}; said: {self.text('#said')}"

    def word(self, wanted: str) -> None:
        self.until(lambda: self.text("#name") == wanted)


@pytest.fixture
def page(request, chromium):
    """A function (cockpit, options of Server) -> the page of a running server, in a browser that remembers nothing."""
    servers = []

    def open_page(cockpit, **options):
        servers.append(Server(cockpit, port=0, **options).start())
        opened = Page(chromium, servers[-1].url)
        opened.server = servers[-1]
        chromium.execute_script("localStorage.clear(); sessionStorage.clear(); localStorage.setItem('language', 'en')")
        chromium.delete_all_cookies()
        chromium.refresh()
        if "token" not in options:
            opened.until(lambda: not opened.seen("#lost") and opened.text("#name"))
        return opened

    yield open_page
    chromium.get("about:blank")
    complaints = [line["message"] for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    for server in servers:
        server.close()
    assert not [line for line in complaints if "Security Policy" in line or "Uncaught" in line], complaints


def started(page, cockpit, **plan):
    """The page of a session that waits for the first go."""
    cockpit.order(
        "start",
        {"plan": {"tasks": ["tape_box"], "settings": ["standard"], "arms": [{"name": "one"}, {"name": "two"}], "scenes": 3, "seed": 7}
         | plan, "attended": True},
        "Ann",
    )  # fmt: skip
    cockpit.given.clear()
    page.word("READY")
    return page


def in_a_trial(page):
    """A cockpit whose first trial runs, and its page."""
    cockpit = MemoryCockpit()
    seen = started(page(cockpit), cockpit)
    seen.press("g")
    seen.word("RUNNING")
    return cockpit, seen


@in_a_browser
def test_an_operator_runs_a_blind_session_from_its_start_to_its_report(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit)
    assert seen.text("#name") == "HOLD" and seen.text("#reason") == "held by the operator" and "■" in seen.text("#symbol")
    seen.press("Li", "#who")
    for box in ("#start-tasks input[value=flip_mug]", "#start-settings input[value=dynamic]"):
        seen.click(box)
    seen.at("#start-scenes").clear()
    seen.press("2", "#start-scenes")
    seen.press("models/a b", "#arms .arm:nth-child(2) [data-field=checkpoint]")
    seen.click("#start button[data-order=start]")
    seen.word("READY")
    (name, details, who) = cockpit.given[0]
    assert (name, who, details["attended"]) == ("start", "Li", True)
    plan = dict(details["plan"])
    assert 1 <= plan.pop("seed") <= 999_999  # drawn anew for each session
    assert plan == dict(
        tasks=["tape_box", "flip_mug"], settings=["standard", "dynamic"], scenes=2, margin=0.1, alpha=0.05, block=2, canary=0, disturb_s=2, timeout_s=60, stop="fixed",
        blind=True, notes="", arms=[dict(name="baseline", checkpoint="", horizon=0), dict(name="trimmed", checkpoint="models/a b", horizon=0)],
    )  # fmt: skip
    assert seen.text("#in-control") == "You are in control" and seen.text("#code") == "Q2RT" and seen.text("#number") == "1 / 16"

    assert seen.seen("#blind") and "Hidden until" in seen.text("#budget") and not seen.seen("#slack") and not seen.seen("#plot")
    assert "baseline" not in seen.text("#comparison") and not seen.at("#sessions").find_elements("css selector", "tbody a")

    seen.press("g")
    seen.word("RUNNING")
    seen.until(lambda: float(seen.text("#timer").split()[0]) > 0.3)
    seen.press("s")
    seen.word("READY")
    seen.until(lambda: "success" in seen.text("#last") and seen.text("#number") == "2 / 16")
    seen.press("u")
    seen.word("LABEL")
    seen.press("f")
    seen.word("READY")
    seen.until(lambda: "failure" in seen.text("#last"))

    seen.press("\ue007")  # Enter
    seen.word("RUNNING")
    seen.press("\ue00c")  # Escape
    seen.word("LABEL")
    seen.press("x")
    seen.until(lambda: seen.seen("#ask-reason"))
    seen.press("the lamp fell, so go", "#why")
    seen.press("\ue007", "#why")
    seen.word("READY")
    assert cockpit.given[1:] == [
        ("go", {}, "Li"),
        ("label", {"outcome": "success", "reason": ""}, "Li"),
        ("undo", {}, "Li"),
        ("label", {"outcome": "failure", "reason": ""}, "Li"),
        ("go", {}, "Li"),
        ("hold", {}, "Li"),
        ("label", {"outcome": "invalid", "reason": "the lamp fell, so go"}, "Li"),
    ]

    seen.press("p")
    seen.until(lambda: cockpit.given[-1][0] == "pause")
    button = "#sessions tbody button:nth-of-type(2)"
    seen.until(lambda: seen.at(button).is_enabled())
    seen.click(button)
    seen.until(lambda: seen.seen("#ask-lock"))
    seen.click("#ask-lock button[value=yes]")
    seen.until(lambda: seen.at("#plot").find_elements("css selector", "svg .whisker"))
    assert "baseline" in seen.text("#plot") and "14/20, 14.6 s" in seen.text("#plot") and not seen.seen("#blind")
    assert "212 ms" in seen.text("#slack") and seen.text("#generation") == "3" and "4 chunks left" in seen.text("#probation")

    seen.click("#sessions tbody a")
    seen.until(lambda: len(seen.browser.window_handles) == 2)
    seen.browser.switch_to.window(seen.browser.window_handles[1])
    seen.until(lambda: seen.text("h1") == "Report of 20261123-201500-ab12")
    seen.browser.close()
    seen.browser.switch_to.window(seen.first)


@in_a_browser
def test_the_report_of_a_session_that_is_still_blind_is_not_offered_whichever_session_is_shown(page):
    cockpit = MemoryCockpit()
    one = dict(began=0.0, trials=2, tasks=["tape_box"])
    cockpit.now["sessions"] = [
        dict(id="hidden", locked=False, blind=True, **one),
        dict(id="shown", locked=False, blind=False, **one),
    ]
    seen = page(cockpit)
    rows = seen.until(lambda: seen.browser.find_elements("css selector", "#sessions tbody tr"))
    links = [[link.text for link in row.find_elements("css selector", "a")] for row in rows]
    assert links == [[], ["Report", "Markdown"]] and "Report: lock it first" in rows[0].text


@in_a_browser
def test_what_has_become_of_a_canary_is_one_line_in_the_readers_language(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit)
    assert not seen.seen("#canary")
    cockpit.now["trial"]["canary"] = CANARY
    seen.until(lambda: seen.seen("#canary"))
    assert seen.text("#canary").startswith("Canary new, one trial in 4: RETURNED, the arm was held after 3 of its trials")
    assert "1.25 for worse, 0.8 for as good; 20 decides" in seen.text("#canary")
    seen.press("l")
    seen.until(lambda: "已退回" in seen.text("#canary"))


@in_a_browser
def test_hold_works_by_button_h_space_while_running_and_escape_also_from_a_field_and_a_dialog(page):
    cockpit = MemoryCockpit()
    seen = started(page(cockpit), cockpit)
    holds = lambda: sum(name == "hold" for name, _, _ in cockpit.given)  # noqa: E731
    ways = [
        lambda: seen.click("#hold"),
        lambda: seen.press("h"),
        lambda: seen.press(" "),
        lambda: seen.press(" ", "#language"),
        lambda: seen.press("\ue00c", "#who"),
    ]
    for number, way in enumerate(ways, start=1):
        cockpit.do_go(who="Ann") if number == 1 else cockpit._phase("running")
        seen.word("RUNNING")
        way()
        seen.until(lambda n=number: holds() == n)
        seen.word("LABEL")
    seen.press("x")
    seen.until(lambda: seen.seen("#ask-reason"))
    seen.click("#hold")
    seen.until(lambda: holds() == 6)
    seen.press("\ue00c", "#why")
    seen.until(lambda: holds() == 7 and not seen.seen("#ask-reason"))
    assert {name for name, _, _ in cockpit.given} == {"hold"}


@in_a_browser
def test_keys_do_nothing_while_a_person_types_or_an_order_makes_no_sense(page):
    cockpit = MemoryCockpit()
    seen = started(page(cockpit), cockpit)
    seen.press("gusfxhpc Ann", "#who")
    seen.press("gsh", "#start-notes")
    seen.press("s")  # there is nothing to label
    seen.press("u")
    seen.press("g")
    seen.until(lambda: cockpit.given)
    seen.word("RUNNING")
    assert [name for name, _, _ in cockpit.given] == ["go"] and cockpit.given[0][2] == "gusfxhpc Ann"
    assert not seen.at("[data-order=start]").is_enabled() and not seen.at("[data-order=swap]").is_enabled()


@in_a_browser
def test_a_policy_is_exchanged_and_rolled_back_and_training_is_shown_with_its_progress(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit)
    assert not seen.seen("#training")
    cockpit.now["trainer"] = dict(state="running", phase="saving", iteration=30, iterations=120, success_rate=0.94, eta_s=600)
    seen.until(lambda: seen.seen("#training") and seen.at("#training").get_property("value") == 0.25)
    assert all(part in seen.text("#trainer") for part in ("saving", "30", "120", "0.94", "10"))
    seen.press("models/new\ue007", "#swap-to")
    seen.until(lambda: cockpit.given)
    seen.click("[data-order=roll_back]")
    seen.until(lambda: len(cockpit.given) == 2)
    assert [given[:2] for given in cockpit.given] == [("swap", {"checkpoint": "models/new"}), ("roll_back", {})]


@in_a_browser
def test_the_page_says_when_the_scene_is_to_be_disturbed(page):
    cockpit, seen = in_a_trial(page)
    cockpit.now["disturb"] = True
    seen.word(strings("en")["word.disturb"].upper())
    assert seen.text("#reason") == strings("en")["why.disturb"]


@in_a_browser
def test_an_invalid_trial_needs_a_reason(page):
    cockpit, seen = in_a_trial(page)
    seen.press("x")
    seen.until(lambda: seen.seen("#ask-reason"))
    seen.press("\ue007", "#why")
    seen.until(lambda: not seen.seen("#ask-reason"))
    seen.press("s")
    seen.word("READY")
    assert [(name, details.get("outcome")) for name, details, _ in cockpit.given] == [("go", None), ("label", "success")]


@in_a_browser
def test_the_page_says_that_it_is_lost_and_comes_back_by_itself(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit)
    port = seen.server.port
    seen.server.close()
    seen.until(lambda: seen.seen("#lost") and "NO CONNECTION" in seen.text("#lost"))
    seen.press("h")
    seen.until(lambda: "HOLD WAS NOT DELIVERED" in seen.text("#alarms"))
    cockpit.now["robot"]["reason"] = "node lost: camera"
    with Server(cockpit, port=port):
        seen.until(lambda: not seen.seen("#lost") and seen.text("#reason") == "node lost: camera", 20)
        assert seen.text("#advice") == "A process has died. Start the named one again; then Go."
        seen.click("#hold")
        seen.until(lambda: cockpit.given == [("hold", {}, "operator")] and not seen.text("#alarms"))


@in_a_browser
def test_a_state_that_comes_no_more_is_shown_as_a_lost_connection(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit)
    cockpit.state = lambda: 1 / 0
    seen.until(lambda: seen.seen("#lost"), 15)


@in_a_browser
def test_hostile_names_are_shown_as_text(page):
    cockpit = MemoryCockpit(cameras=(HOSTILE,))
    now = cockpit.now
    now["robot"]["reason"] = now["trial"]["recording"] = now["scene"]["instruction"] = HOSTILE
    now["trial"]["card"] = dict(
        number=1, code=HOSTILE, task=HOSTILE, setting=HOSTILE, seed=1, timeout_s=60.0, disturb_s=2.0, arm=HOSTILE
    )
    now["trial"]["last"] = dict(number=1, code=HOSTILE, outcome=HOSTILE, reason=HOSTILE, seconds=1.0)
    now["trial"]["alarms"] = [HOSTILE]
    now["layout"] = dict(objects=[dict(name=HOSTILE, pose=HOSTILE, x_cm=1, y_cm=1, turn_deg=1)], move=None, pictures=[HOSTILE])
    now["sessions"] = [dict(id=HOSTILE, began=0.0, locked=True, trials=1, tasks=[HOSTILE])]
    row = dict(task=HOSTILE, setting=HOSTILE, arm=HOSTILE, n=2, successes=1, low=0.1, high=0.9, seconds=1.0)
    now["session"] = dict(
        id=HOSTILE, running=False, blind=False, locked=True, arms=1, planned=2, done=2, ended=HOSTILE, comparison=[row]
    )
    now["policy"].update(checkpoint=HOSTILE, news=HOSTILE)
    now["recorder"].update(file=HOSTILE, reason=HOSTILE)
    now["trainer"] = dict(state=HOSTILE, phase=HOSTILE, iteration=1, iterations=2, success_rate=0.5, eta_s=10)
    seen = page(cockpit)
    seen.until(lambda: HOSTILE in seen.text("figcaption") and HOSTILE in seen.text("#sessions tbody"))
    for place in (
        "#reason",
        "#code",
        "#task",
        "#arm",
        "#last",
        "#layout",
        "#alarms",
        "#plot",
        "#checkpoint",
        "#news",
        "#recorder",
        "#trainer",
    ):
        assert HOSTILE in seen.text(place), place
    assert seen.browser.execute_script(
        "return [window.broken ?? null, document.querySelectorAll('body script, img[src=x]').length]"
    ) == [None, 0]
    address = seen.at("#sessions tbody a").get_attribute("href")
    assert address.startswith(f"{seen.server.url}/report/%3Cimg")


@in_a_browser
def test_everything_is_said_in_chinese_at_the_press_of_a_key_and_after_a_reload(page):
    seen = page(MemoryCockpit())
    seen.press("l")
    seen.word("保持")
    assert seen.text("#trial h2") == "试验" and seen.browser.execute_script("return document.documentElement.lang") == "zh-CN"
    seen.browser.refresh()
    seen.word("保持")
    seen.click("#language")
    seen.word("HOLD")


@in_a_browser
def test_cameras_show_their_age_the_wanted_scene_over_them_and_that_a_picture_is_old(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit)

    def fresh():
        cockpit.pictures["front"] = (jpeg(5), time.time())
        return re.fullmatch(r"\d+ ms", seen.text("#tiles figure:nth-child(1) .age"))

    seen.until(fresh)
    seen.until(lambda: "OLD" in seen.text("#tiles figure:nth-child(2) .age"))
    wide = "return document.querySelector('#tiles .live').naturalWidth"
    seen.until(lambda: seen.browser.execute_script(wide) == 424)
    seen.until(lambda: not seen.at("#tiles figure:nth-child(1) .wanted").get_property("hidden"))
    assert seen.at("#tiles figure:nth-child(2) .wanted").get_property("hidden")  # this camera has no card
    seen.browser.execute_script(
        "const mix = document.getElementById('mix'); mix.value = 40; mix.dispatchEvent(new Event('input'))"
    )
    assert seen.at("#tiles .wanted").value_of_css_property("opacity") == "0.4"


@in_a_browser
def test_a_card_says_where_things_lie_in_the_readers_language_and_its_picture_appears_when_it_is_made(page):
    cockpit = MemoryCockpit()
    seen = started(page(cockpit), cockpit)
    lines = lambda: [item.text for item in seen.browser.find_elements("css selector", "#layout li")]  # noqa: E731
    assert seen.seen("#blind") and not seen.seen("#layout")
    picture, cockpit.card = cockpit.card, lambda camera: None
    cockpit.now["trial"]["card"]["seed"] += 1
    card = "#tiles figure:nth-child(1) .wanted"
    seen.until(lambda: seen.at(card).get_property("hidden"))
    cockpit.now["layout"] = LAYOUT
    seen.until(lambda: lines()[1:] == SAID["en"])
    cockpit.card = picture
    cockpit.now["layout"] = LAYOUT | {"pictures": ["front"]}
    seen.until(lambda: not seen.at(card).get_property("hidden"))
    seen.press("l")
    seen.until(lambda: lines()[1:] == SAID["zh"])


@in_a_browser
def test_control_is_asked_for_and_handed_over_between_two_viewers(page):
    cockpit = MemoryCockpit()
    seen = started(page(cockpit), cockpit)
    seen.press("Ann", "#who")
    seen.click("#ask")
    seen.until(lambda: seen.text("#in-control") == "You are in control")
    seen.browser.switch_to.new_window("tab")
    seen.browser.get(seen.server.url)
    try:
        seen.until(lambda: seen.text("#in-control") == "Ann is in control")
        seen.press("g")
        seen.until(lambda: "Ann is in control; ask for it" in seen.text("#said"))
        seen.browser.execute_script("document.getElementById('who').value = 'Bob'")
        seen.press("t")
        seen.until(lambda: "asked" in seen.text("#said"))
        seen.browser.switch_to.window(seen.first)
        seen.until(lambda: seen.text("#ask") == "Bob asks for control: give it")
        seen.click("#ask")
        seen.until(lambda: seen.text("#in-control") == "Bob is in control")
    finally:
        for other in set(seen.browser.window_handles) - {seen.first}:
            seen.browser.switch_to.window(other)
            seen.browser.close()
        seen.browser.switch_to.window(seen.first)
    assert cockpit.given == []


@in_a_browser
def test_a_console_with_a_token_asks_for_it_and_keeps_it_where_no_script_reads_it(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit, token=TOKEN)
    seen.until(lambda: seen.seen("#login"))
    seen.press("a guess\ue007", "#token")
    seen.until(lambda: seen.text("#login-said") == "The token is wrong")
    seen.at("#token").clear()
    seen.press(TOKEN + "\ue007", "#token")
    seen.until(lambda: not seen.seen("#login") and seen.text("#name") == "HOLD")
    assert seen.browser.execute_script("return document.cookie") == "" and TOKEN not in seen.browser.current_url
    seen.press("h")
    seen.until(lambda: cockpit.given == [("hold", {}, "operator")])


@in_a_browser
def test_a_read_only_page_has_nothing_to_press(page):
    cockpit = MemoryCockpit()
    seen = page(cockpit, read_only=True)
    seen.until(lambda: seen.seen("#read-only"))
    assert not any(seen.seen(place) for place in ("#hold", "#starting", "[data-order=go]", "#ask", "#swap"))
    seen.press("h")
    seen.press("\ue00c")
    seen.press("l")
    seen.word("保持")
    assert cockpit.given == []


@in_a_browser
@pytest.mark.parametrize("width, height", [(390, 844), (1400, 1000)])
def test_word_and_hold_button_are_in_sight_at_every_width_and_nothing_runs_out_of_it(page, width, height):
    cockpit = MemoryCockpit()
    seen = started(page(cockpit), cockpit)
    seen.browser.set_window_size(width, height)
    try:
        seen.browser.execute_script("document.querySelector('main').scrollTo(0, 99999)")
        inside = "const b = arguments[0].getBoundingClientRect(); return b.top >= 0 && b.left >= 0 && b.right <= innerWidth && b.bottom <= innerHeight"
        seen.until(lambda: all(seen.browser.execute_script(inside, seen.at(place)) for place in ("#name", "#hold")))
        narrow = "const m = document.querySelector('main'); return m.scrollWidth <= m.clientWidth"
        seen.until(lambda: seen.browser.execute_script(narrow))
    finally:
        seen.browser.set_window_size(1400, 1000)


def test_the_texts_are_valid_files_in_utf_8():
    for language in LANGUAGES:
        assert json.loads(Path(PAGE / f"strings.{language}.json").read_bytes().decode("utf-8"))
