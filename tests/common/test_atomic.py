"""Whole files and folders: what was there stays until the new one is complete, and an error leaves nothing behind."""

import os

import pytest
import torch

from fusion.common.atomic import new_file, new_folder, save
from fusion.common.tensor_cache import write_entry


def files(folder) -> dict[str, str]:
    """Every file and empty folder below a folder, hidden ones too, with the text in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir()))
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in found}


def test_a_file_is_replaced_whole(tmp_path):
    for data in ("old", "grün", b"bytes"):
        save(data, tmp_path / "a.txt")
        assert (tmp_path / "a.txt").read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert list(files(tmp_path)) == ["a.txt"] and (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"a.txt": "old"}])
def test_an_error_in_the_middle_of_a_file_changes_nothing(tmp_path, before, error):
    for name, text in before.items():
        save(text, tmp_path / name)
    with pytest.raises(error), new_file(tmp_path / "a.txt") as aside:
        aside.write_text("half")
        assert files(tmp_path).items() >= before.items()
        raise error
    assert files(tmp_path) == before


@pytest.mark.parametrize("last", [None, "config.json"])
def test_an_error_in_the_middle_of_a_folder_leaves_nothing(tmp_path, last):
    with pytest.raises(ValueError), new_folder(tmp_path / "model", last) as aside:
        (aside / "weights").write_text("half")
        raise ValueError
    assert files(tmp_path) == {}


def test_an_error_in_the_middle_of_a_folder_leaves_what_was_there(tmp_path):
    save("old", tmp_path / "config.json")
    for step in ("fill", "move"):
        with pytest.raises((ValueError, OSError)), new_folder(tmp_path, last="config.json") as aside:
            (aside / "config.json").write_text("new")
            if step == "fill":
                raise ValueError
            (aside / "blocked").mkdir()
            (aside / "blocked" / "a").write_text("no folder can be here")
            save("a file", tmp_path / "blocked")
    assert files(tmp_path) == {"config.json": "old", "blocked": "a file"}


def test_files_move_into_a_folder_one_by_one_and_the_last_makes_it_complete(tmp_path, monkeypatch):
    save("mine", tmp_path / "notes.txt")
    save("old", tmp_path / "config.json")
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(os.path.relpath(b, tmp_path)), replace(a, b)))
    with new_folder(tmp_path, last="config.json") as aside:
        for name in ("config.json", "weights", "zebra", "codec/config.json"):
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_text(f"new {name}")
    assert moved[-1] == "config.json" and len(moved) == 4
    new = {name: f"new {name}" for name in moved}
    assert files(tmp_path) == new | {"notes.txt": "mine"}


def test_a_folder_takes_its_name_in_one_step_and_never_that_of_another(tmp_path):
    with new_folder(tmp_path / "deep/model") as aside:
        (aside / "weights").write_text("new")
        assert not (tmp_path / "deep/model").exists()
    (tmp_path / ".second.partial").mkdir()
    save("of a program that was killed", tmp_path / ".second.partial/old")
    (tmp_path / "second").mkdir()
    with new_folder(tmp_path / "second") as aside:
        (aside / "weights").write_text("two")
    with pytest.raises(OSError), new_folder(tmp_path / "second") as aside:
        (aside / "weights").write_text("three")
    assert files(tmp_path) == {"deep/model/weights": "new", "second/weights": "two"}


def test_an_entry_of_the_cache_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "entry").mkdir()  # no file can take this name
    with pytest.raises(OSError):
        write_entry(tmp_path / "entry", {"x": torch.zeros(2)})
    assert files(tmp_path) == {"entry": ""}
