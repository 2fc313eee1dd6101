"""Law 6: resuming equals never having stopped, bit for bit, whatever stopped the run."""

import os
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusion.testing import killed_runs as killing
from fusion.testing import tiny_runs as training
from fusion.training import checkpoint
from fusion.training.metrics import read
from fusion.training.trainer import Trainer
from tests.support import marks


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


def tensors(folder: Path) -> dict:
    names = ("weights.safetensors", "optimizer.safetensors", "model/model.safetensors")
    return {f"{name}/{key}": value for name in names for key, value in load_file(folder / name).items()}


def told(run: Path) -> list[dict]:
    """Metrics without what depends on the clock, or on what else the process has done."""
    apart = ("time", "memory_gib", "per_second")
    return [{k: v for k, v in row.items() if not k.startswith(apart)} for row in read(run / "metrics.jsonl")]


def interrupt_in_step(trainer: Trainer, step: int) -> None:
    """Let a SIGTERM arrive in the middle of a step."""
    backward = trainer._backward

    def watched(*args):
        if trainer.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(*args)

    trainer._backward = watched


@pytest.mark.parametrize(
    ("optimizer", "workers", "kind"),
    [
        ("muon", 0, "momentum"),
        ("adamw", 2, "exp_avg"),
        pytest.param("adamw8bit", 0, "absmax1", marks=marks.needs_bitsandbytes),
    ],
)
def test_resuming_equals_never_having_stopped(llm, tmp_path, optimizer, workers, kind):
    how = {"optimizer": optimizer, "workers": workers}
    straight = training.make(llm, tmp_path / "straight", **how).fit()
    assert straight.interrupted is None and straight.steps > 5
    trainer = training.make(llm, tmp_path / "stopped", **how)
    interrupt_in_step(trainer, 3)
    first = trainer.fit()
    assert first.interrupted == "SIGTERM" and first.steps == 3
    second = training.make(llm, tmp_path / "stopped", resume=True, **how).fit()
    assert (second.steps, second.seen) == (straight.steps, straight.seen)
    a, b = (tensors(tmp_path / name / "checkpoints" / f"step_{straight.steps}") for name in ("straight", "stopped"))
    assert a.keys() == b.keys() and any(f"/{kind}/" in key for key in a)
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    assert told(tmp_path / "straight") == told(tmp_path / "stopped")


def test_after_a_crash_it_goes_on_from_the_newest_whole_checkpoint(llm, tmp_path, capsys):
    straight = training.make(llm, tmp_path / "straight").fit()
    trainer = training.make(llm, tmp_path / "crashed")
    real = trainer._one_step

    def crashes(*args):
        if trainer.step == 5:
            raise RuntimeError("the power failed")
        return real(*args)

    trainer._one_step = crashes
    with pytest.raises(RuntimeError, match="the power failed"):
        trainer.fit()
    damaged = tmp_path / "crashed" / "checkpoints" / "step_4" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    resumed = training.make(llm, tmp_path / "crashed", resume=True)
    assert resumed.step == 2 and "step_4: not complete" in capsys.readouterr().err
    assert resumed.fit().steps == straight.steps
    a, b = (tensors(tmp_path / name / "checkpoints" / f"step_{straight.steps}") for name in ("straight", "crashed"))
    assert not [name for name in a if not torch.equal(a[name], b[name])]
    assert told(tmp_path / "straight") == told(tmp_path / "crashed")


def test_a_finished_run_has_nothing_left_to_do(llm, tmp_path):
    first = training.make(llm, tmp_path)
    done = first.fit()
    again = training.make(llm, tmp_path, resume=True)
    assert again.fit().steps == done.steps
    for (name, p), q in zip(first.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("wish", ["save", "stop"])
def test_a_file_in_the_runs_folder_asks_for_a_checkpoint_or_an_end(llm, tmp_path, wish):
    trainer = training.make(llm, tmp_path, save_every=0, validate=False)
    real = trainer._one_step

    def asked_in_step_3(*args):
        if trainer.step == 2:
            (tmp_path / wish).touch()
        return real(*args)

    trainer._one_step = asked_in_step_3
    summary = trainer.fit()
    assert not (tmp_path / wish).exists()
    if wish == "stop":
        assert (
            summary.steps == 3
            and "the file" in summary.interrupted
            and checkpoint.steps(tmp_path / "checkpoints") == [3]
        )
    else:
        assert summary.interrupted is None and checkpoint.steps(tmp_path / "checkpoints") == [3, summary.steps]


def test_checkpoints_by_the_clock(llm, tmp_path):
    summary = training.make(llm, tmp_path, save_every=0, save_minutes=1e-9, keep=99, validate=False).fit()
    assert checkpoint.steps(tmp_path / "checkpoints") == list(range(1, summary.steps + 1))


def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_been(llm, tmp_path):
    killing.run(llm, tmp_path / "straight")
    kills = killing.until_done(llm, tmp_path / "killed", random.Random(0), most=3)
    assert kills
    assert not killing.differences(tmp_path / "straight", tmp_path / "killed")
