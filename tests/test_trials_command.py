"""`policytrim trials ...` as it is typed."""

import csv

import pytest
from session_samples import failing, plan, rows_of, store_session

from policytrim_ros.cli import main
from policytrim_ros.trials.store import read_sessions


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
