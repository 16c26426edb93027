"""What manifests and results say of the source that made them."""

import subprocess

import pytest

from policytrim_ros.training.version import commit


@pytest.fixture
def repository(tmp_path):
    """A repository with a source and a result, both committed; git asks nothing of this machine's settings."""
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "source.py").write_text("1\n")
    (tmp_path / "docs" / "results" / "table.md").write_text("1\n")
    for command in ("init -q", "add .", "-c user.name=x -c user.email=x@x commit -q -m x"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_a_clean_tree_is_its_commit_wherever_it_is_asked_from(repository):
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert len(commit(repository)) == 12 and said.startswith(commit(repository))
    assert commit(repository / "package") == commit(repository)


def test_a_result_that_was_written_again_is_not_a_changed_source(repository):
    (repository / "docs" / "results" / "table.md").write_text("2\n")
    assert not commit(repository / "package").endswith("-dirty")


def test_a_changed_source_is_dirty_from_whichever_folder(repository):
    (repository / "package" / "source.py").write_text("2\n")
    assert commit(repository / "docs").endswith("-dirty")


def test_outside_a_repository_it_is_unknown(tmp_path):
    assert commit(tmp_path) == "unknown"
