"""The report of a session: a self-contained HTML page and its Markdown twin, from the trials and the recordings beside them.

    report(out, session)            the page in memory
    write(out, session, directory)  report.html, report.md and the figures that the latter shows
    python -m policytrim_ros.trials.report OUT SESSION DIRECTORY        the same in a process of its own (reporter.py)

A blind session is reported once it is locked, not before: who has seen the comparison can no longer name outcomes blindly.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import yaml

from policytrim_ros.core.config import ConfigError
from policytrim_ros.files import replace_file
from policytrim_ros.trials import paper_table4
from policytrim_ros.trials.canary import Canary
from policytrim_ros.trials.claims import Claims, claims
from policytrim_ros.trials.clips import ClipError, clip
from policytrim_ros.trials.combination import kept
from policytrim_ros.trials.evidence import ClaimsError
from policytrim_ros.trials.figures import interval_figure, time_figure
from policytrim_ros.trials.page import SYMBOLS, Block, Claimed, Clip, Code, Grid, Listing, Page, Strip, Text
from policytrim_ros.trials.repetition import PLAN, commands
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.statements import CONTRADICTED, NOT_SUPPORTED, SUCCESS, SUPPORTED, Comparison
from policytrim_ros.trials.store import Row, StoreError, history, read, read_sessions
from policytrim_ros.trials.table import is_blind, lines

CLIPS_BYTES = 8_000_000
"""All clips of a page together, as they stand in it (base64)."""


QUANTITY_WORDS = {"seconds": "seconds", "steps": "steps S", "calls": "calls N", "stall_s": "stalled seconds"}


class ReportError(RuntimeError):
    """There is no report; the message says why and what to do."""


@dataclass(frozen=True)
class Report:
    """``html`` needs nothing beside it; ``markdown`` shows ``files`` (bytes by relative path)."""

    html: str
    markdown: str
    files: dict[str, bytes]
    claims: Claims


def report(out, session: str, paper: bool = True) -> Report:
    """The report of ``session`` in directory ``out``; ``paper``: with table 4 of the paper beside it.

    ReportError when there is no such session, when it is blind and not locked, or when its rows cannot be read.
    """
    try:
        rows = read(out, session)
        found = next((found for found in read_sessions(out) if found["id"] == session), None)
        if found is None:
            raise ReportError(f"there is no session '{session}' in {out}")
        if is_blind(found):
            raise ReportError(
                f"session {session} is blind and not locked; lock it first, then nobody can change an outcome for what it shows"
            )
        spec = Session.from_mapping(found["spec"])
        labels = {row.id: history(out, row.id) for row in rows}
        changed = [row for row in rows if len(labels[row.id]) > 1]
        stated = claims(spec, rows, [found], [row.number for row in changed])
    except (StoreError, ConfigError, ClaimsError) as error:
        raise ReportError(f"session {session} in {out} cannot be reported: {error}") from error
    page = Page(f"Trials {session}")
    page.add("What these trials show", *_headline(found, rows, stated))
    page.add("What to know before believing it", *([Listing(stated.warnings)] if stated.warnings else []))
    page.add("With the simulator's help", *_combined(kept(out, session, rows)))
    page.add("Cell by cell", *(_by_cell(stated) if stated.overall else ()))
    page.add("Results", *_results(rows, stated))
    page.add("Beside the paper", *(_paper(stated) if paper else ()))
    try:
        if any(row.counts for row in rows):
            page.add("Success", interval_figure(stated))
            page.add("Time to success", time_figure(rows, spec.cells, stated.arms))
    except ImportError as error:
        raise ReportError(f"the figures need '{error.name}' (extra 'train'): pip install matplotlib") from error
    page.add("Every trial in its order", *_strips(spec, rows))
    page.add("Failures", *_failures(out, rows))
    page.add("Outcomes that were changed", *_changed(changed, labels))
    page.add("Events", *_events(found["events"]))
    page.add("What was planned", *_plan(spec))
    page.add("With what it was carried out", *_provenance(found["provenance"], rows))
    page.add("To repeat it", *_commands(spec, found["provenance"]))
    return Report(page.html, page.markdown, page.files, stated)


def write(out, session: str, directory, paper: bool = True) -> Path:
    """Writes report.html, report.md and figures/ below ``directory``; the path of the page. ReportError when it cannot."""
    made, directory = report(out, session, paper), Path(directory)
    contents = {**made.files, "report.md": made.markdown.encode(), "report.html": made.html.encode()}
    try:
        for path, data in contents.items():
            replace_file(directory / path, data)
    except OSError as error:
        raise ReportError(f"the report could not be written to {directory}: {error.strerror or error}") from error
    return directory / "report.html"


# ---- what it says ----------------------------------------------------------------------------------------------------------


def _headline(found: dict, rows: Sequence[Row], stated: Claims) -> Iterator[Block]:
    where = {True: "in the simulator", False: "on a robot", None: "of unknown origin"}[stated.simulated]
    counted = sum(row.counts for row in rows)
    yield Text(
        f"{len(rows)} trials {where}, {counted} of them count; begun {_time(found['began'])}, "
        + (f"locked {_time(found['locked'])}{_because(found['lock_reason'])}." if found["locked"] else "not locked.")
    )
    if len(stated.arms) == 1:
        yield Text(f"There is one arm, {stated.arms[0]}: nothing is compared.")
        return
    if stated.canary:
        yield from _canary(stated.canary, stated)
        return
    for comparison in stated.overall or stated.comparisons:
        yield from _claimed(comparison)
    yield Text(
        f"Two claims, judged apart: that success is lower by less than {100 * stated.margin:g} points, the margin that was "
        "written down before "
        "the first trial, and that less time is needed where both succeed. Each may be wrong with probability "
        f"{100 * stated.alpha:g} %. "
        + (
            "The session was to end when its test had decided; the verdicts hold although it was read after every pair."
            if stated.stop == "sequential"
            else "The number of trials was fixed before; looking early and stopping would not be covered."
        )
    )


def _canary(canary: Canary, stated: Claims) -> Iterator[Block]:
    verdict = CONTRADICTED if canary.returned else SUPPORTED if canary.over else NOT_SUPPORTED
    yield Claimed(verdict, f"canary, {canary.verdict}:", canary.sentence)
    yield Text(
        f"One trial in {canary.every} was the candidate's, at a place drawn by chance. That it succeeds less often by more than "
        f"{100 * stated.margin:g} points, or that it does not, is each said wrongly with probability {100 * stated.alpha:g} % at most, although "
        "the test was read after every block. One trial in which the arm was held for something that a policy can cause returns it, too: "
        "that is a rule, not a test."
    )


def _claimed(comparison: Comparison) -> Iterator[Claimed]:
    for claim in (comparison.success, comparison.time):
        yield Claimed(claim.verdict, f"{claim.kind}, {comparison.name}:", claim.sentence)


def _by_cell(stated: Claims) -> Iterator[Claimed]:
    for cell in stated.cells:
        for comparison in cell.comparisons:
            yield from _claimed(comparison)


def _combined(found: dict | None) -> Iterator[Block]:
    if found:
        for one in found["cells"]:
            yield Claimed(one["verdict"], f"{SUCCESS}, {one['name']}:", one["sentence"])
        yield Text(
            f"By prediction-powered inference from the simulated sessions {', '.join(found['simulated_sessions'])}. These are the "
            "claims of the robot's trials with less noise, beside those above and not further ones: believe the one that was decided on before."
        )


def _results(rows: Sequence[Row], stated: Claims) -> Iterator[Block]:
    if not rows:
        yield Text("No trial has been finished.")
        return
    header, *body = lines(list(rows))
    yield Grid(header, body)
    yield Text(
        "Intervals are 95 %: Wilson for rates; bootstrap or t, the wider, for means. Seconds (from go to the "
        "outcome), steps and calls are means over the successes, stalls over all that count. Calls, steps, seconds and stalls are "
        "four things: fewer calls are no shorter task."
    )
    cells = [
        (
            c.name,
            f"{c.first} → {c.second}",
            QUANTITY_WORDS[change.quantity],
            str(change.difference.n),
            f"{change.before:.1f}",
            f"{change.after:.1f}",
        )
        + (change.difference.words, "-" if change.ratio is None else "{:.2f} x [{:.2f}, {:.2f}]".format(*change.ratio))
        for c in stated.comparisons
        for change in c.changes
    ]
    if cells:
        yield Grid(
            ("cell", "arms", "quantity", "scenes", "before", "after", f"difference [{stated.percent}]", "before / after"), cells
        )
        yield Text("Over the scenes in which both arms succeeded (where they are not paired: over all successes of each).")


def _paper(stated: Claims) -> Iterator[Block]:
    body = []
    for cell in stated.cells:
        key = (cell.task, cell.setting)
        if key not in paper_table4.SUCCESS_PERCENT:
            continue
        theirs = paper_table4.SECONDS.get(key)
        for rate, comparison in zip(cell.rates[1:], cell.comparisons):
            seconds = next((change for change in comparison.changes if change.quantity == "seconds"), None)
            body.append(
                (
                    cell.name,
                    "{} → {}".format(*paper_table4.SUCCESS_PERCENT[key]),
                    f"{cell.rates[0].words} → {rate.words}",
                    f"{_from_to(*theirs)}" if theirs else "-",
                    _from_to(seconds.before, seconds.after) if seconds else "-",
                    f"{comparison.first} → {comparison.second}",
                )
            )
    if body:
        yield Grid(("cell", "paper: success, %", "ours: success", "paper: seconds", "ours: seconds", "our arms"), body)
        ours = {True: "Ours are simulated.", False: "Ours are real trials.", None: "Where ours were tried is not known."}[
            stated.simulated
        ]
        yield Text(
            f"Theirs: {paper_table4.SOURCE}; {paper_table4.TRIALS}. {ours} Other policies, scenes and robots: the columns stand "
            "beside "
            "each other and are not compared. Our seconds are means over the scenes in which both arms succeeded."
        )


def _from_to(before: float, after: float) -> str:
    return f"{before:.1f} → {after:.1f}" + (f" ({before / after:.2f} x)" if after > 0 else "")


# ---- trials ------------------------------------------------------------------------------------------------------------------


def _strips(spec: Session, rows: Sequence[Row]) -> Iterator[Block]:
    if not rows:
        return
    yield Text(
        "In the order in which they were tried: " + ", ".join(f"{symbol} {name}" for name, symbol in SYMBOLS.items()) + "."
    )
    names = list(dict.fromkeys([*(arm.label for arm in spec.arms), *(row.label for row in rows)]))
    for task, setting in dict.fromkeys([*spec.cells, *((row.task, row.setting) for row in rows)]):
        for label in names:
            if marks := [
                (row.outcome, _words(row)) for row in rows if (row.task, row.setting, row.label) == (task, setting, label)
            ]:
                yield Strip(f"{task} {setting}, {label}", marks)


def _words(row: Row) -> str:
    why = "" if row.outcome == "success" or not row.reason else f" ({row.reason})"
    return (
        f"trial {row.number}, {row.label}, seed {row.seed}: {row.outcome}{why}, {row.seconds:.1f} s, S={row.steps}, N={row.calls}"
    )


def _failures(out, rows: Sequence[Row]) -> Iterator[Block]:
    failed = [row for row in rows if row.outcome == "failure"]
    if not failed:
        return
    yield Text("Each failure with the last seconds of what the cameras saw, where it was recorded.")
    left, missing = CLIPS_BYTES, []
    for row in failed:
        try:
            moving = _clip(out, row, left)
            left -= 4 * len(moving) // 3
            yield Clip(f"trial-{row.id}", moving, _words(row))
        except ClipError as error:
            missing.append(f"{_words(row)}. No clip: {error}.")
    if missing:
        yield Listing(missing)


def _clip(out, row: Row, left: int) -> bytes:
    if not row.recording:
        raise ClipError("it was not recorded")
    root = Path(out).resolve()
    path = (root / f"{row.recording}.mcap").resolve()
    if not path.is_relative_to(root):
        raise ClipError("the name of its recording leads out of the directory of trials")
    if left < CLIPS_BYTES // 1000:
        raise ClipError(f"the clips of this page have reached {CLIPS_BYTES / 1e6:g} MB; it is in {row.recording}.mcap")
    moving = clip(path, row.ended)
    if 4 * len(moving) // 3 > left:
        raise ClipError(f"the clips of this page have reached {CLIPS_BYTES / 1e6:g} MB; it is in {row.recording}.mcap")
    return moving


def _changed(changed: Sequence[Row], labels: dict[int, list[dict]]) -> Iterator[Block]:
    if changed:
        yield Text("An outcome that is taken back or changed stays in the record; the last one counts.")
        body = [
            (str(row.number), label["outcome"], label["reason"] or "-", label["labelled_by"] or "-", _time(label["at"]))
            for row in changed
            for label in labels[row.id]
        ]
        yield Grid(("trial", "outcome", "reason", "by", "at"), body)


def _events(events: Sequence[dict]) -> Iterator[Block]:
    if events:
        told = [(_time(e["at"]), e["kind"], ", ".join(f"{k}: {v}" for k, v in e["detail"].items()) or "-") for e in events]
        yield Grid(("at", "event", "detail"), told)


# ---- how it was made ---------------------------------------------------------------------------------------------------------


def _plan(spec: Session) -> Iterator[Block]:
    rule = (
        f"A cell ends when its paired test has decided (betting, alpha {spec.alpha:g}, margin {100 * spec.margin:g} points), at "
        f"most after {spec.scenes} scenes."
        if spec.stop == "sequential"
        else f"Every arm meets {spec.scenes} scenes in each cell; nothing ends earlier."
    )
    if spec.canary:
        rule = (
            f"Each scene is met once, one in {spec.canary} by the candidate, until it is shown to be worse or as good (betting, alpha "
            f"{spec.alpha:g}, margin {100 * spec.margin:g} points) or is taken back, at most {spec.scenes} scenes in each cell."
        )
        yield Text(f"{rule} The candidate's places are drawn from seed {spec.seed}; the operator was not blind to the arm.")
        yield Code(_yaml(spec))
        return
    order = f"shuffled in blocks of {spec.block} scenes" if spec.block else "not shuffled"
    yield Text(
        f"{rule} The order is {order} from seed {spec.seed}; the operator was {'blind' if spec.blind else 'not blind'} to the "
        "arm."
    )
    yield Code(_yaml(spec))


def _yaml(spec: Session) -> str:
    return yaml.safe_dump(spec.as_dict(), sort_keys=False, allow_unicode=True, width=100)


def _provenance(provenance: dict, rows: Sequence[Row]) -> Iterator[Block]:
    facts = [pair for pair in flat(provenance) if not pair[0].startswith("parameters.")]
    for label in dict.fromkeys(row.label for row in rows):
        weights = {row.weights_sha256 or "not known" for row in rows if row.label == label}
        facts.append((f"weights that ran as {label} (SHA-256)", ", ".join(sorted(weights))))
    if facts:
        yield Grid(("what", "value"), facts)
    if parameters := flat(provenance.get("parameters", {})):
        yield Grid(("parameter", "value"), parameters, folded=f"All {len(parameters)} parameters of the nodes")


def flat(value, path: str = "") -> list[tuple[str, str]]:
    """Nested dictionaries as (dotted path, text)."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, "-" if value in ("", None) else str(value))]


def _commands(spec: Session, provenance: dict) -> Iterator[Block]:
    yield Text(f"Save the plan above as {PLAN}; its seed gives the same scenes, and the same order unless it is blind: then that is drawn anew.")
    yield Code("\n".join(commands(spec, provenance)))


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _because(reason) -> str:
    return f" ({reason})" if reason else ""


def main(arguments) -> int:
    try:
        write(*arguments)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
