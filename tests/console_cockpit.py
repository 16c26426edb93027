"""A cockpit without a system: sessions, trials and pictures that live in memory, for the tests of the console."""

import copy
import threading
import time

import cv2
import numpy as np

from policytrim_ros.console.cockpit import Refused

CODES = ("K7PM", "Q2RT", "ZW9A", "HB4C", "NXE5", "DY3F")

CANARY = dict(candidate="new", incumbent="old", every=4, trials=3, blocks=2, verdict="unsafe", reason="new was returned")
CANARY |= dict(evidence=dict(worse=1.25, as_good=0.8, needed=20.0))

LAYOUT = {
    "objects": [
        dict(name="mug", pose="mug_left", x_cm=26.7, y_cm=-4.8, turn_deg=4.0),
        dict(name="box", pose="box", x_cm=27.0, y_cm=19.5, turn_deg=0.0),
        dict(name="lamp", pose="lamp", x_cm=40.0, y_cm=1.0, turn_deg=-90.0),
    ],
    "move": dict(name="mug", cm=4.2, turn_deg=141.0, x_cm=23.4, y_cm=-2.2),
    "pictures": [],
}
SAID = {
    "en": [
        "Mug, on its side: 26.7 cm ahead, 4.8 cm to the right; opening 4° to the left, handle down on the left of that",
        "Box: 27 cm ahead, 19.5 cm to the left; turned 0°",
        "lamp: 40 cm ahead, 1 cm to the left; turned 90° to the right",
        "During the trial the mug is moved by 4.2 cm in the direction 141° to the left, to 23.4 cm ahead, 2.2 cm to the right",
    ],
    "zh": [
        "杯子（侧放）：前方 26.7 cm，向右 4.8 cm；杯口方向：向左 4°，杯柄朝下，在其左侧",
        "盒子：前方 27 cm，向左 19.5 cm；转角：0°",
        "lamp：前方 40 cm，向左 1 cm；转角：向右 90°",
        "试验中杯子移动 4.2 cm，方向：向左 141°，移至：前方 23.4 cm，向右 2.2 cm",
    ],
}
"""A layout, and what an operator reads."""


def jpeg(seed: int) -> bytes:
    """A picture of 424 x 240 that compresses like one of a camera."""
    noise = np.random.default_rng(seed).integers(0, 255, (30, 53, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (424, 240), interpolation=cv2.INTER_CUBIC))[1].tobytes()


class MemoryCockpit:
    """`given`: the orders that were carried out, as (name, details, who). `gate`: while clear, `swap` and reports wait, and have
    `entered`. `reported`: the reports that were asked for. `noted`: what the server had kept."""

    def __init__(self, cameras=("front", "wrist")):
        self.given, self.gate, self.entered, self.drawn = [], threading.Event(), threading.Event(), 0
        self.gate.set()
        self.reported, self.noted = [], []
        self.pictures = {name: (jpeg(i), time.time()) for i, name in enumerate(cameras)}
        self._lock = threading.RLock()
        self._plan, self._rows, self._trial_since = {}, [], time.monotonic()
        self.now = {
            "robot": {"state": "holding", "reason": "held by the operator", "simulated": True, "silent": None},
            "session": None,
            "sessions": [],
            "trial": {
                "session": "",
                "phase": "idle",
                "since_s": 0.0,
                "recording": "",
                "card": None,
                "left_s": "?",
                "unlabelled": None,
                "last": None,
                "alarms": [],
                "canary": None,
            },
            "scene": {
                "task": "tape_box",
                "setting": "standard",
                "seed": 1,
                "instruction": "put the tape in the box",
                "phase": "ready",
            },
            "layout": None,
            "disturb": False,
            "policy": policy(),
            "policy_alarm": "",
            "cameras": [{"name": name, "age_ms": 40, "fps": 20.0} for name in cameras],
            "recorder": {"state": "recording", "file": "t.mcap", "messages": 10, "dropped": 0, "free_mb": 1000.0, "reason": ""},
            "trainer": None,
        }

    # ---- what the server asks --------------------------------------------------------------------------------------

    def state(self):
        with self._lock:
            self.now["stamp"] = time.time()
            self.now["trial"]["since_s"] = round(time.monotonic() - self._trial_since, 2)
            return copy.deepcopy(self.now)

    def picture(self, camera):
        return self.pictures.get(camera)

    def card(self, camera):
        self.drawn += 1
        return jpeg(99) if camera == "front" else None

    def report(self, session, html=True):
        self.reported.append((session, html))
        self.entered.set()
        self.gate.wait(20)
        with self._lock:
            if self.now["session"] and self.now["session"]["id"] == session and self.now["session"]["blind"]:
                raise Refused("the session is blind; lock it first")
        return f"<!doctype html><title>{session}</title><h1>Report of {session}</h1>" if html else f"# Report of {session}"

    def note(self, kind, detail):
        self.noted.append((kind, dict(detail)))

    def order(self, name, details, who):
        if name == "swap":
            self.entered.set()
            self.gate.wait(20)
        with self._lock:
            said = getattr(self, f"do_{name}")(**details, who=who)
            self.given.append((name, dict(details), who))
            return said

    # ---- orders ----------------------------------------------------------------------------------------------------

    def do_start(self, plan, attended, who):
        if self.now["session"] and self.now["session"]["running"]:
            raise Refused("a session is running")
        session = f"20261123-2015{len(self.now['sessions']):02d}-ab12"
        names = [arm["name"] for arm in plan["arms"]]
        self._plan, self._rows = plan, []
        planned = plan["scenes"] * len(names) * len(plan["tasks"]) * len(plan["settings"])
        blind = plan.get("blind", True)
        self.now["session"] = dict(id=session, running=True, blind=blind, locked=False, arms=len(names), planned=planned, done=0)
        self.now["session"] |= dict(attended=attended, arm_names=None if blind else names, ended="", comparison=None)
        self.now["sessions"].insert(
            0, dict(id=session, began=time.time(), locked=False, blind=blind, trials=0, tasks=plan["tasks"])
        )
        self.now["policy"] = {"hidden": True} if blind else policy()
        self._next(1)
        return f"session {session} has begun"

    def _next(self, number):
        session = self.now["session"]
        if number > session["planned"]:
            session.update(running=False, ended="complete")
            return self._phase("complete")
        card = dict(number=number, code=CODES[number % len(CODES)], task=self._plan["tasks"][0], setting="standard")
        card |= dict(seed=self._plan["seed"] + number, timeout_s=self._plan.get("timeout_s", 60.0), disturb_s=2.0)
        self.now["trial"]["card"] = card
        return self._phase("ready")

    def _phase(self, name):
        self.now["trial"]["phase"], self._trial_since = name, time.monotonic()
        self.now["robot"].update(state="moving" if name == "running" else "holding", reason="")

    def do_go(self, who):
        if self.now["trial"]["phase"] != "ready" or self.now["trial"]["unlabelled"] is not None:
            raise Refused("go is given when a trial is ready")
        self._phase("running")
        return "go"

    def do_label(self, outcome, reason, who):
        trial = self.now["trial"]
        if trial["unlabelled"] is None and trial["phase"] not in ("running", "labelling"):
            raise Refused("no trial is running")
        if trial["unlabelled"] is not None:
            trial["last"].update(outcome=outcome, reason=reason)
            trial["unlabelled"] = None
            return "labelled"
        card = trial["card"]
        trial["last"] = dict(number=card["number"], code=card["code"], outcome=outcome, reason=reason, seconds=3.2)
        self.now["session"]["done"] += 1
        self.now["sessions"][0]["trials"] += 1
        self._next(card["number"] + 1)
        return f"trial {card['number']}: {outcome}"

    def do_undo(self, who):
        trial = self.now["trial"]
        trial["unlabelled"], trial["last"]["outcome"] = trial["last"]["number"], "unlabelled"
        return "taken back"

    def do_hold(self, who):
        self._phase("labelling" if self.now["trial"]["phase"] == "running" else self.now["trial"]["phase"])
        self.now["robot"].update(state="holding", reason=f"held by {who}")
        return "held"

    def do_pause(self, who):
        self.now["session"]["running"] = False
        return "paused"

    def _unblind(self, session):
        for one in self.now["sessions"]:
            if one["id"] == session:
                one["locked"], one["blind"] = True, False
        current = self.now["session"]
        if current and current["id"] == session:
            names = [arm["name"] for arm in self._plan["arms"]]
            rows = [
                dict(
                    task="tape_box",
                    setting="standard",
                    arm=arm,
                    n=20,
                    successes=14 + i,
                    low=0.48,
                    high=0.86,
                    seconds=14.6 - 7 * i,
                )
                for i, arm in enumerate(names)
            ]
            current.update(locked=True, blind=False, running=False, arm_names=names, comparison=rows)
            self.now["policy"] = policy()

    def do_resume(self, session, attended, who):
        return "resumed"

    def do_confirm(self, who):
        return "confirmed"

    def do_swap(self, checkpoint, who):
        return f"{checkpoint} speaks"

    def do_roll_back(self, who):
        return "rolled back"

    def do_clear_fault(self, who):
        self.now["robot"].update(state="holding", reason="")
        return "cleared"

    def do_home(self, who):
        return "home"

    def do_lock(self, session, reason, who):
        self._unblind(session)
        return f"session {session} is locked"


def policy():
    return (
        dict(generation=3, checkpoint="models/trimmed", horizon=10, horizon_now=8, cuts=1, tail_rad=0.021, slack_ms=212.0)
        | dict(
            latency_ms_p50=88.0, latency_ms_p99=131.0, mode="async", calls=120, probation=4, earlier="models/baseline", loading=""
        )
        | dict(news="", complaint="", running=False, hidden=False)
    )
