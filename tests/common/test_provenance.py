"""The commit that is written down is that of the code that runs, or none."""

import subprocess

import pytest

from fusion.common import provenance


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with one commit, in whose folder `package` the module lies."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "provenance.py").write_text("one\n")
    (tmp_path / "other.txt").write_text("one\n")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "provenance.py"))
    return tmp_path


def git(folder, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_of_a_clone_and_whether_files_differ_from_it(clone):
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "one")
    assert provenance.commit() == git(clone, "rev-parse", "--short", "HEAD")
    assert provenance.dirty() is False
    (clone / "new.txt").write_text("not tracked\n")
    assert provenance.dirty() is False
    (clone / "other.txt").write_text("two\n")
    assert provenance.dirty() is True


def test_a_package_installed_inside_another_project_has_no_commit(clone):
    git(clone, "add", "other.txt")
    git(clone, "commit", "-qm", "another project")
    assert (provenance.commit(), provenance.dirty()) == ("", None)


def test_without_git_there_is_no_commit(clone, monkeypatch):
    monkeypatch.setenv("PATH", str(clone))
    assert (provenance.commit(), provenance.dirty()) == ("", None)
