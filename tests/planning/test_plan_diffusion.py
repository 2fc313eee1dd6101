"""`fusion plan` of train.diffusion: counts equal those of a real model, step and optimizer; one-line errors."""

import json
import math
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from itertools import islice
from pathlib import Path

import diffusers
import pytest
import torch
from transformers import CLIPConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from fusion.codecs.codec import load_codec
from fusion.common.config import load_config
from fusion.diffusion import make_text_to_image
from fusion.diffusion.architectures import ARCHITECTURES
from fusion.diffusion.networks.experts import evenly
from fusion.planning.fake_step import follow
from fusion.planning.forecast import Forecast, forecast
from fusion.planning.plan import kind_of, table
from fusion.recipes import diffusion
from fusion.recipes.unified import Unified
from fusion.testing import tiny_runs as training
from fusion.testing.reference_networks import small
from fusion.training.learner import recomputed
from fusion.training.optim import Optimizers
from tests.support import commands


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


def config_of(llm: Path, *words: str, architecture: str = "dit") -> diffusion.Diffusion:
    known = {field.name for field in fields(ARCHITECTURES[architecture].config)}
    reads = ", layers: [1, 2]" if "reads" in known else ""
    network = json.dumps(small(architecture, patch_size=8) | {"width": 32, "heads": 2})
    words = [f"text_to_image.architecture={architecture}", f"text_to_image.network={network}", *words]
    words = [
        f"text_to_image.texts=[{{path: {llm}{reads}}}]",
        "stages=[{tasks: {text_to_image: 1.0}}]",
        "pairing.rows=8",
        "training.workers=0",
        *words,
    ]
    return load_config(diffusion.Diffusion, None, words)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_those_of_the_text_to_image_that_is_trained(llm, architecture):
    config = config_of(llm, architecture=architecture)
    told, real = forecast(config), make_text_to_image(config.text_to_image)
    Optimizers(real, config.training.optim)
    named = {name: (p.shape, p.requires_grad) for name, p in real.named_parameters()}
    assert {name: (p.shape, p.requires_grad) for name, p in told.subject.model.named_parameters()} == named
    assert sum(count for count, _ in told.parameters.values()) == sum(p.numel() for p in real.parameters())
    assert sum(trained for _, trained in told.parameters.values()) == sum(p.numel() for p in real.network.parameters())
    assert told.parameters["text encoder 1"] == (sum(p.numel() for p in real.texts.parameters()), 0)
    assert told.work > 0 and told.reading > 0 and told.memory.kept > 0 and "\n".join(table(told))


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("dit", ["training.precision=fp32"]),
        ("mmdit", ["training.precision=bf16", "training.optim.optimizer=muon", "training.accumulate=2"]),
        ("pixart", ["training.precision=fp32", "training.recompute=true"]),
        ("unet", ["training.precision=fp32"]),
        ("hidream", ["training.precision=fp32"]),
        ("dit", ["training.precision=fp32", "trained"]),
    ],
    ids=["dit", "mmdit", "recompute", "unet", "experts", "trained texts"],
)
def test_memory_is_that_of_a_real_step(llm, architecture, words):
    """To the byte."""
    if trained := "trained" in words:
        words = [*words[:-1], f"text_to_image.texts=[{{path: {llm}, trained: true}}]"]
    config = config_of(llm, *words, architecture=architecture)
    told, text_to_image = forecast(config), make_text_to_image(config.text_to_image).train()
    learner = diffusion.TextToImageLearner(text_to_image)
    batch = max(
        islice(iter(diffusion.batches(config, text_to_image.stride)), 4),
        key=lambda batch: told.subject._counts(batch)[0],
    )

    def loss() -> torch.Tensor:
        with evenly(text_to_image.network):
            return learner.losses(batch, config.objective, torch.Generator().manual_seed(0)).total(1, 1)

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=told.precision == "bf16")
    with recomputed(diffusion.blocks_of(text_to_image.network)) if config.training.recompute else nullcontext():
        assert told.memory == follow(
            text_to_image, text_to_image.codec, [batch.pixels], loss, config.training, autocast
        )
    assert (told.reading == 0) == trained and told.memory.gradients == 4 * sum(
        p.numel() for p in text_to_image.parameters() if p.requires_grad
    )


def test_texts_may_be_read_by_several(llm, tmp_path):
    """A T5 and the half of a CLIP that reads, of configurations alone."""
    T5Config(vocab_size=100, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2).save_pretrained(tmp_path / "t5")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPConfig(text_config=sizes).save_pretrained(tmp_path / "clip")
    told = forecast(
        config_of(
            llm,
            f"text_to_image.texts=[{{path: {llm}}}, {{path: {tmp_path}/t5}}, {{path: {tmp_path}/clip, pooled: own}}]",
        )
    )
    t5 = T5EncoderModel(T5Config.from_pretrained(tmp_path / "t5"))
    clip = CLIPTextModelWithProjection(CLIPConfig.from_pretrained(tmp_path / "clip").text_config)
    for number, real in ((2, t5), (3, clip)):
        assert told.parameters[f"text encoder {number}"] == (sum(p.numel() for p in real.parameters()), 0)
    assert told.reading > forecast(config_of(llm)).reading


def test_an_autoencoder_counts_too(llm, tmp_path):
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 4),
    }
    diffusers.AutoencoderKL(**blocks, norm_num_groups=4, layers_per_block=1, latent_channels=4).save_pretrained(
        tmp_path
    )
    told = forecast(config_of(llm, f"text_to_image.codec={tmp_path}", "text_to_image.network.patch_size=4"))
    assert (
        told.memory.codec == sum(p.nbytes for p in load_codec(tmp_path).parameters())
        and "target v" in told.subject.title
    )


def test_devices_that_share_hold_a_part_of_the_network_and_all_of_the_texts(llm):
    alone, eight = forecast(config_of(llm)), forecast(config_of(llm, "training.sharded=true"), gpus=8)
    texts = alone.subject.whole()
    assert texts == 4 * alone.parameters["text encoder 1"][0]
    assert eight.memory.weights == texts + math.ceil((alone.memory.weights - texts) / 8)
    assert eight.memory.optimizer == math.ceil(alone.memory.optimizer / 8) and eight.memory.kept == alone.memory.kept


def test_rows_are_counted_by_what_they_are(llm):
    told: Forecast = forecast(config_of(llm))
    batch = told.subject.taken[0]
    mask = told.subject.model.texts[0].tokens(batch.texts)[1]
    shares = told.shares
    assert (shares.documents, shares.clean, shares.noised) == (
        8,
        0,
        8 * (batch.pixels.shape[2] // 8) * (batch.pixels.shape[3] // 8),
    )
    assert told.subject._counts(batch) == (int(mask.sum()), 0, shares.noised, int((~mask).sum()), 8)


# ---- the command ----


@pytest.fixture
def plan(capsys, tmp_path, monkeypatch):
    """`plan(words...)` of a YAML file that is based on another: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(
        "text_to_image: {architecture: dit, network: {layers: 2, heads: 2, patch_size: 8, width: 32}}\n"
    )
    Path("run.yaml").write_text("base: base.yaml\npairing: {rows: 4}\n")
    return partial(commands.planned, capsys)


def test_the_config_of_an_llm_suffices(plan, llm, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((llm / "config.json").read_bytes())
    status, out, _ = plan(
        "run.yaml",
        f"text_to_image.texts=[{{path: {bare}}}]",
        "text_to_image.size=[64, 32]",
        "--gpus",
        "8",
        "--price",
        "2",
    )
    assert (
        status == 0
        and "assumed, for the data cannot be read here" in out
        and "8 x H100 SXM" in out
        and "reading texts, on top" in out
    )
    noised = next(line for line in out.splitlines() if "noised" in line)
    assert noised.split()[4] == f"{8 * 4 * 8 * 4:,}"  # images of 8 x 4 patches, 4 for each of 8 devices


def test_pairs_are_drawn(plan, llm):
    status, out, _ = plan(
        "run.yaml",
        f"text_to_image.texts=[{{path: {llm}}}]",
        "stages=[{tasks: {text_to_image: 1.0}}]",
        "--out",
        "pairs.png",
    )
    assert status == 0 and out.splitlines()[-1] == "pairs.png" and Path("pairs.png").stat().st_size > 1000


def test_whose_config_it_is(plan):
    Path("other.yaml").write_text("model: {llm: x}\n")
    assert kind_of("run.yaml", []) is diffusion.Diffusion and kind_of("other.yaml", []) is Unified
    assert kind_of("other.yaml", ["text_to_image.codec=pixel"]) is diffusion.Diffusion


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run.yaml"], "no text encoder: give at least one"),
        (["run.yaml", "text_to_image.texts=[{path: nowhere/at_all}]"], "nowhere/at_all: no text encoder can be loaded"),
        (["run.yaml", "TEXTS", "text_to_image.architecture=abacus"], "architecture 'abacus': choose one of"),
        (["run.yaml", "TEXTS", "text_to_image.network.depth=3"], "dit has no setting 'depth'"),
        (["run.yaml", "TEXTS", "text_to_image.codec=nowhere"], "nowhere"),
        (["run.yaml", "TEXTS", "training.sharded=true"], "one device has nobody to share with"),
        (["run.yaml", "TEXTS", "paintr.codec=pixel"], "paintr"),
        (
            [
                "run.yaml",
                "TEXTS",
                "text_to_image.architecture=hidream",
                "text_to_image.network={heads: 2, width: 32, layers: 1}",
            ],
            "layers",
        ),
    ],
)
def test_mistakes_are_one_line(plan, llm, words, said):
    status, out, errors = plan(
        *(f"text_to_image.texts=[{{path: {llm}}}]" if word == "TEXTS" else word for word in words)
    )
    assert (status, out, len(errors)) == (2, "", 1) and errors[0].startswith("fusion: error: ") and said in errors[0]
