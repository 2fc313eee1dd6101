"""Law 6: resuming equals never having stopped, bit for bit; and a half-written checkpoint is passed over."""

import json

import pytest
import torch
from safetensors.torch import load_file

import fusion
from fusion.data.batches import Batches, Loader, Packing, fixed_batches
from fusion.data.shapes import World
from fusion.data.sources import Mixture, WorldSource
from fusion.objective import Objective
from tests import families
from train import checkpoint
from train.loop import NotFinite, Trainer, Training
from train.metrics import read
from train.optim import Optim

PACKING = Packing(length=512, rows=1, lookahead=8)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    families.tiny_llm("llama").save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


def trainer(llm, run, documents=40, resume=False, workers=0, optimizer="muon", **rest) -> Trainer:
    model = fusion.from_llm(llm, dtype=torch.float32)
    source = WorldSource(World())
    batches = Batches(lambda shard, shards: Mixture([source], seed=1, shard=shard, shards=shards), model.processor, PACKING, seed=2)
    settings = {
        "documents": documents, "workers": workers, "precision": "fp32", "ema": 0.9, "seed": 3, "log_every": 1, "save_every": 2,
        "validate_every": 2, "sample_every": 0, "keep": 3, "optim": Optim(optimizer=optimizer, warmup=3, lr=1e-3),
    }  # fmt: skip
    held = Mixture([source], seed="held out")
    held_out = {"world": fixed_batches([next(held) for _ in range(4)], model.processor, PACKING)}
    return Trainer(model, Loader(batches, workers), Objective(), Training(**settings | rest), run, held_out, resume=resume)


def tensors(folder) -> dict:
    names = ("weights.safetensors", "optimizer.safetensors", "model/model.safetensors")
    return {f"{name}/{key}": value for name in names for key, value in load_file(folder / name).items()}


def told(run) -> list[dict]:
    """Metrics without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("per_second")} for row in read(run / "metrics.jsonl")]


@pytest.mark.parametrize(("optimizer", "workers"), [("muon", 0), ("adamw", 2)])
def test_resuming_equals_never_having_stopped(llm, tmp_path, optimizer, workers):
    straight = trainer(llm, tmp_path / "straight", optimizer=optimizer, workers=workers).fit()
    assert straight.interrupted is None and straight.steps > 5
    stopped = trainer(llm, tmp_path / "stopped", optimizer=optimizer, workers=workers)
    stop_after(stopped, steps=3)
    first = stopped.fit()
    assert first.interrupted == "SIGTERM" and first.steps == 3
    second = trainer(llm, tmp_path / "stopped", resume=True, optimizer=optimizer, workers=workers).fit()
    assert (second.steps, second.seen) == (straight.steps, straight.seen)
    a, b = (tensors(tmp_path / name / "checkpoints" / f"step_{straight.steps}") for name in ("straight", "stopped"))
    assert a.keys() == b.keys() and any("/momentum/" in key or "/exp_avg/" in key for key in a)
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
    assert told(tmp_path / "straight") == told(tmp_path / "stopped")


def stop_after(run: Trainer, steps: int) -> None:
    """Let a SIGTERM arrive in the middle of a step."""
    import os
    import signal

    backward = run._backward

    def watched(*args):
        if run.step == steps - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(*args)

    run._backward = watched
