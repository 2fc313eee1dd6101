"""Checkpoints: atomic, newest complete one is found, old ones deleted only after a safe new one; metrics.jsonl."""

import json
import os
import shutil

import pytest
import torch

from fusion.training import checkpoint
from fusion.training.metrics import Means, Metrics, read


def write(text: str):
    return lambda folder: (folder / "weights.txt").write_text(text)


def test_a_checkpoint_is_found_again_and_only_the_newest_are_kept(tmp_path):
    for step in (10, 20, 100):
        checkpoint.save(tmp_path, step, write(str(step)), keep=2)
    assert checkpoint.steps(tmp_path) == [20, 100]
    newest = checkpoint.newest(tmp_path)
    assert newest.name == "step_100" and (newest / "weights.txt").read_text() == "100"
    assert checkpoint.newest(tmp_path / "nothing here") is None


def test_a_write_that_fails_leaves_the_old_ones(tmp_path):
    checkpoint.save(tmp_path, 1, write("one"), keep=1)

    def breaks(folder):
        (folder / "weights.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, 2, breaks, keep=1)
    assert checkpoint.newest(tmp_path).name == "step_1"
    checkpoint.save(tmp_path, 2, write("two"), keep=1)  # the leftovers of the failure are in nobody's way
    assert checkpoint.steps(tmp_path) == [2] and not list(tmp_path.glob("*.partial"))


def test_at_every_moment_of_saving_a_whole_checkpoint_is_there(tmp_path, monkeypatch):
    """Should the power fail before or after any sync, rename or deletion, the newest whole checkpoint is the old one or
    the new one."""
    checkpoint.save(tmp_path, 1, write("one"), keep=1)
    found = []

    def watched(real):
        def function(*args, **kwargs):
            found.append(newest_of(tmp_path))
            real(*args, **kwargs)
            found.append(newest_of(tmp_path))

        return function

    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    checkpoint.save(tmp_path, 2, write("two"), keep=1)
    monkeypatch.undo()
    assert None not in found and set(found) == {"step_1", "step_2"} and found == sorted(found)
    assert checkpoint.steps(tmp_path) == [2]


def newest_of(folder) -> str | None:
    """The name of the newest whole checkpoint, without what is said of others."""
    whole = [step for step in checkpoint.steps(folder) if checkpoint.what_is_missing(folder / f"step_{step}") is None]
    return f"step_{whole[-1]}" if whole else None


def test_a_checkpoint_is_on_disk_before_its_name_and_its_name_before_the_old_one_goes(tmp_path, monkeypatch):
    """Files and their folder are synced, then renamed, then the folder that holds the name is synced, and last the old
    one is deleted."""
    checkpoint.save(tmp_path, 1, write("one"), keep=1)
    events, sync, rename, delete = [], os.fsync, os.replace, shutil.rmtree

    def synced(handle):
        events.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def renamed(source, target):
        events.append(("rename", os.path.basename(target)))
        rename(source, target)

    def deleted(path, *args, **kwargs):
        events.append(("delete", os.path.basename(path)))
        delete(path, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(shutil, "rmtree", deleted)
    final = checkpoint.save(tmp_path, 2, write("two"), keep=1)
    monkeypatch.undo()
    named, gone = events.index(("rename", "step_2")), events.index(("delete", "step_1"))
    for path in (final / "weights.txt", final / checkpoint.MARKER, final):
        assert ("sync", path.stat().st_ino) in events[:named], path
    assert ("sync", tmp_path.stat().st_ino) in events[named:gone]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: (folder / checkpoint.MARKER).unlink(), "no complete.json"),
        (lambda folder: (folder / checkpoint.MARKER).write_text("{"), "no complete.json"),
        (lambda folder: (folder / "weights.txt").unlink(), "weights.txt is missing"),
        (lambda folder: (folder / "weights.txt").write_text("tw"), "weights.txt was cut off"),
        (
            lambda folder: (folder / "weights.txt").write_text("twp"),
            "weights.txt is damaged",
        ),  # a bit of the last letter
        (lambda folder: (folder / checkpoint.MARKER).write_text("3"), "no complete.json"),
        (lambda folder: (folder / checkpoint.MARKER).write_text('{"weights.txt": 3}'), "no complete.json"),
    ],
)
def test_a_half_written_checkpoint_is_passed_over(tmp_path, capsys, harm, why):
    checkpoint.save(tmp_path, 1, write("one"))
    harm(checkpoint.save(tmp_path, 2, write("two")))
    assert checkpoint.newest(tmp_path).name == "step_1"
    (line,) = capsys.readouterr().err.splitlines()
    assert "step_2" in line and why in line


def test_tensors_that_share_memory_are_saved(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    checkpoint.write_tensors(tmp_path / "t.safetensors", {"whole": whole, "part": whole[:, 1], "turned": whole.T})
    back = checkpoint.read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["part"], whole[:, 1]) and torch.equal(back["turned"], whole.T)


def test_metrics_are_cut_back_to_the_step_that_a_run_goes_on_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.log(step, 10 * step, 0.5 * step, **{"loss/text": 1.0 / step, "loss/flow": None})
    with path.open("a") as file:
        file.write('{"step": 4, "se')  # killed while it wrote
    assert [row["step"] for row in read(path)] == [1, 2, 3]
    Metrics(path, step=2).log(3, 31, 9.0, **{"loss/text": float("nan")})
    rows = read(path)
    assert rows[1] == {"step": 2, "seen": 20, "time": 1.0, "loss/text": 0.5}
    assert rows[2]["seen"] == 31 and rows[2]["loss/text"] == "nan"
    assert all(json.dumps(row, allow_nan=False) for row in rows)
    assert Metrics(path).path.read_text() == ""


def test_means_are_sums_over_counts():
    means = Means()
    means.add(loss=(6.0, 2), flow=(0.0, 0))
    means.add(loss=(2.0, 2))
    assert means.take() == {"loss": 2.0} and means.take() == {}
