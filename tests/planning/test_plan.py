"""`fusion plan`: what it counts is what a real model, a real step and a real optimizer have; mistakes are one line."""

import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from fusion.cli import main as cli
from fusion.codecs.codec import load_codec
from fusion.common.config import load_config
from fusion.planning.fake_step import follow
from fusion.planning.forecast import forecast as forecast_of
from fusion.planning.forecast import parameters
from fusion.planning.planned_run import Shares
from fusion.planning.planned_unified import UnifiedSubject, counts, fullest
from fusion.recipes import unified
from fusion.testing import mixed_documents as mixed
from fusion.testing import tiny_llms as families
from fusion.testing import tiny_runs as training
from fusion.training.devices import DEVICES
from fusion.training.learner import recomputed
from fusion.training.optim import Optimizers
from fusion.unified.backbone import layers_of
from fusion.unified.objective import Objective, latents, losses
from tests.support import commands, marks

WORDS = ["stages=[{}]", "packing.length=128", "packing.rows=2", "packing.lookahead=8", "training.workers=0"]
WORDS += ["model.embed=linear", "model.head=linear"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A folder with the config of an LLM alone."""
    folder = tmp_path_factory.mktemp("bare")
    families.tiny_config("qwen3").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    """The same of an LLM of experts."""
    folder = tmp_path_factory.mktemp("experts")
    families.tiny_config("qwen3_moe").save_pretrained(folder)
    return folder


def config_of(llm: Path, *words: str) -> unified.Unified:
    return load_config(unified.Unified, None, [f"model.llm={llm}", *WORDS, *words])


@pytest.mark.parametrize(
    "words",
    [
        ["model.embed=conv", "model.head=conv+reference"],
        ["model.mode=mot", "training.optim.rates={llm.*: 0}"],
        ["model.mode=frozen", "model.image_width=32", "model.deep=hidden"],
        ["model.lora={rank: 4}"],
        ["model.time=none", "training.optim.rates={'*embed*': 0}"],
    ],
    ids=["shared", "mot", "frozen", "lora", "rates"],
)
def test_parameters_are_those_of_the_model_that_is_trained(llm, words):
    config = config_of(llm, *words)
    subject = UnifiedSubject(config, "sdpa")
    real, imagined = unified.build(config.model).model, subject.model
    assert not any(p.is_meta for p in imagined.parameters())
    for model in (real, imagined):
        Optimizers(model, config.training.optim)
    named = {name: (p.shape, p.requires_grad) for name, p in real.named_parameters()}
    assert {name: (p.shape, p.requires_grad) for name, p in imagined.named_parameters()} == named
    parts = parameters(subject)
    assert sum(count for count, _ in parts.values()) == sum(p.numel() for p in real.parameters())
    assert sum(trained for _, trained in parts.values()) == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert ("LoRA" in parts) == bool(config.model.lora) and ("weights for images" in parts) == (
        config.model.mode != "shared"
    )
    assert parts["LLM layers"][0] == sum(
        p.numel() for name, p in real.llm.model.layers.named_parameters() if "lora_" not in name
    )


@pytest.mark.parametrize(
    ("words", "attention"),
    [
        (["training.precision=fp32", "model.head=conv"], "matmul"),
        (
            ["training.precision=bf16", "training.optim.optimizer=muon", "model.mode=mot", "training.accumulate=2"],
            "sdpa",
        ),
        (["training.precision=fp32", "training.recompute=true"], "matmul"),
        pytest.param(
            ["training.precision=fp32", "training.optim.optimizer=adamw8bit"], "matmul", marks=marks.needs_bitsandbytes
        ),
    ],
)
def test_memory_is_that_of_a_real_step(llm, words, attention):
    """To the byte, and the optimizer's is that of its state."""
    config = config_of(llm, *words, f"model.attention={attention}")
    told = forecast_of(config)
    subject, fusion = told.subject, unified.build(config.model)
    packed, model = fullest([batch.packed for batch in _first(config, fusion.processor)]), fusion.model.train()
    given = [tensor for tensor in (*vars(packed).values(), *packed.pixels) if isinstance(tensor, Tensor)]

    def loss() -> Tensor:
        clean = latents(packed, fusion.codec, model.config.patch_size)
        return losses(model, clean, Objective(), torch.Generator().manual_seed(0)).total(1, 1)

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=told.precision == "bf16")
    with recomputed(layers_of(model.llm)) if config.training.recompute else nullcontext():
        assert told.memory == follow(model, fusion.codec, given, loss, config.training, autocast)
    optimizers = Optimizers(model, config.training.optim)
    for p in optimizers.names:
        p.grad = torch.zeros_like(p)
    optimizers.step()
    numbers = {
        key: value
        for key, value in optimizers.state_dict().items()
        if not (key.startswith("step/") and "adamw8bit" in str(words))
    }
    assert told.memory.optimizer == sum(
        tensor.nbytes for tensor in numbers.values()
    )  # that one counts its steps without a tensor
    assert told.memory.weights >= 4 * sum(count for count, _ in told.parameters.values())
    assert told.memory.gradients == told.memory.average == 4 * sum(trained for _, trained in told.parameters.values())
    assert subject.attention == attention


def _first(config: unified.Unified, processor) -> list:
    stream = iter(unified.batches(config, processor))
    return [next(stream) for _ in range(4)]


def test_what_is_shared_by_devices_and_by_batches(llm):
    config = config_of(llm, "training.documents=1000", "training.minutes=null")
    one, two = forecast_of(config), forecast_of(config, gpus=2, price=3.0, mfu=0.5, device="a100")
    memory = two.memory
    held = memory.weights + memory.optimizer + memory.average + memory.gradients
    assert (
        memory.peak >= held + 2 * memory.gradients and one.work == two.work
    )  # gradients in one piece, and a copy of that
    assert two.steps == math.ceil(1000 / (2 * two.shares.documents))
    assert two.step_seconds == pytest.approx(two.work / (0.5 * 312e12))
    assert two.cost == pytest.approx(3 * 2 * two.steps * two.step_seconds / 3600)
    several = forecast_of(config_of(llm, "training.accumulate=3"))
    assert (
        several.work == 3 * one.work and several.memory.peak > one.memory.peak
    )  # gradients wait while the next batch passes


def test_what_is_computed_again_is_not_kept(llm):
    kept, again = (forecast_of(config_of(llm, f"training.recompute={recompute}")) for recompute in ("false", "true"))
    assert again.memory.kept < 0.7 * kept.memory.kept and kept.work < again.work < 1.4 * kept.work


def test_devices_that_share_hold_a_part_each(llm):
    alone, (one, eight) = (
        forecast_of(config_of(llm)),
        (forecast_of(config_of(llm, "training.sharded=true"), gpus=gpus) for gpus in (2, 8)),
    )
    for name in ("weights", "optimizer", "average", "gradients"):
        whole = getattr(alone.memory, name)
        assert getattr(one.memory, name) == math.ceil(whole / 2) and getattr(eight.memory, name) == math.ceil(whole / 8)
    assert eight.memory.kept == alone.memory.kept and eight.memory.peak < one.memory.peak
    with pytest.raises(ValueError, match="one device has nobody to share with"):
        forecast_of(config_of(llm, "training.sharded=true"))


def test_rows_are_counted_by_what_they_are():
    packed = mixed.packed_rows([[mixed.story()], [mixed.drawing(), mixed.prose()]])
    rows = packed.ids.numel()
    shares = Shares.mean([counts(packed)] * 2)
    assert (shares.documents, shares.rows, shares.noised) == (3, rows, 20 + 6 + 4 + 12)
    assert shares.clean == 20 + 6 + 6 + 4 and shares.padding == int((packed.doc < 0).sum()) > 0


def test_an_autoencoder_counts_too(llm, tmp_path):
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
    }
    diffusers.AutoencoderKL(**blocks, norm_num_groups=4, layers_per_block=1, latent_channels=4).save_pretrained(
        tmp_path
    )
    told = forecast_of(config_of(llm, f"model.codec={tmp_path}", "model.patch_size=4"))
    assert (
        told.memory.codec == sum(p.nbytes for p in load_codec(tmp_path).parameters())
        and told.subject.model.config.target == "v"
    )
    assert not any(p.requires_grad for p in told.subject.codec.parameters())


# ---- the command ----


@pytest.mark.parametrize("device", DEVICES)
def test_the_command_knows_every_device(device):
    assert cli.parser().parse_args(["plan", "run.yaml", "--device", device]).device == device


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    """`plan(words...)` of an otherwise empty YAML file: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("packing: {length: 128, rows: 2}\nmodel: {embed: linear, head: linear}\n")
    return partial(commands.planned, capsys)


def test_the_config_of_an_llm_suffices(plan, bare):
    status, out, _ = plan(
        "run.yaml", f"model.llm={bare}", "--gpus", "8", "--price", "2.5", "--mfu", "0.3", "--device", "h200"
    )
    assert status == 0 and "assumed" in out and "8 x H200 SXM, at 30% (assumed) of 989 TFLOP/s" in out and "fits" in out
    assert {"LLM embeddings", "images out", "optimizer (adamw)", "kept for the backward pass", "padding"} <= {
        line.strip().split("  ")[0] for line in out.splitlines()
    }


def test_the_batch_is_drawn(plan, llm):
    status, out, _ = plan("run.yaml", f"model.llm={llm}", "stages=[{}]", "packing.lookahead=8", "--out", "batch.png")
    assert (
        status == 0
        and "4 batches of the data" in out
        and out.splitlines()[-1] == "batch.png"
        and Path("batch.png").stat().st_size > 1000
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["run.yaml", "model.llm=LLM", "packing.lenght=3"], "lenght"),
        (["run.yaml"], "model.llm"),
        (["run.yaml", "model.llm=nowhere/at_all"], "nowhere/at_all"),
        (["run.yaml", "model.llm=LLM", "--mfu", "0"], "mfu=0.0"),
        (["run.yaml", "model.llm=LLM", "--device", "abacus"], "abacus"),
        (["run.yaml", "model.llm=LLM", "model.mode=alone"], "mode='alone'"),
        (["run.yaml", "model.llm=LLM", "training.optim.rates={lm.*: 0}"], "no parameter is called"),
        (["run.yaml", "model.llm=BARE", "--out", "batch.png"], "no tokenizer"),
        (["run.yaml", "model.llm=EXPERTS"], "which experts of qwen3_moe compute"),
    ],
)
def test_mistakes_are_one_line(plan, llm, bare, experts, words, said):
    folders = {"model.llm=LLM": llm, "model.llm=BARE": bare, "model.llm=EXPERTS": experts}
    status, out, errors = plan(*(f"model.llm={folders[word]}" if word in folders else word for word in words))
    assert (status, out, len(errors)) == (2, "", 1) and errors[0].startswith("fusion: error: ") and said in errors[0]
