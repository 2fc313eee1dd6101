"""The training loop: exact means, nothing learned from a bad step, intervals, ends, ranks, and compiled layers."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fusion
from fusion.testing import tiny_runs as training
from fusion.training import trainer as loop
from fusion.training.learner import UnifiedLearner
from fusion.training.metrics import read
from fusion.training.trainer import NotFinite, Training
from fusion.training.validation import validate
from fusion.unified.objective import Objective
from tests.support import marks


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def batches(llm):
    """Four rows of the world's documents, one batch each."""
    return training.held_out(fusion.from_llm(llm, dtype=torch.float32).processor, count=14)[:4]


def one_step(llm, run, given, accumulate) -> dict[str, torch.Tensor]:
    """The gradients of the first step."""
    text_only = Objective(w_flow=0.0)  # the flow's noise depends on how rows fall into batches, text does not see it
    trainer = training.make(llm, run, training.Given(given), objective=text_only, accumulate=accumulate, validate=False)
    trainer.optimizers.step = lambda: gradients.update(
        {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    )
    gradients = {}
    trainer._at_intervals = lambda: setattr(trainer, "progress", 1.0)
    trainer.fit()
    return gradients


def test_accumulation_changes_nothing_but_memory(llm, batches, tmp_path):
    processor = fusion.from_llm(llm, dtype=torch.float32).processor
    (whole,) = training.held_out(processor, count=14, packing=replace(training.PACKING, rows=100))
    parts = training.held_out(processor, count=14)
    assert len(parts) > 2 and sum(len(part.keys) for part in parts) == len(whole.keys)
    a = one_step(llm, tmp_path / "a", [whole], accumulate=1)
    b = one_step(llm, tmp_path / "b", parts, accumulate=len(parts))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)


def test_a_convolutional_head_begins_when_it_is_told_to(llm, batches, tmp_path):
    first = len(batches[0].keys)
    trainer = training.make(
        llm, tmp_path, training.Given(batches), documents=3 * first, conv_from=first, validate=False
    )
    drawn, resting = trainer.model.flow_head.drawn.weight, []
    assert drawn.abs().max() == 0
    trainer._at_intervals = lambda: resting.append((trainer.model.flow_head.resting, bool(drawn.abs().max() == 0)))
    trainer.fit()
    assert resting[0] == (True, True) and resting[1] == (False, False)


def test_a_head_without_convolutions_has_none_to_begin(llm, batches, tmp_path):
    model = fusion.from_llm(llm, head="linear", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^conv_from: this model's head has no convolutions"):
        loop.Trainer(UnifiedLearner(model), training.Given(batches), Objective(), Training(conv_from=5), tmp_path)


def test_it_learns_and_writes_a_run_folder(llm, batches, tmp_path):
    shown = []

    def sample(folder: Path) -> None:
        assert not trainer.model.training
        shown.append((folder.name, {name: p.clone() for name, p in trainer.model.named_parameters()}))

    trainer = training.make(
        llm, tmp_path, training.Given(batches[:1]), sample, documents=150, sample_every=10, validate_every=10, keep=1
    )
    summary = trainer.fit()
    rows = read(tmp_path / "metrics.jsonl")
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    assert len(losses) == summary.steps and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert {
        "loss/text",
        "loss/control",
        "loss/flow",
        "grad_norm",
        "padding",
        "skipped",
        "lr",
        "per_second/tokens",
    } <= rows[0].keys()
    followed = [row for row in rows if "val/text" in row]
    assert len(followed) == len({row["step"] for row in followed}) >= 2
    assert {"val/control", "val/x_error", "val/text_of/world", "val/x_error_of/world"} <= followed[0].keys()
    assert [name for name, _ in shown] == [f"step_{row['step']}" for row in followed]
    assert checkpoints(tmp_path) == [f"step_{summary.steps}"]
    # What was shown last, what the checkpoint calls the model and what the caller has now are the averaged weights.
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, shown[-1][1][name]), name
    saved = load_file(tmp_path / "checkpoints" / f"step_{summary.steps}" / "model" / "model.safetensors")
    again = fusion.load(tmp_path / "checkpoints" / f"step_{summary.steps}" / "model")
    assert saved and all(
        torch.equal(p, q) for p, q in zip(trainer.model.parameters(), again.model.parameters(), strict=True)
    )


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_loss_that_is_not_a_number_stops_before_the_update(llm, batches, tmp_path):
    bad = next(batch for batch in batches if batch.packed.noised.any())
    pixels = tuple(image * float("nan") for image in bad.packed.pixels)
    poisoned = replace(bad, packed=replace(bad.packed, pixels=pixels))
    good = next(batch for batch in batches if batch is not bad)
    trainer = training.make(llm, tmp_path, training.Given([good, poisoned]), accumulate=2, documents=10**6)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(NotFinite) as caught:
        trainer.fit()
    line = str(caught.value)
    assert line.startswith("step 1: the loss is not finite; nothing was updated") and "\n" not in line
    assert all(key in line for key in bad.keys) and not any(key in line for key in good.keys)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not (tmp_path / "checkpoints").exists()


def test_the_learning_rate_follows_whichever_end_is_nearer(llm, batches, tmp_path):
    by_time = training.make(
        llm, tmp_path / "t", training.Given(batches), documents=10**9, minutes=1.5 / 60, validate_every=0, save_every=0
    )
    assert by_time.fit().seconds < 30
    rates = [row["lr"] for row in read(tmp_path / "t" / "metrics.jsonl")]
    assert max(rates) > 2 * rates[-1]  # on a busy machine few steps fit into the time
    with pytest.raises(ValueError, match="a run needs an end: set documents or minutes"):
        Training(documents=None)


def test_validation_is_the_same_at_every_call(llm, batches):
    model = fusion.from_llm(llm, dtype=torch.float32)
    look = partial(
        validate,
        UnifiedLearner(model),
        {"a": batches[:2], "b": batches[2:]},
        Objective(),
        0,
        torch.autocast("cpu", enabled=False),
    )
    first, second = look(), look()
    assert first == second and {"val/text_of/a", "val/x_error_of/b"} <= first.keys()
    bins = {name: value for name, value in first.items() if name.startswith("val/x_error/")}
    assert len(bins) >= 3 and all(value > 0 for value in bins.values())
    tilted = Objective(
        times="logit_normal", mean=3.0, shift=5.0, w_text=9.0
    )  # how training draws times must not matter
    assert (
        validate(
            UnifiedLearner(model), {"a": batches[:2], "b": batches[2:]}, tilted, 0, torch.autocast("cpu", enabled=False)
        )
        == first
    )


COMPILED = """
import sys
from functools import partial
from pathlib import Path
import torch
import fusion
from fusion.testing import tiny_runs as training
from fusion.training import trainer as loop
loop.torch.compile = partial(torch.compile, backend="aot_eager")  # captures the same; no C++ compiler runs
llm, run = Path(sys.argv[1]), Path(sys.argv[2])
batches = training.held_out(fusion.from_llm(llm, dtype=torch.float32).processor)
for kind in ("eager", "compiled"):
    trainer = training.make(llm, run / kind, training.Given(batches[:1]), compile=kind == "compiled", documents=20)
    trainer.fit()
layers = trainer.model.llm.model.layers
with trainer.learner.compiled():
    assert all("forward" in vars(layer) for layer in layers)
assert not any("forward" in vars(layer) for layer in layers)
assert torch._dynamo.utils.counters["frames"]["ok"] > 0
"""


def test_compiled_layers_compute_the_same(llm, tmp_path, root):
    """In a process of its own: the shape checks of the tests cannot be compiled."""
    (tmp_path / "program.py").write_text(COMPILED)
    subprocess.run(
        [sys.executable, tmp_path / "program.py", llm, tmp_path], env=os.environ | {"PYTHONPATH": str(root)}, check=True
    )
    eager, compiled = (read(tmp_path / kind / "metrics.jsonl") for kind in ("eager", "compiled"))
    assert len(eager) == len(compiled) > 3
    for key in ("loss/total", "val/text", "val/x_error"):
        assert [row[key] for row in compiled if key in row] == pytest.approx(
            [row[key] for row in eager if key in row], rel=1e-3
        )


def test_where_nothing_can_be_compiled_layers_run_as_they_are(llm, tmp_path, monkeypatch, capsys):
    def no_compiler(function):
        raise RuntimeError("g++: not found\n  File deep inside")

    monkeypatch.setattr(torch, "compile", no_compiler)
    batches = training.held_out(fusion.from_llm(llm, dtype=torch.float32).processor)
    training.make(llm, tmp_path / "run", training.Given(batches[:1]), compile=True, documents=4).fit()
    told = [line for line in capsys.readouterr().err.splitlines() if "training.compile" in line]
    assert told == [
        "training.compile: torch.compile does not work here, and layers run as they are (RuntimeError: g++: not found)"
    ]
    assert read(tmp_path / "run" / "metrics.jsonl")[-1]["step"] > 0


PROGRAM = """
import sys
from pathlib import Path
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from fusion.worlds.shapes import World
from fusion.data.formats import BadSample, WorldSource
from fusion.testing import tiny_runs as training
from fusion.training.processes import leave

class Flawed(WorldSource):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index % 5 == 0:
            raise BadSample(f"world:{index}", "is unlucky")
        return super().__getitem__(index)

training.SOURCE = Flawed(World())
ranks = PartialState(cpu=True)
llm, run, accumulate, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
trainer = training.make(llm, run, rank=ranks.process_index, world=ranks.num_processes, accumulate=accumulate,
                        workers=workers, documents=240,
                        optimizer=sys.argv[5], mode=sys.argv[6],
                        sharded=sys.argv[7] == "sharded" and ranks.num_processes > 1,
                        save_every=10, validate_every=10)
assert all(isinstance(p, DTensor) for p in trainer.model.parameters()) == trainer.settings.sharded
trainer.fit()
leave()
"""


@pytest.mark.parametrize(
    "optimizer, mode, sharing, port",
    [
        ("adamw", "shared", "copied", "29517"),
        ("muon", "shared", "copied", "29518"),
        pytest.param("muon", "shared", "sharded", "29519", marks=marks.needs_shards),
        pytest.param("adamw", "mot", "sharded", "29520", marks=marks.needs_shards),
        pytest.param("muon", "frozen", "sharded", "29521", marks=marks.needs_shards),
    ],
)
def test_two_ranks_equal_one_that_accumulates(optimizer, mode, sharing, port, llm, tmp_path, root):
    """The shards of two ranks are those of two workers of one rank, so documents, noise and global counts are the
    same."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    common = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    alone = subprocess.Popen(
        [sys.executable, program, llm, tmp_path / "one", "2", "2", optimizer, mode, sharing], env=common
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, program, llm, tmp_path / "two", "1", "0", optimizer, mode, sharing],
            env=common
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            },
        )
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in (alone, *ranks)] == [0, 0, 0]
    (name,) = set(checkpoints(tmp_path / "one")[-1:]) & set(checkpoints(tmp_path / "two"))
    for file in ("weights.safetensors", "model/model.safetensors"):
        one, two = (load_file(tmp_path / run / "checkpoints" / name / file) for run in ("one", "two"))
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], atol=2e-4, rtol=0)
    a, b = (read(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert len(a) == len(b) and a[-1]["step"] >= 20
    for mine, theirs in zip(a, b, strict=True):
        same = [key for key in mine if key not in ("time", "memory_gib") and not key.startswith("per_second")]
        assert {key: mine[key] for key in same} == pytest.approx({key: theirs[key] for key in same}, rel=1e-5)
    told = [sorted((tmp_path / run / "skipped.txt").read_text().splitlines()) for run in ("one", "two")]
    assert told[0] == told[1] == sorted(f"world:{n}: is unlucky" for n in range(0, 20, 5)), (
        "each once, whichever ranks met it"
    )
    assert [row["skipped"] for row in b if "skipped" in row][-1] == 4
    streams = json.loads((tmp_path / "two" / "checkpoints" / name / loop.STATE).read_text())["streams"]
    assert len(streams) == 2 and {shard for stream in streams for shard in stream["shards"]} == {"0", "1"}


RESUMED = """
import sys
from pathlib import Path
from accelerate import PartialState
from fusion.testing import tiny_runs as training
from fusion.training.processes import leave
ranks = PartialState(cpu=True)
llm, out = map(Path, sys.argv[1:])
drawn = []
def make(run, **settings):
    return training.make(llm, out / run, rank=ranks.process_index, world=ranks.num_processes, sharded=True,
                         optimizer="muon", documents=60,
                         sample=drawn.append, **settings)
straight = make("straight").fit()
stopped = make("stopped")
at, one_step = 3, stopped._one_step
def asked(interrupts):
    if stopped.step == at - 1 and ranks.is_main_process:
        (out / "stopped" / "stop").touch()
    return one_step(interrupts)
stopped._one_step = asked
assert stopped.fit().steps == at
assert make("stopped", resume=True).fit().steps == straight.steps > at
assert bool(drawn) == ranks.is_main_process
leave()
"""


@marks.needs_shards
def test_shards_are_resumed_bit_for_bit(llm, tmp_path, root):
    (tmp_path / "program.py").write_text(RESUMED)
    common = os.environ | {
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
        "WORLD_SIZE": "2",
    }
    command = [sys.executable, tmp_path / "program.py", llm, tmp_path]
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29522"}
    ranks = [
        subprocess.Popen(command, env=common | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in ranks] == [0, 0]
    name = checkpoints(tmp_path / "straight")[-1]
    for file in ("weights.safetensors", "optimizer.safetensors", "model/model.safetensors"):
        straight, resumed = (load_file(tmp_path / run / "checkpoints" / name / file) for run in ("straight", "stopped"))
        assert straight.keys() == resumed.keys() and all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_recomputed_layers_learn_the_same_and_are_passed_twice(llm, batches, tmp_path):
    rows, passed = {}, {}
    for recompute in (False, True):
        trainer = training.make(
            llm,
            tmp_path / str(recompute),
            training.Given(batches),
            recompute=recompute,
            documents=4 * len(batches[0].keys),
        )
        layer, seen = trainer.learner.units()[0], []
        layer.mlp.register_forward_pre_hook(lambda *_, seen=seen: seen.append(torch.is_grad_enabled()))
        trainer.fit()
        assert "forward" not in vars(layer)
        rows[recompute] = [
            row["loss/total"] for row in read(tmp_path / str(recompute) / "metrics.jsonl") if "loss/total" in row
        ]
        passed[recompute] = sum(seen)
    assert len(rows[True]) > 2 and rows[True] == pytest.approx(rows[False], rel=1e-6)
    assert passed[True] == 2 * passed[False] > 0


@marks.needs_shards
def test_one_rank_has_nobody_to_share_with(llm, tmp_path):
    with pytest.raises(ValueError, match="sharded: one rank has nobody to share with"):
        training.make(llm, tmp_path, sharded=True)


def test_batches_for_another_number_of_ranks_are_refused(llm, tmp_path):
    with pytest.raises(ValueError, match="dealt to 3 ranks but 1 run"):
        training.make(llm, tmp_path, rank=0, world=3)
