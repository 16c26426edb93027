"""Trials as CSV, Parquet and JSON: complete, equal, blind while they are blind."""

import csv
import io
import json
import math

import pytest
from session_samples import plan, rows_of, store_session

from policytrim_ros.trials.export import COLUMNS, HIDDEN, ExportError, export, spec_sha256
from policytrim_ros.trials.store import Store, read

SPEC = plan(scenes=3)
PROVENANCE = {"simulated": True, "commit": "abc123", "version": "0.1.0", "arms": {"trimmed": {"contract_sha256": "c" * 64}}}


def from_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_one_row_a_trial_with_every_column_and_what_its_session_was(tmp_path):
    stored = store_session(tmp_path, SPEC, rows_of(SPEC), provenance=PROVENANCE)
    said = export(tmp_path, tmp_path / "x.csv")
    rows = from_csv(tmp_path / "x.csv")
    assert said == f"6 trials written to {tmp_path / 'x.csv'}" and list(rows[0]) == list(COLUMNS)
    assert [(int(r["id"]), r["label"], float(r["seconds"])) for r in rows] == [(r.id, r.label, r.seconds) for r in stored]
    assert {(r["commit"], r["simulated"], r["spec_sha256"]) for r in rows} == {("abc123", "True", spec_sha256(SPEC.as_dict()))}
    assert {r["label"]: r["contract_sha256"] for r in rows} == {"trimmed": "c" * 64, "baseline": ""}


def test_the_contract_of_an_arm_with_several_checkpoints_is_that_of_the_task(tmp_path):
    by_task = {"tasks": {"tape_box": {"contract_sha256": "d" * 64}, "flip_mug": {"contract_sha256": "e" * 64}}}
    store_session(tmp_path, SPEC, rows_of(SPEC), provenance={**PROVENANCE, "arms": {"trimmed": by_task}})
    export(tmp_path, tmp_path / "x.csv")
    assert {r["label"]: r["contract_sha256"] for r in from_csv(tmp_path / "x.csv")} == {"trimmed": "d" * 64, "baseline": ""}


def test_parquet_and_json_hold_the_same_trials(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    store_session(tmp_path, SPEC, rows_of(SPEC), provenance=PROVENANCE)
    for name in ("x.parquet", "x.json"):
        export(tmp_path, tmp_path / name)
    table = parquet.read_table(tmp_path / "x.parquet")
    told = json.loads((tmp_path / "x.json").read_text())
    plain = [{name: trial[name] for name in COLUMNS} for trial in told["trials"]]
    assert table.to_pylist() == plain and len(plain) == 6
    assert str(table.schema.field("seconds").type) == "double" and str(table.schema.field("blind").type) == "bool"
    assert told["sessions"][0]["spec"] == SPEC.as_dict() and told["sessions"][0]["provenance"] == PROVENANCE


def test_json_has_every_label_that_a_trial_ever_had(tmp_path):
    stored = store_session(tmp_path, SPEC, rows_of(SPEC), lock=False)
    store = Store(tmp_path)
    store.label(stored[2].id, "unlabelled", "undo", "ada")
    store.label(stored[2].id, "failure", "fell later", "ada")
    store.close()
    export(tmp_path, tmp_path / "x.json")
    trial = json.loads((tmp_path / "x.json").read_text())["trials"][2]
    assert [label["outcome"] for label in trial["history"]] == ["success", "unlabelled", "failure"]
    assert trial["outcome"] == "failure" and trial["history"][2]["labelled_by"] == "ada"


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet"])
def test_a_blind_session_is_exported_without_its_arms_until_it_is_locked(tmp_path, name):
    pytest.importorskip("pyarrow")
    store_session(tmp_path, SPEC, rows_of(SPEC), lock=False, provenance=PROVENANCE)
    said = export(tmp_path, tmp_path / name)
    assert said.endswith("6 of them without their arm, for s1 is blind and not locked")
    data = (tmp_path / name).read_bytes()
    for telling in (b"trimmed", b"baseline", b"models/", b"cccc"):
        assert telling not in data
    store = Store(tmp_path)
    store.lock("s1")
    store.close()
    assert "without their arm" not in export(tmp_path, tmp_path / name) and b"trimmed" in (tmp_path / name).read_bytes()


def test_what_is_hidden_leaves_outcomes_and_codes_and_nothing_that_differs_between_arms(tmp_path):
    stored = store_session(tmp_path, SPEC, rows_of(SPEC), lock=False)
    export(tmp_path, tmp_path / "x.csv")
    rows = from_csv(tmp_path / "x.csv")
    assert [r["code"] for r in rows] == [r.code for r in stored] and {r["outcome"] for r in rows} == {"success"}
    assert {r[name] for r in rows for name in HIDDEN} == {""}


def test_an_open_session_hides_nothing_of_another_one(tmp_path):
    store_session(tmp_path, SPEC, rows_of(SPEC, session="old"), session="old")
    store_session(tmp_path, SPEC, rows_of(SPEC, session="new"), session="new", lock=False)
    assert export(tmp_path, tmp_path / "x.csv").startswith("12 trials") and "new is blind" in export(tmp_path, tmp_path / "x.csv")
    rows = from_csv(tmp_path / "x.csv")
    assert {r["session"] for r in rows if r["label"]} == {"old"}
    assert export(tmp_path, tmp_path / "x.csv", "old") == f"6 trials written to {tmp_path / 'x.csv'}"


def test_text_that_a_spreadsheet_would_run_is_text(tmp_path):
    rows = rows_of(SPEC, reason='=HYPERLINK("http://evil")\n,"quoted" 数据')
    store_session(tmp_path, SPEC, rows)
    export(tmp_path, tmp_path / "x.csv")
    export(tmp_path, tmp_path / "x.json")
    assert from_csv(tmp_path / "x.csv")[0]["reason"] == "'" + rows[0].reason
    assert json.loads((tmp_path / "x.json").read_text())["trials"][0]["reason"] == rows[0].reason


def test_a_session_without_trials_is_a_header(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    store_session(tmp_path, SPEC, [])
    assert export(tmp_path, tmp_path / "x.csv").startswith("0 trials")
    assert next(csv.reader(io.StringIO((tmp_path / "x.csv").read_text()))) == list(COLUMNS)
    export(tmp_path, tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet").schema.names == list(COLUMNS)


def test_what_cannot_be_exported_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ExportError, match="there are no trials in"):
        export(tmp_path, tmp_path / "x.csv")
    store_session(tmp_path, SPEC, rows_of(SPEC))
    with pytest.raises(ExportError, match="ends in .csv, .parquet, .json"):
        export(tmp_path, tmp_path / "x.xlsx")
    with pytest.raises(ExportError, match="there is no session 'other'"):
        export(tmp_path, tmp_path / "x.csv", "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="was not written"):
        export(tmp_path, tmp_path / "file" / "x.csv")


def test_an_export_is_no_trial_of_its_own(tmp_path):
    before = store_session(tmp_path, SPEC, rows_of(SPEC))
    for name in ("a.csv", "a.json"):
        export(tmp_path, tmp_path / name)
    assert read(tmp_path) == before and all(math.isfinite(row.seconds) for row in before)
