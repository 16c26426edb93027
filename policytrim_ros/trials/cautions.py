"""What a reader of a session's claims must know before believing them."""

from __future__ import annotations

from collections import Counter
from typing import Sequence

from policytrim_ros.trials.evidence import Evidence, needed_for_success
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.store import COUNTED


def cautions(spec: Session, rows, sessions, kind, relabelled, strangers, data) -> list[str]:
    """Sentences, each about something that weakens the claims or limits what they mean."""
    compared = [one for of_cell in data.values() for one in of_cell]
    found = [
        *_of_the_plan(spec, compared),
        *_of_the_session(spec, rows, sessions, kind, compared),
        *_of_the_arms(spec, rows, strangers),
        *_not_counted(spec, rows),
    ]
    if relabelled:
        found.append(f"The outcome of {_trials(relabelled)} was changed after it was first given; the record has every label.")
    return found


def _of_the_plan(spec: Session, compared: Sequence[Evidence]) -> list[str]:
    if spec.canary:
        return [
            "Wilson intervals do not cover a session that ends by its results; the canary's verdict does, but not a return for safety."
        ]
    if not compared:
        return ["There is one arm only: nothing is compared."]
    found = []
    wanted = max(one.n + needed_for_success(one) for one in compared)
    if spec.stop == "fixed" and wanted > spec.scenes:
        found.append(
            f"{spec.scenes} scenes a cell are few for a margin of {100 * spec.margin:g} points: about {wanted} would be wanted "
            "to show it in "
            "each cell. (75 against 70 % in 20 trials an arm is a difference of -22 to +31 points.)"
        )
    if len(compared) > 1:
        found.append(
            f"{len(compared)} comparisons are tested, each with alpha {spec.alpha:g} and without correction: one of them may "
            "well be wrong."
            if spec.stop == "sequential"
            else f"{len(compared)} comparisons are made in single cells: claims are corrected after Holm, the intervals shown are not."
        )
    if spec.stop == "sequential":
        found.append("Wilson and bootstrap intervals do not cover a session that stops by its results; the verdicts do.")
    return found


def _of_the_session(spec: Session, rows, sessions, kind, compared: Sequence[Evidence]) -> list[str]:
    found = []
    if not spec.blind:
        found.append("The session was not blind: whoever laid scenes and named outcomes could know the arm.")
    if kind is None:
        found.append("The session does not say whether its trials were real or simulated.")
    if open_ := [session["id"] for session in sessions if session["locked"] is None]:
        found.append(f"Session {', '.join(open_)} is not locked: trials and outcomes may still change.")
    found += _of_the_provenance(sessions)
    short = [one for one in compared if one.n < spec.scenes]
    if short and spec.stop == "fixed":
        found.append(
            f"Stopped early: {short[0].name} has {short[0].n} of {spec.scenes} planned {short[0].unit}. Looking early and "
            "stopping is not covered by "
            "these intervals; they hold only if the end had nothing to do with the outcomes."
        )
    for one in compared:
        left = sum(map(len, one.groups)) - 2 * len(one.pairs)
        if one.paired and left:
            found.append(f"{one.name}: {left} trials met a scene that the other arm has no outcome for; they are in no pair.")
        if not one.paired and one.n:
            found.append(f"{one.name}: {one.first} and {one.second} did not meet the same scenes; they are compared unpaired.")
    return found


def _of_the_provenance(sessions) -> list[str]:
    """What is not known of how a session was carried out, and what changed in its course."""
    found = []
    for session in sessions:
        if missing := session["provenance"].get("missing"):
            found.append(f"It is not known with what session {session['id']} was carried out: {', '.join(missing)}.")
        for event in session.get("events", []):
            if event["kind"] == "resumed" and (changed := event["detail"].get("changed")):
                told = ", ".join(f"{path} ({_short(before)} -> {_short(now)})" for path, (before, now) in list(changed.items())[:8])
                more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
                found.append(f"Session {session['id']} was resumed with something changed: {told}{more}. Its trials are not all alike.")
    return found


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _of_the_arms(spec: Session, rows, strangers) -> list[str]:
    found = [f"Trials of {', '.join(strangers)} are left out: the plan does not know such an arm."] if strangers else []
    uses: dict[str, list] = {}
    for row in rows:
        arm = next((arm for arm in spec.arms if arm.label == row.label), None)
        if arm is not None and row.counts:
            uses.setdefault(f"{row.label} ({row.task})" if arm.checkpoints else row.label, []).append(row)
    for label, trials in uses.items():
        for what, values in (
            ("weights", {row.weights_sha256[:12] for row in trials}),
            ("execution horizons", {str(row.horizon) for row in trials}),
            ("modes of execution", {row.mode for row in trials}),
        ):
            if len(values) > 1:
                found.append(f"Different {what} under the name {label}: {', '.join(sorted(values))}. It was not one policy.")
    same: dict[tuple, dict[str, str]] = {}
    for name, trials in uses.items():
        if (last := trials[-1]).weights_sha256:  # by arm: one may use the same policy for several tasks
            same.setdefault((last.weights_sha256, last.horizon, last.mode), {}).setdefault(last.label, name)
    found += [
        f"{' and '.join(names.values())} are the same policy: equal weights, h and mode."
        for names in same.values()
        if len(names) > 1
    ]
    return found


def _not_counted(spec: Session, rows) -> list[str]:
    """Aborted and invalid trials, arm by arm: where they differ, what is left is no longer a fair sample."""
    words = []
    for arm in spec.arms:
        of_arm = [row for row in rows if row.label == arm.label]
        if left := Counter(row.outcome for row in of_arm if row.outcome not in COUNTED):
            kinds = ", ".join(f"{count} {outcome}" for outcome, count in sorted(left.items()))
            words.append(f"{arm.label} {kinds} of {len(of_arm)} ({100 * left.total() / len(of_arm):.0f} %)")
    if not words:
        return []
    return [f"Trials that do not count: {'; '.join(words)}. If they have to do with the arm, the comparison flatters it."]


def _trials(numbers: Sequence[int]) -> str:
    return f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, sorted(numbers)))}"
