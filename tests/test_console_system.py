"""An operator in a real browser, in front of the whole simulated robot: a blind session from its start to its report.

POLICYTRIM_SCREENSHOTS=<directory> keeps a picture of each stage (the pictures of the console in docs/images were made so).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from console_client import Client, url_in
from stack import ROOT, wait_for
from stack import Operator as RosOperator
from test_system import System

from policytrim_ros.trials.store import history, read, read_sessions

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no chromium and chromedriver: apt-get install both",
    ),
]
SCREENSHOTS = os.environ.get("POLICYTRIM_SCREENSHOTS", "")
WINDOW = "1400,1400" if SCREENSHOTS else "1400,1000"


@pytest.fixture
def system(tmp_path):
    made = System(tmp_path)
    yield made
    made.close()


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={WINDOW}", "--lang=en"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield made
    made.quit()


class Operator:
    """What a person does with the page: reads the large word, presses keys, fills the form."""

    def __init__(self, browser, url: str):
        self.browser = browser
        browser.get(url)
        self.wait(lambda: self.word() != "", 20)
        self.at("who").send_keys("Li", Keys.TAB)

    def at(self, name: str):
        return self.browser.find_element(By.ID, name)

    def word(self) -> str:
        return self.at("name").text

    def text(self, name: str) -> str:
        return self.at(name).text

    def press(self, key: str) -> None:
        self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def order(self, name: str) -> None:
        button = self.browser.find_element(By.CSS_SELECTOR, f"[data-order='{name}']")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def fill(self, name: str, value) -> None:
        self.browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self.at(name),
            value,
        )

    def wait(self, condition, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{self.word()}: {self.text('reason')} / {self.text('said')}"
            time.sleep(0.05)

    def until(self, word: str, timeout_s: float = 90) -> None:
        self.wait(lambda: self.word() == word, timeout_s)

    def picture(self, name: str) -> None:
        if SCREENSHOTS:
            self.browser.save_screenshot(str(Path(SCREENSHOTS) / f"console_{name}.png"))

    def lay_over(self, percent: int) -> None:
        """The wanted scene over the cameras' pictures, for a picture of it."""
        if SCREENSHOTS:
            self.wait(lambda: self.browser.find_elements(By.CSS_SELECTOR, "#tiles img.wanted:not([hidden])"), 180)
            self.fill("mix", percent)

    def start(self, arms, scenes: int) -> None:
        self.show("starting")
        rows = self.browser.find_elements(By.CSS_SELECTOR, "#arms > *")
        for row, (name, checkpoint) in zip(rows, arms):
            fields = row.find_elements(By.TAG_NAME, "input")
            fields[0].clear()
            fields[0].send_keys(name)
            fields[1].send_keys(checkpoint)
        self.fill("start-scenes", scenes)
        self.order("start")

    def show(self, name: str) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.at(name))


def test_an_operator_carries_a_blind_session_out_in_a_browser_from_its_start_to_its_report(system, browser, tmp_path):
    up = system.up("up", "console:=true", "console_port:=0", "mode:=async", "record:=true", f"out:={tmp_path}/trials")
    log = tmp_path / "up.log"
    wait_for(lambda: "\nrunning;" in log.read_text() or up.poll() is not None, "running", 180)
    assert up.poll() is None, log.read_text()
    operator = Operator(browser, re.search(r"console: (http://\S+)", log.read_text())[1])
    operator.wait(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#tiles img, #tiles canvas")) >= 2, 20)
    operator.start([("base", "models/piper-pi0-tiny"), ("trim", "models/tape-box-pi0-trimmed")], scenes=1)

    operator.until("READY")
    names = browser.find_element(By.TAG_NAME, "main").text
    assert "piper-pi0-tiny" not in names and "tape-box-pi0-trimmed" not in names, "the blind page names an arm"
    operator.lay_over(60)
    operator.show("card")
    operator.picture("ready")
    if SCREENSHOTS:
        operator.press("l")
        operator.picture("chinese")
        operator.press("l")
    operator.lay_over(0)
    operator.press("g")
    operator.until("RUNNING")
    operator.picture("running")
    operator.press(Keys.ESCAPE)
    operator.until("LABEL")
    operator.picture("hold")
    operator.press("s")
    operator.until("READY")
    assert [(r.outcome, r.labelled_by) for r in read(tmp_path / "trials")] == [("success", "Li")]

    operator.press("u")  # a second thought about the first trial
    operator.wait(lambda: read(tmp_path / "trials")[0].outcome == "unlabelled", 10)
    operator.until("LABEL")
    operator.press("f")
    operator.wait(lambda: read(tmp_path / "trials")[0].outcome == "failure", 10)
    first = read(tmp_path / "trials")[0]
    assert [h["outcome"] for h in history(tmp_path / "trials", first.id)] == ["success", "unlabelled", "failure"]

    operator.until("READY")
    operator.press("g")
    operator.wait(lambda: len(read(tmp_path / "trials")) == 2, 90)  # the simulator sees the outcome by itself
    (session,) = read_sessions(tmp_path / "trials")
    operator.wait(lambda: operator.text("progress").startswith("2"), 20)
    lock = "//section[@id='sessions']//button[contains(., 'Lock') and not(@disabled)]"
    operator.wait(lambda: browser.find_elements(By.XPATH, lock), 20)
    browser.find_element(By.XPATH, lock).click()
    browser.find_element(By.CSS_SELECTOR, "#ask-lock button[value=yes]").click()
    operator.wait(lambda: read_sessions(tmp_path / "trials")[0]["locked"], 10)
    operator.wait(lambda: "base" in operator.text("comparison"), 20)
    operator.show("budget")
    operator.picture("unblinded")

    browser.get(operator.browser.current_url.rstrip("/") + f"/report/{session['id']}")
    page = browser.find_element(By.TAG_NAME, "body").text
    assert "non-inferiority" in page and "tape-box-pi0-trimmed" in page and "The outcome of trial 1 was changed" in page
    operator.picture("report")
    recordings = sorted(path.name for path in (tmp_path / "trials").rglob("*.mcap*"))
    assert recordings == ["trial-0001.mcap", "trial-0002.mcap"]
    assert "is not whole" not in log.read_text()


def test_a_killed_console_means_hold_and_a_new_one_goes_on_with_the_session(system, tmp_path):
    out = tmp_path / "trials"
    up = system.up("up", "console:=true", "console_port:=0", "mode:=async", f"out:={out}")
    log = tmp_path / "up.log"
    wait_for(lambda: "\nrunning;" in log.read_text() or up.poll() is not None, "running", 180)
    client, operator = Client(url_in(log)), RosOperator(system, beats=())
    try:
        client.order("start", plan={"scenes": 1, "seed": 1000, "timeout_s": 60.0}, attended=False)
        operator.until(lambda: operator.state.startswith("moving: go"), "no motion", 60)
        os.kill(system.pid("policytrim_ros.nodes.console"), signal.SIGKILL)
        operator.until(lambda: operator.state.startswith("holding"), "no hold", 10)
        assert "console" in operator.state
        (session,) = read_sessions(out)
        assert read(out) == [] and session["locked"] is None

        line = ["policytrim_ros.nodes.console", "--ros-args", "-p", f"out:={out}", "-p", "port:=0"]
        with open(tmp_path / "console.log", "w") as again:
            system.processes["console"] = subprocess.Popen(
                [sys.executable, "-u", "-m", *line], cwd=ROOT, env=system.environment, stdout=again, stderr=subprocess.STDOUT
            )
        wait_for(lambda: "console: http" in (tmp_path / "console.log").read_text(), "a new console", 60)
        Client(url_in(tmp_path / "console.log")).order("resume", session=session["id"], attended=False)
        wait_for(lambda: any(row.counts for row in read(out)), "an outcome", 120)
        assert [row.number for row in read(out)] == [1]
    finally:
        operator.close()
