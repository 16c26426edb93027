"""The report: one page that needs nothing beside it, honest about what is missing, deaf to hostile text."""

import io
import re
import shlex
import threading
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage
from session_samples import TWO, failing, plan, row_of, rows_of, store_session
from std_msgs.msg import String

from policytrim_ros.arguments import from_text, texts
from policytrim_ros.cli import parser_for
from policytrim_ros.console.terminal import parsed
from policytrim_ros.core.statistics import bootstrap_mean, t_mean
from policytrim_ros.graph import LaunchArguments
from policytrim_ros.nodes.recording import McapFile
from policytrim_ros.trials import report as report_module
from policytrim_ros.trials import table
from policytrim_ros.trials.clips import LAST_FRAME_S, ClipError, clip
from policytrim_ros.trials.figures import curve
from policytrim_ros.trials.page import SYMBOLS, Code, Grid, Page, Strip, Text, clean
from policytrim_ros.trials.report import ReportError, report, write
from policytrim_ros.trials.repetition import commands
from policytrim_ros.trials.session import Session, schedule
from policytrim_ros.trials.store import Store
from policytrim_ros.trials.table import show

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=http://evil/x.png onerror=x> | [a](http://evil) `$\\frac{`\x00\x1b[31m\u202e\n# no"
)
ALONE = {"meta", "img", "br", "link", "input", "hr", "rect", "path", "use", "line"}


class Read(HTMLParser):
    """Tags, attributes and text of a page; an unclosed tag is an error."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.words, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in ALONE:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        if tag not in ALONE:
            assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
            self._open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def alone(html) -> Read:
    """The page, read; it must not refer to anything outside itself, nor run anything."""
    page = Read(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("#", "data:image/")), (tag, name, value)
    assert not re.search(r"url\((?!['\"]?#)|@import", html)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return page


def jpeg(colour) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "JPEG")
    return file.getvalue()


def record(path, seconds=3.0, cameras=("front", "wrist"), begin_s=1000.0):
    """A recording as the recorder writes it: images at 10 Hz, red and at last blue, beside other messages."""
    file = McapFile(path)
    for i in range(int(seconds * 10)):
        stamp = int((begin_s + i / 10) * 1e9)
        file.write("/controller/state", String, serialize_message(String(data="moving: go")), stamp)
        for camera in cameras:
            image = CompressedImage(format="jpeg", data=jpeg((0, i % 100, 200) if i >= seconds * 10 - 5 else (200, i % 100, 0)))
            file.write(f"/{camera}/color/image_raw/compressed", CompressedImage, serialize_message(image), stamp)
    file.close()
    return path


def reported(out, spec, rows, **options):
    store_session(out, spec, rows, **options)
    return report(out, "s1")


# ---- the whole page ----------------------------------------------------------------------------------------------------------


def test_two_tasks_in_two_settings_with_clips_are_one_page_that_needs_nothing_beside_it(tmp_path):
    spec = plan(tasks=["tape_box", "flip_mug"], settings=["standard", "dynamic"])
    rows = rows_of(spec, failing(3))
    rows = [replace(r, recording=f"s1/trial-{r.number:04d}", ended=1002.9) if r.outcome == "failure" else r for r in rows]
    failed = [row for row in rows if row.recording]
    for row in failed[:3]:
        record(tmp_path / f"{row.recording}.mcap")
    made = reported(tmp_path, spec, rows)
    page = alone(made.html)
    assert page.tags.count("svg") == 2 and page.tags.count("img") == 3
    assert "No clip: the recording is missing" in page.text
    headings = re.findall(r"<h2>(.*?)</h2>", made.html)
    assert headings == [
        "What these trials show",
        "What to know before believing it",
        "Cell by cell",
        "Results",
        "Beside the paper",
        "Success",
        "Time to success",
        "Every trial in its order",
        "Failures",
        "What was planned",
        "With what it was carried out",
        "To repeat it",
    ]
    assert page.text.index("non-inferiority of success, all cells") < page.text.index("superiority of time, all cells")
    assert page.text.count("✗") >= 4 and "Content-Security-Policy" in made.html
    assert re.findall(r"^## (.*)$", made.markdown, re.M) == headings
    assert len(made.html) < 2_000_000


def test_what_is_written_is_the_page_its_twin_and_every_file_that_the_twin_shows(tmp_path):
    spec = plan(scenes=5)
    rows = rows_of(spec, failing(1), recording="s1/a", ended=1002.9)
    record(tmp_path / "s1" / "a.mcap")
    store_session(tmp_path, spec, rows)
    page = write(tmp_path, "s1", tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    alone(page.read_text(encoding="utf-8"))
    shown = re.findall(r"\]\((figures/[^)]+)\)", (tmp_path / "report" / "report.md").read_text(encoding="utf-8"))
    assert len(shown) == 3 and all((tmp_path / "report" / name).stat().st_size > 300 for name in shown)
    for svg in (tmp_path / "report" / "figures").glob("*.svg"):
        text = svg.read_text(encoding="utf-8")
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "currentColor" not in text
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="could not be written"):
        write(tmp_path, "s1", tmp_path / "file" / "there")


def test_hostile_names_and_reasons_are_text_and_nothing_else(tmp_path):
    named = "".join(letter for letter in HOSTILE if letter.isprintable())[:100]  # the others are refused in a plan (test_sessions.py)
    spec = plan(arms=[{"name": named, "checkpoint": named}, TWO[1]], notes=named, scenes=4)
    rows = rows_of(
        spec, failing(1, 2), reason=HOSTILE, checkpoint=HOSTILE, mode=HOSTILE, weights_sha256=HOSTILE, labelled_by=HOSTILE
    )
    stored = store_session(tmp_path, spec, rows, lock=False, provenance={HOSTILE: {HOSTILE: HOSTILE}, "simulated": False})
    store = Store(tmp_path)
    store.label(stored[0].id, "failure", HOSTILE, HOSTILE)
    store.note("s1", HOSTILE, **{HOSTILE: HOSTILE})
    store.lock("s1", HOSTILE)
    store.close()
    made = report(tmp_path, "s1")
    page = alone(made.html)
    assert set(page.tags) <= {
        *("html head meta title style body h1 h2 section p strong span ul li div table thead tbody tr th td").split(),
        *("details summary pre figure figcaption svg g path defs clippath rect use text style line").split(),
    }
    assert "<script>alert(1)</script>" in page.text and not re.search("[\x00-\x08\x1b\u202e]", made.html + made.markdown)
    outside = re.sub(r"^    .*$", "", made.markdown, flags=re.M)  # indented lines are code
    assert "<" not in outside and not re.search(r"(?<!\\)\]\((?!figures/)", outside)
    assert not re.search(r"^# no", made.markdown, re.M)
    heads = [line for line in outside.splitlines() if line.startswith("| trial |")]
    rows = [line for line in outside.splitlines() if line.startswith("| 1 |")]
    assert len(rows) == 2 and {len(re.findall(r"(?<!\\)\|", line)) for line in heads + rows} == {6}


# ---- what may be shown ---------------------------------------------------------------------------------------------------------


def test_a_blind_session_is_refused_until_it_is_locked(tmp_path):
    spec = plan(scenes=3)
    store_session(tmp_path, spec, rows_of(spec), lock=False)
    with pytest.raises(ReportError, match="s1 is blind and not locked; lock it first"):
        report(tmp_path, "s1")
    assert "baseline" not in show(tmp_path) and "6 trials are of blind sessions" in show(tmp_path)
    store = Store(tmp_path)
    store.lock("s1", "all done")
    store.close()
    assert "(all done)" in report(tmp_path, "s1").markdown and "baseline" in show(tmp_path)


def test_an_open_session_that_was_never_blind_is_reported_as_not_final(tmp_path):
    spec = plan(scenes=3, blind=False)
    made = reported(tmp_path, spec, rows_of(spec), lock=False)
    assert "not locked." in made.markdown and "may still change" in made.markdown and "was not blind" in made.markdown


def test_a_session_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ReportError, match="there is no session 'x'"):
        report(tmp_path, "x")


def test_a_plan_of_a_later_release_is_refused_in_a_sentence(tmp_path):
    store = Store(tmp_path)
    store.begin("s1", {"arms": TWO, "tomorrow": 1}, {})
    store.lock("s1")
    store.close()
    with pytest.raises(ReportError, match="s1 in .* cannot be reported: .*tomorrow"):
        report(tmp_path, "s1")


def test_a_database_that_is_none_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "trials.db").write_text("this is no database, but long enough to be taken for one" * 20)
    with pytest.raises(ReportError, match="cannot be reported"):
        report(tmp_path, "s1")


# ---- edges ---------------------------------------------------------------------------------------------------------------------


def test_an_empty_session_has_a_page_that_says_so(tmp_path):
    made = reported(tmp_path, plan(), [])
    page = alone(made.html)
    assert "No trial has been finished." in page.text and "svg" not in page.tags and "supported" in page.text


def test_one_arm_is_reported_without_a_comparison(tmp_path):
    spec = plan(arms=TWO[:1], scenes=6)
    made = reported(tmp_path, spec, rows_of(spec))
    assert "nothing is compared" in made.markdown and made.claims.comparisons == ()
    assert alone(made.html).tags.count("svg") == 2


def test_a_session_in_which_everything_failed_has_figures_and_no_seconds(tmp_path):
    spec = plan(scenes=4)
    made = reported(tmp_path, spec, rows_of(spec, lambda t: "failure"))
    assert "no scene in which both succeeded" in made.markdown and alone(made.html).tags.count("svg") == 2
    assert made.markdown.count("No clip: it was not recorded") == 8


def test_a_session_in_which_nothing_counts_has_no_figures(tmp_path):
    spec = plan(scenes=2)
    made = reported(tmp_path, spec, rows_of(spec, lambda t: "aborted"))
    assert "svg" not in alone(made.html).tags and "baseline 2 aborted of 2 (100 %)" in made.markdown


@pytest.mark.parametrize("arms", [3, 7])
def test_more_arms_than_colours_are_told_apart(tmp_path, arms):
    spec = plan(arms=[{"name": f"arm {i}", "checkpoint": f"c{i}"} for i in range(arms)], scenes=3)
    page = alone(reported(tmp_path, spec, rows_of(spec)).html)
    assert all(f"arm {i}" in page.text for i in range(arms))


def test_every_trial_stands_in_the_strip_in_its_order_with_a_symbol_and_words(tmp_path):
    spec = plan(arms=TWO[:1], scenes=4, block=0)
    outcomes = ["success", "failure", "invalid", "aborted"]
    rows = [row_of(t, outcome=o) for t, o in zip(schedule(spec), outcomes)]
    made = reported(tmp_path, spec, rows)
    marks = re.findall(r'<span class="mark (\w+)" title="trial (\d).*?">(.)</span>', made.html)
    assert marks == [(o, str(i + 1), SYMBOLS[o]) for i, o in enumerate(outcomes)]
    assert "tape\\_box standard, baseline: ✓ ✗ ? !" in made.markdown or "tape_box standard, baseline: ✓ ✗ ? !" in made.markdown


def test_labels_that_were_changed_and_events_are_told(tmp_path):
    spec = plan(scenes=3)
    stored = store_session(tmp_path, spec, rows_of(spec), lock=False)
    store = Store(tmp_path)
    store.label(stored[1].id, "unlabelled", "undo", "ada")
    store.label(stored[1].id, "failure", "it fell", "ada")
    store.note("s1", "recording", trial=2, reason="disk full")
    store.lock("s1")
    store.close()
    page = alone(report(tmp_path, "s1").html)
    assert "The outcome of trial 2 was changed" in page.text
    assert re.search(r"2 success - scene .* 2 unlabelled undo ada .* 2 failure it fell ada", page.text)
    assert "trial: 2, reason: disk full" in page.text


# ---- beside the paper, provenance, commands ------------------------------------------------------------------------------------


def test_the_papers_figures_stand_beside_ours_for_its_tasks_only(tmp_path):
    spec = plan(tasks=["tape_box", "sort_screws"], settings=["standard", "dynamic"], scenes=3)
    made = reported(tmp_path, spec, rows_of(spec))
    section = made.markdown.split("## Beside the paper")[1].split("## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| tape")]
    assert len(table) == 2 and "95 → 95" in table[0] and "17.5 → 9.4 (1.86 x)" in table[0] and "65 → 70" in table[1]
    assert "sort_screws" not in section and "arXiv 2606.22540" in section and "Ours are simulated" in section
    assert "Beside the paper" not in report(tmp_path, "s1", paper=False).markdown


def test_provenance_is_told_with_the_weights_that_ran_and_the_parameters_folded(tmp_path):
    spec = plan(scenes=2)
    provenance = {
        "commit": "abc123-dirty", "simulated": False, "firmware": "S-V1.6", "camera_serials": {"front": "0123"},
        "arms": {"trimmed": {"contract_sha256": "c" * 64}}, "parameters": {"controller": {"setpoint_rate_hz": 100.0}},
    }  # fmt: skip
    made = reported(tmp_path, spec, rows_of(spec), provenance=provenance)
    page = alone(made.html)
    for words in ("camera_serials.front 0123", "firmware S-V1.6", "c" * 64, "trimmed" * 8, "controller.setpoint_rate_hz 100.0"):
        assert words in page.text
    assert page.tags.count("details") == 1 and "All 1 parameters" in page.text
    assert "git checkout abc123   #" in made.html and "sim:=false" in made.html and "a robot" in page.text


def test_the_plan_in_the_report_is_a_session_file(tmp_path):
    import html

    from policytrim_ros.trials.session import read_session

    spec = plan(scenes=7, notes="light from the left: ümlaut <tag>")
    made = reported(tmp_path, spec, rows_of(spec))
    (tmp_path / "session.yaml").write_text(html.unescape(re.search(r"<pre>(.*?)</pre>", made.html, re.S)[1]), encoding="utf-8")
    assert read_session(tmp_path / "session.yaml") == spec


CHECKOUT, AFTERWARDS = "git checkout abc123", ["policytrim trials lock --out runs/x", "policytrim trials report --out runs/x"]
CONSOLE = "policytrim console{}   # in another terminal: type  :start plan=@session.yaml  and say go for each trial"


@pytest.mark.parametrize(
    "typed, lines",
    [
        (
            "policytrim up plan:=plans/mine.yaml record:=true out:=runs/x",
            ["policytrim up plan:=session.yaml record:=true out:=runs/x"],
        ),
        (
            "policytrim up mode:=async console:=true console_port:=0 out:=runs/x",
            ["policytrim up mode:=async console:=true out:=runs/x", CONSOLE.format("")],
        ),
        (
            "policytrim up sim:=false console:=true console_port:=9000 out:=runs/x",
            [
                "policytrim up sim:=false console:=true console_port:=9000 out:=runs/x",
                CONSOLE.format(" --url http://127.0.0.1:9000"),
            ],
        ),
        ("policytrim up trials:=5 seed:=7 out:=runs/x", ["policytrim up trials:=5 seed:=7 out:=runs/x"]),
        (
            "policytrim up 'cameras:=front=1,wrist=2' out:=runs/x",
            [
                "policytrim up cameras:=front=1,wrist=2 out:=runs/x",
                "policytrim trials run session.yaml --out runs/x   # in another terminal",
            ],
        ),
    ],
    ids=["plan", "console", "console at a port", "trials", "neither"],
)
def test_the_commands_check_the_source_out_and_lead_from_the_saved_plan_to_the_report(tmp_path, typed, lines):
    import html

    spec = plan(scenes=2)
    provenance = {"simulated": True, "commit": "abc123", "commands": [typed]}
    made = reported(tmp_path, spec, rows_of(spec), provenance=provenance)
    code = html.unescape(re.findall(r"<pre>(.*?)</pre>", made.html, re.S)[-1])
    assert code.split("\n") == [CHECKOUT, *lines, *AFTERWARDS]


def test_commands_are_made_up_from_the_plan_where_nobody_knows_what_was_typed():
    spec = plan(tasks=["hang_mug"])
    system, *rest = commands(spec, {"simulated": True, "commit": "abc123-dirty"})[1:]
    assert system == "policytrim up checkpoint:=models/a task:=hang_mug" and rest[0].startswith("policytrim trials run session.yaml")
    found = commands(spec, {"simulated": False})
    assert found[0].startswith("# the version") and "sim:=false" in found[1] and found[2] == CONSOLE.format("")
    assert commands(spec, {"commit": "abc123-dirty"})[0] == "git checkout abc123   # and changes to it that were not committed"


def test_every_command_of_a_report_is_understood_by_the_command_line(tmp_path):
    (tmp_path / "session.yaml").write_text("scenes: 2\n")
    for typed in ("policytrim up plan:=x.yaml out:=runs/x", "policytrim up console:=true console_port:=0 out:=runs/x"):
        for line in commands(plan(), {"commit": "abc123", "commands": [typed]})[1:]:
            words = shlex.split(line, comments=True)
            options = parser_for(words[1:]).parse_args(words[1:])
            if words[1] == "up":
                from_text(LaunchArguments, texts(options, LaunchArguments))
    said = CONSOLE.partition("type")[2].partition("and say")[0].strip()
    name, details = parsed(said.removeprefix(":").replace("session.yaml", str(tmp_path / "session.yaml")))
    assert name == "start" and Session.from_mapping(details["plan"]).scenes == 2


# ---- time to success -------------------------------------------------------------------------------------------------------------


def test_the_curve_ends_at_the_success_rate_and_failures_stay_in_the_denominator():
    spec = plan(arms=TWO[:1], scenes=4)
    rows = [replace(r, seconds=s) for r, s in zip(rows_of(spec, failing(0, arm="baseline")), (9.0, 2.0, 4.0, 3.0))]
    rows = [replace(r, outcome="failure" if r.seconds == 9.0 else "success") for r in rows]
    assert curve(rows) == [(0, 0), (2.0, 0.25), (3.0, 0.5), (4.0, 0.75), (9.0, 0.75)]
    assert curve([r for r in rows if r.outcome == "failure"]) == [(0, 0), (9.0, 0)]


# ---- clips -----------------------------------------------------------------------------------------------------------------------


def frames(webp) -> list[Image.Image]:
    picture = Image.open(io.BytesIO(webp))
    found = []
    for i in range(picture.n_frames):
        picture.seek(i)
        frame = picture.convert("RGB")  # which reads its duration, too
        frame.info["duration"] = picture.info["duration"]
        found.append(frame)
    return found


def test_a_clip_shows_both_cameras_until_the_trial_ended(tmp_path):
    path = record(tmp_path / "a.mcap", seconds=8.0)
    pictures = frames(clip(path, ended=None, seconds=3.0, rate_hz=5.0, height=60))
    assert pictures[0].size == (160, 60)
    assert sum(picture.info["duration"] for picture in pictures) == pytest.approx(1000 * (3.0 + LAST_FRAME_S), abs=201)
    assert pictures[-1].getpixel((10, 30))[2] > 150 > 100 > pictures[0].getpixel((10, 30))[2]
    early = frames(clip(path, ended=1004.0, seconds=3.0))
    assert early[-1].getpixel((10, 30))[0] > 150, "before the blue end"
    assert LAST_FRAME_S > 0.2, "the end is seen longer than the others"


@pytest.mark.parametrize("cameras", [("front",), ("front", "side", "wrist")])
def test_a_clip_takes_as_many_cameras_as_there_are(tmp_path, cameras):
    assert frames(clip(record(tmp_path / "a.mcap", cameras=cameras), height=30))[0].size == (40 * len(cameras), 30)


def test_a_recording_that_shows_nothing_says_why(tmp_path):
    with pytest.raises(ClipError, match="the recording is missing"):
        clip(tmp_path / "a.mcap")
    (tmp_path / "a.mcap.partial").write_bytes(b"x")
    with pytest.raises(ClipError, match="never finished"):
        clip(tmp_path / "a.mcap")
    with pytest.raises(ClipError, match="holds no images"):
        clip(record(tmp_path / "b.mcap", cameras=()))
    whole = record(tmp_path / "c.mcap").read_bytes()
    (tmp_path / "d.mcap").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError):
        clip(tmp_path / "d.mcap")
    (tmp_path / "e.mcap").write_bytes(b"no recording at all")
    with pytest.raises(ClipError, match="cannot be read"):
        clip(tmp_path / "e.mcap")


def test_an_image_that_is_none_costs_the_clip_and_not_the_report(tmp_path):
    file = McapFile(tmp_path / "s1" / "a.mcap")
    for i in range(3):
        image = CompressedImage(format="jpeg", data=b"not a picture")
        file.write("/front/color/image_raw/compressed", CompressedImage, serialize_message(image), i * 10**8)
    file.close()
    spec = plan(arms=TWO[:1], scenes=2)
    made = reported(tmp_path, spec, rows_of(spec, failing(0, arm="baseline"), recording="s1/a"))
    assert "No clip: the recording cannot be read" in made.markdown


def test_clips_stay_within_their_bytes_and_what_is_left_out_is_named(tmp_path, monkeypatch):
    record(tmp_path / "s1" / "a.mcap")
    one = 4 * len(clip(tmp_path / "s1" / "a.mcap")) // 3
    monkeypatch.setattr(report_module, "CLIPS_BYTES", int(2.5 * one))
    spec = plan(scenes=5)
    made = reported(tmp_path, spec, rows_of(spec, lambda t: "failure", recording="s1/a", ended=0.0))
    assert alone(made.html).tags.count("img") == 2
    assert made.markdown.count("the clips of this page have reached") == 8 and "it is in s1/a.mcap" in made.markdown


def test_a_recording_outside_the_directory_of_trials_is_not_opened(tmp_path):
    record(tmp_path / "secret.mcap")
    spec = plan(arms=TWO[:1], scenes=1)
    made = reported(tmp_path / "out", spec, rows_of(spec, lambda t: "failure", recording="../secret"))
    assert "leads out of the directory" in made.markdown and "img" not in alone(made.html).tags


# ---- the page by itself ----------------------------------------------------------------------------------------------------------


def test_foreign_text_is_cleaned_and_cut_visibly():
    assert clean("a\x00b\u202ec\ud800") == "a\ufffdb\ufffdc\ufffd" and clean("数据 ümlaut") == "数据 ümlaut"
    assert clean("x" * 1000).endswith("x…") and len(clean("x" * 1000)) == 400


def test_a_page_prints_every_block_twice():
    page = Page("a | b")
    page.add(
        "one",
        Text("x_y *z*", "strong"),
        Grid(("h|", "i"), [("1|2", "<b>")], "more"),
        Code("a\n<b>"),
        Strip("t", [("failure", "w")]),
    )
    page.add("nothing")
    assert "<h2>nothing" not in page.html and "## nothing" not in page.markdown
    assert (
        "**strong** x_y \\*z\\*" in page.markdown and "| 1\\|2 | &lt;b> |" in page.markdown and "    a\n    <b>" in page.markdown
    )
    assert "<td>1|2</td><td>&lt;b&gt;</td>" in page.html and "<summary>more</summary>" in page.html
    alone(page.html)


def test_reports_of_several_threads_do_not_disturb_each_other(tmp_path):
    spec = plan(scenes=3)
    store_session(tmp_path, spec, rows_of(spec))
    alone_, found = report(tmp_path, "s1").html, []
    threads = [threading.Thread(target=lambda: found.append(report(tmp_path, "s1").html)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone_] * 3


def test_a_mean_of_few_trials_stands_alone_and_an_interval_is_the_wider_one_and_never_negative():
    values = [6.1, 7.9, 7.0, 9.2]
    (_, *bootstrap), (_, *t) = bootstrap_mean(values), t_mean(values)
    assert t[0] < bootstrap[0] and t[1] > bootstrap[1]
    assert table.mean(values, 2) == f"7.55 [{t[0]:.2f}, {t[1]:.2f}]"
    assert table.mean([6.1, 7.9], 1) == "7.0" and table.mean([], 1) == "-"
    assert table.mean([0.0, 0.0, 0.3], 1).startswith("0.1 [0.0, ")
