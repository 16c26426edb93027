"""What an operator sees at a glance: the state in one word, why, and which orders make sense now.

Decided here once, so that the page and the terminal say the same. A word has a symbol and a tone; colour is never the only signal.
"""

from __future__ import annotations

from typing import Any, Mapping

from policytrim_ros.core.safety import FAILSAFES

WORDS = {  # name of the word (its text is in page/strings.*.json): symbol, tone
    "fault": ("✖", "danger"),
    "silent": ("✖", "danger"),
    "unconfigured": ("○", "attention"),
    "unknown": ("?", "attention"),
    "disturb": ("⇄", "attention"),
    "label": ("?", "attention"),
    "running": ("▶", "go"),
    "ending": ("…", "calm"),
    "homing": ("⌂", "attention"),
    "lay": ("▤", "attention"),
    "preparing": ("…", "calm"),
    "ready": ("●", "ready"),
    "complete": ("✔", "calm"),
    "done": ("✔", "calm"),
    "moving": ("▶", "go"),
    "hold": ("■", "calm"),
}


def word(state: Mapping[str, Any]) -> dict[str, str]:
    """{"name", "symbol", "tone", "reason", "failsafe"} of a state; the worst thing that is true wins. ``failsafe``: the row of the
    failsafe table that the reason names, '' for none; what an operator does about it is left out of the reason: page/strings.*.json says
    that in the operator's language."""
    name, reason = _name_and_reason(state)
    symbol, tone = WORDS[name]
    row = next((row for row in FAILSAFES.values() if reason.startswith(row.name)), None)
    if row:
        reason = reason.removesuffix(f"; {row.advice}")
    return {"name": name, "symbol": symbol, "tone": tone, "reason": reason, "failsafe": row.name.replace(" ", "_") if row else ""}


def _name_and_reason(state: Mapping[str, Any]) -> tuple[str, str]:
    robot, trial, scene = (state.get(key) or {} for key in ("robot", "trial", "scene"))
    arm, reason, phase = robot.get("state", "unknown"), robot.get("reason") or "", trial.get("phase", "idle")
    if arm == "fault":
        return "fault", reason
    if robot.get("silent"):
        return "silent", str(robot["silent"])
    if phase == "homing" and trial.get("unlabelled") is None:
        return "homing", ""
    if arm not in ("holding", "moving"):
        return ("unconfigured" if arm == "unconfigured" else "unknown"), reason
    if state.get("disturb"):
        return "disturb", ""
    if trial.get("unlabelled") is not None or phase == "labelling":
        return "label", reason if phase == "labelling" else ""
    if phase == "preparing" and _by_hand(scene):
        return "lay", scene.get("instruction") or ""
    if phase == "ending" and arm == "holding":
        return "ending", ""
    if phase in ("running", "preparing", "ready", "complete", "done"):
        ended = (state.get("session") or {}).get("ended") or ""
        return phase, reason if phase == "running" else ended if phase == "complete" else ""
    return ("moving" if arm == "moving" else "hold"), reason


def sensible_orders(state: Mapping[str, Any]) -> list[str]:
    """Orders that fit the state; what the page offers. The cockpit has the last word."""
    robot, trial, scene = (state.get(key) or {} for key in ("robot", "trial", "scene"))
    session, policy = state.get("session") or {}, state.get("policy") or {}
    phase, unlabelled, running = trial.get("phase", "idle"), trial.get("unlabelled") is not None, bool(session.get("running"))
    in_trial = phase in ("running", "labelling")
    fits = {
        "go": phase in ("homing", "ready") and not unlabelled,
        "label": in_trial or unlabelled,
        "undo": bool(trial.get("last")) and not in_trial and phase != "ending" and not unlabelled and not session.get("locked"),
        "confirm": _by_hand(scene),
        "hold": True,
        "pause": running,
        "start": not running,
        "resume": not running,
        "lock": not running,
        "swap": not running,
        "roll_back": bool(policy.get("earlier")),
        "clear_fault": robot.get("state") == "fault",
        "home": not running and robot.get("state") == "holding",
    }
    return [name for name, fit in fits.items() if fit]


def _by_hand(scene: Mapping[str, Any]) -> bool:
    return bool(scene.get("by_hand")) and scene.get("phase") == "laying"
