"""Checkpoints: whole or not there, the newest complete one is found, old ones go only when a new one is safe; and metrics.jsonl."""

import json

import pytest
import torch

from train import checkpoint
from train.metrics import Means, Metrics, read


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


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: (folder / checkpoint.MARKER).unlink(), "no complete.json"),
        (lambda folder: (folder / checkpoint.MARKER).write_text("{"), "no complete.json"),
        (lambda folder: (folder / "weights.txt").unlink(), "weights.txt is missing"),
        (lambda folder: (folder / "weights.txt").write_text("tw"), "weights.txt was cut off"),
        (lambda folder: (folder / "weights.txt").write_text("twp"), "weights.txt is damaged"),  # a bit of the last letter
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
