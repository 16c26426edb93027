"""A session of trials from a browser, as an operator would carry it out in simulation.

    python -m benchmarks.console_session config/trials_three_tasks.yaml --out runs/trials/three

Starts the whole simulated robot with its console, fills the form of the page with the plan, presses `g` whenever a trial is ready
until the simulator has judged the last one (and clears a fault, of which it tells), locks the session on the page and writes its report and its rows (JSON) to --to. With
--resume the newest session of --out goes on. Needs chromium and chromedriver (`scripts/bootstrap --tests`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from tqdm import tqdm

from benchmarks.control_loop import running_system
from policytrim_ros.core.replanning import MODES
from policytrim_ros.trials import report
from policytrim_ros.trials.export import export
from policytrim_ros.trials.session import Session, read_session
from policytrim_ros.trials.store import read, read_sessions

NUMBERS = {"scenes": 1, "seed": 1, "margin": 100, "alpha": 100, "block": 1, "canary": 1, "disturb_s": 1, "timeout_s": 1}
"""Fields of the form and in what part of one they count."""


def address(said: list[str]) -> str:
    """Of the page, in what the system printed."""
    return next(found[1] for line in said if (found := re.search(r"console: (http://\S+)", line)))


def opened(url: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000", "--lang=en"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    browser.get(url)
    until(lambda: word(browser), 30)
    return browser


def until(condition, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"nothing came of it within {timeout_s:.0f} s")
        time.sleep(0.1)


def word(browser) -> str:
    """The one large word."""
    return browser.find_element(By.ID, "name").text


def fill(browser, plan: Session) -> None:
    """The form of the page, then its button."""
    put = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
    for name, per in NUMBERS.items():
        field = browser.find_element(By.ID, f"start-{name.removesuffix('_s')}")
        browser.execute_script(put, field, f"{getattr(plan, name) * per:g}")
    for fieldset, chosen in (("start-tasks", plan.tasks), ("start-settings", plan.settings)):
        for box in browser.find_elements(By.CSS_SELECTOR, f"#{fieldset} input[type=checkbox]"):
            browser.execute_script("arguments[0].checked = arguments[1]", box, box.get_attribute("value") in chosen)
    browser.execute_script("arguments[0].checked = arguments[1]", browser.find_element(By.ID, "start-blind"), plan.blind)
    for row, arm in zip(browser.find_elements(By.CSS_SELECTOR, "#arms > *"), plan.arms, strict=True):
        whole = arm.checkpoint
        if arm.checkpoints:
            whole = ", ".join(f"{task}={arm.checkpoint_for(task)}" for task in plan.tasks)
        for name, value in (("name", arm.name), ("checkpoint", whole), ("horizon", arm.horizon)):
            browser.execute_script(put, row.find_element(By.CSS_SELECTOR, f"[data-field={name}]"), str(value))
    for name in ("stop", "notes"):
        browser.execute_script(put, browser.find_element(By.ID, f"start-{name}"), getattr(plan, name))
    click(browser, "//button[@data-order='start']")


def click(browser, path: str) -> None:
    until(lambda: browser.find_elements(By.XPATH, path), 30)
    button = browser.find_element(By.XPATH, path)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()


def conduct(browser, out: Path, planned: int) -> None:
    """Says go, whenever it is asked for, until every trial has an outcome that counts."""
    done = 0
    with tqdm(total=planned, unit="trial") as bar:
        while done < planned:
            now = word(browser)
            if now in ("READY", "KEEP CLEAR"):
                browser.find_element(By.TAG_NAME, "body").send_keys("g")
            elif now == "FAULT":
                bar.write(f"fault: {browser.find_element(By.ID, 'reason').text}")
                click(browser, "//button[@data-order='clear_fault' and not(@disabled)]")
            time.sleep(0.2)
            done = sum(row.counts for row in read(out))
            bar.update(done - bar.n)


def lock(browser, out: Path) -> str:
    """Locks the session on the page and returns its name."""
    click(browser, "//section[@id='sessions']//button[contains(., 'Lock') and not(@disabled)]")
    browser.find_element(By.CSS_SELECTOR, "#ask-lock button[value=yes]").click()
    until(lambda: read_sessions(out)[-1]["locked"], 10)
    return read_sessions(out)[-1]["id"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", help="a session file (docs/trials.md)")
    parser.add_argument("--out", type=Path, default=Path("runs/trials/browser"), help="trials and recordings (%(default)s)")
    parser.add_argument("--to", type=Path, help="report and rows (default: --out/report)")
    parser.add_argument("--mode", default="async", choices=MODES, help="when the policies look again (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the newest session of --out")
    args = parser.parse_args()
    plan = read_session(args.plan)
    said, browser = [], None
    line = ("console:=true", "console_port:=0", f"mode:={args.mode}", "record:=true", f"out:={args.out}")
    with running_system(*line, said=said):
        try:
            browser = opened(address(said))
            if args.resume:
                click(browser, "//section[@id='sessions']//button[contains(., 'Resume') and not(@disabled)]")
            else:
                fill(browser, plan)
            conduct(browser, args.out, plan.planned)
            session = lock(browser, args.out)
        finally:
            if browser is not None:
                browser.quit()
    print(report.write(args.out, session, args.to or args.out / "report"))
    print(export(args.out, (args.to or args.out / "report") / "trials.json", session))


if __name__ == "__main__":
    main()
