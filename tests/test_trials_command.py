"""`policytrim trials ...` as it is typed."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from session_samples import failing, plan, rows_of, store_session

from policytrim_ros.cli import main
from policytrim_ros.trials.combination import keep
from policytrim_ros.trials.report import report
from policytrim_ros.trials.store import read, read_sessions


@pytest.fixture
def blind(tmp_path):
    """A complete session that is not locked yet."""
    spec = plan(scenes=12)
    store_session(tmp_path, spec, rows_of(spec, failing(3)), lock=False)
    return tmp_path


def test_a_blind_session_is_listed_without_its_arms_until_it_is_locked(blind, capsys):
    assert main(["trials", "list", "--out", str(blind)]) == 0
    said = capsys.readouterr().out
    assert "s1  24/24 trials  open, blind" in said and "trimmed" not in said
    assert main(["trials", "report", "--out", str(blind)]) == 1 and "lock" in capsys.readouterr().err
    assert main(["trials", "lock", "--out", str(blind), "--reason", "done"]) == 0
    assert read_sessions(blind)[0]["lock_reason"] == "done"
    capsys.readouterr()
    assert main(["trials", "list", "--out", str(blind)]) == 0 and "trimmed" in capsys.readouterr().out
    assert main(["trials", "lock", "--out", str(blind)]) == 1 and "refused" in capsys.readouterr().err


def test_report_and_export_lie_where_they_were_asked_for(blind, tmp_path, capsys):
    main(["trials", "lock", "--out", str(blind)])
    assert main(["trials", "report", "--out", str(blind), "--to", str(tmp_path / "page")]) == 0
    assert "non-inferiority" in (tmp_path / "page" / "report.md").read_text()
    assert main(["trials", "export", str(tmp_path / "rows.csv"), "--out", str(blind)]) == 0
    with open(tmp_path / "rows.csv") as file:
        assert len(list(csv.DictReader(file))) == 24
    capsys.readouterr()
    assert main(["trials", "export", str(tmp_path / "rows.xls"), "--out", str(blind)]) == 1 and ".csv" in capsys.readouterr().err


def test_real_trials_are_combined_with_simulated_ones_and_never_pooled(tmp_path, capsys):
    real, simulated = tmp_path / "real", tmp_path / "simulated"
    spec, more = plan(scenes=20, margin=0.3), plan(scenes=200, margin=0.3)
    store_session(real, spec, rows_of(spec, failing(3), "robot"), "robot", provenance={"simulated": False})
    store_session(simulated, more, rows_of(more, failing(3, 40)))
    assert main(["trials", "combine", "--out", str(real), "--simulated", str(simulated)]) == 0
    said = capsys.readouterr().out
    assert "20 real scenes and 180 further simulated ones" in said and "No simulated success is counted as a real one" in said
    assert main(["trials", "combine", "--out", str(simulated), "--simulated", str(real)]) == 1
    assert "simulated: false" in capsys.readouterr().err


@pytest.fixture
def robot(tmp_path):
    """Directories of 20 real and of 80 simulated scenes with the same policies."""
    real, simulated = tmp_path / "real", tmp_path / "simulated"
    spec, wide = plan(), plan(scenes=80)
    store_session(real, spec, rows_of(spec, session="robot"), "robot", provenance={"simulated": False})
    store_session(simulated, wide, rows_of(wide))
    return ["trials", "combine", "--out", str(real), "--simulated", str(simulated)]


def test_simulated_trials_of_other_checkpoints_are_not_combined_whatever_their_arms_are_called(robot, capsys):
    spec = plan(scenes=80, notes="other checkpoints")
    store_session(robot[-1], spec, rows_of(spec, failing(*range(40)), "s2", weights_sha256="f" * 64), "s2")
    assert main(robot) == 1
    assert "baseline: weights baselinebase on the robot, ffffffffffff in the simulator" in capsys.readouterr().err
    assert main([*robot, "--simulated-session", "s1"]) == 0
    assert "+0 points" in capsys.readouterr().out
    assert main([*robot, "--simulated-session", "s3"]) == 1 and "holds no session s3; it has s1, s2" in capsys.readouterr().err


def test_simulated_sessions_of_one_policy_are_combined_together(robot, capsys):
    more = plan(scenes=50, seed=2000)
    store_session(robot[-1], more, rows_of(more, session="s2"), "s2")
    assert main([*robot, "--simulated-session", "s1", "s2"]) == 0
    assert "20 real scenes and 110 further simulated ones" in capsys.readouterr().out


def test_what_was_combined_stands_in_the_report_of_the_real_trials_until_an_outcome_changes(robot, capsys):
    out = robot[3]
    assert "With the simulator" not in report(out, "robot").markdown
    assert main(robot) == 0 and "combined.json" in capsys.readouterr().out
    made = report(out, "robot")
    section = made.markdown.split("## With the simulator")[1].split("## ")[0]
    assert "20 real scenes and 60 further simulated ones" in section and "sessions s1" in section
    assert "60 further simulated ones" in made.html and "pooled" not in section
    kept = Path(out) / "robot" / "combined.json"
    kept.write_text(kept.read_text().replace('"cells"', '"shells"'))
    assert "With the simulator" not in report(out, "robot").markdown
    assert main(robot) == 0
    rows = read(out, "robot")
    keep(out, "robot", [], [replace(rows[0], outcome="failure"), *rows[1:]], ["s1"])  # as if it had been combined before
    assert "With the simulator" not in report(out, "robot").markdown


def test_an_unrelated_blind_session_does_not_keep_others_from_being_combined_and_a_chosen_one_does(robot, capsys):
    spec = plan(scenes=1)
    for out in (robot[3], robot[-1]):
        store_session(out, spec, rows_of(spec, session="x"), "x", lock=False, provenance={"simulated": out == robot[-1]})
    assert main([*robot, "--session", "robot", "--simulated-session", "s1"]) == 0
    capsys.readouterr()
    for blind in (["--session", "robot"], ["--simulated-session", "s1"]):
        assert main([*robot, *blind]) == 1 and "session x is blind and not locked; lock it first" in capsys.readouterr().err


def test_a_blind_session_is_not_imported_before_it_is_locked(tmp_path, capsys):
    spec = plan(scenes=1)
    store_session(tmp_path, spec, rows_of(spec, recording="s1/trial-0001"), lock=False)
    order = ["trials", "import", "--out", str(tmp_path), "--dataset", str(tmp_path / "data")]
    assert main(order) == 1
    refused = f"session s1 is blind and not locked; lock it first: policytrim trials lock --out {tmp_path} --session s1"
    assert refused in capsys.readouterr().err and not (tmp_path / "data").exists()
    main(["trials", "lock", "--out", str(tmp_path)])
    capsys.readouterr()
    assert main(order) == 1 and "trial-0001.mcap" in capsys.readouterr().out  # what is missing now is the recording


def test_the_table_is_of_one_session_the_newest_or_the_one_that_is_named(tmp_path, capsys):
    spec, again = plan(scenes=4), plan(scenes=4, notes="other checkpoints of the same names")
    store_session(tmp_path, spec, rows_of(spec, failing(0, 1, 2)))
    store_session(tmp_path, again, rows_of(again, session="s2"), "s2")
    assert main(["trials", "list", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "s1  8/8 trials" in said and "s2  8/8 trials" in said and "\ns2:\n" in said
    assert said.count("| 4/4 ") == 2 and "| 1/4 " not in said
    assert main(["trials", "list", "--out", str(tmp_path), "--session", "s1"]) == 0 and "| 1/4 " in capsys.readouterr().out
    assert main(["trials", "list", "--out", str(tmp_path), "--session", "x"]) == 1 and "no session x" in capsys.readouterr().err


def test_a_session_without_trials_and_a_directory_without_sessions_are_listed(tmp_path, capsys):
    assert main(["trials", "list", "--out", str(tmp_path)]) == 0 and f"no trials in {tmp_path}" in capsys.readouterr().out
    store_session(tmp_path, plan(), [], lock=False)
    assert main(["trials", "list", "--out", str(tmp_path)]) == 0
    assert f"no trials of session s1 in {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["lock", "report", "combine"])
def test_a_directory_without_sessions_and_an_unknown_session_are_named(action, tmp_path, capsys):
    more = ["--simulated", "x"] if action == "combine" else []
    assert main(["trials", action, "--out", str(tmp_path), *more]) == 1 and "holds no session" in capsys.readouterr().err
    spec = plan(scenes=1)
    store_session(tmp_path, spec, rows_of(spec))
    assert main(["trials", action, "--out", str(tmp_path), "--session", "x", *more]) == 1
    assert "holds no session x; it has s1" in capsys.readouterr().err


def test_the_baseline_is_what_others_are_compared_with_whichever_came_first(tmp_path, capsys):
    spec = plan(scenes=4)
    rows = sorted(rows_of(spec), key=lambda row: (row.label != "trimmed", row.number))
    store_session(tmp_path, spec, rows)
    assert main(["trials", "list", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.index("| baseline") < said.index("| trimmed") and "| baseline | trimmed |" in said
