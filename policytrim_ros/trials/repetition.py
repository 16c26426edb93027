"""The commands that carry a session out again, from its plan (saved as session.yaml) and its provenance: checkout, system, trials, report."""

from __future__ import annotations

import shlex
from contextlib import suppress

from policytrim_ros.trials.session import Session

PLAN = "session.yaml"
ELSEWHERE = "# in another terminal"


def commands(spec: Session, provenance: dict) -> list[str]:
    """A line each. What was typed stands as it was typed, except that the plan is the saved one, whatever file it came from then."""
    typed = _typed(spec, provenance)
    given = dict(word.split(":=", 1) for word in typed if ":=" in word)
    out = given.get("out", "runs")
    return [*_source(provenance), *_trials(typed, given, out), *_afterwards(out)]


def _source(provenance: dict) -> list[str]:
    commit = str(provenance.get("commit") or "unknown")
    if commit == "unknown":
        return ["# the version of the source is not known"]
    changed = "   # and changes to it that were not committed" if commit.endswith("-dirty") else ""
    return [f"git checkout {commit.removesuffix('-dirty')}{changed}"]


def _typed(spec: Session, provenance: dict) -> list[str]:
    """The words that started the system, or what starts one like it where the provenance does not say."""
    if said := provenance.get("commands"):
        with suppress(ValueError):  # a quotation that is not closed is no command
            return shlex.split(str(said[0]))
    first = spec.arms[0].checkpoint_for(spec.tasks[0])
    checkpoint = [f"checkpoint:={first}"] if first else []
    robot = ["sim:=false", "can_port:=PORT", "cameras:=front=SERIAL,wrist=SERIAL", "console:=true"]
    return [
        "policytrim", "up", *checkpoint, f"task:={spec.tasks[0]}", *(robot if provenance.get("simulated") is False else []),
    ]  # fmt: skip


def _trials(typed: list[str], given: dict[str, str], out: str) -> list[str]:
    if given.get("trials", "0") != "0":
        return [shlex.join(typed)]  # it says itself which trials
    if "plan" in given:
        return [shlex.join(f"plan:={PLAN}" if word.startswith("plan:=") else word for word in typed)]
    if given.get("console", "").lower() == "true":
        port = given.get("console_port", "0")
        url = "" if port == "0" else f" --url http://127.0.0.1:{port}"
        kept = [word for word in typed if word != "console_port:=0"]  # any port that is free: nobody would know which
        return [shlex.join(kept), f"policytrim console{url}   {ELSEWHERE}: type  :start plan=@{PLAN}  and say go for each trial"]
    return [shlex.join(typed), f"policytrim trials run {PLAN} --out {shlex.quote(out)}   {ELSEWHERE}"]


def _afterwards(out: str) -> list[str]:
    return [f"policytrim trials {action} --out {shlex.quote(out)}" for action in ("lock", "report")]
