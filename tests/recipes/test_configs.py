"""Every config loads and trains two steps in a debug size, on generated data and on real data if present."""

import importlib
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
from PIL import Image, ImageDraw
from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM

import fusion
from fusion.common.config import load_config
from fusion.diffusion import make_text_to_image
from fusion.diffusion.architectures import ARCHITECTURES
from fusion.recipes import unified
from fusion.recipes.diffusion import Diffusion
from fusion.testing import tiny_llms as families
from fusion.testing import tiny_runs as training
from fusion.training.metrics import read
from tests.support import spellings

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for folder in (".", "recipes")
    for path in (CONFIGS / folder).glob("*.yaml")
)
CLASSES = {
    "train.llm": "Pretraining",
    "train.codec": "CodecRun",
    "train.demo": "Demo",
    "train.unified": "Unified",
    "train.diffusion": "Diffusion",
}
NEEDED = {"train.unified": ["model.llm=some_llm", "data.path=some_folder"]}  # what a person gives

DEBUG = [
    "packing.length=384",
    "packing.rows=1",
    "packing.lookahead=2",
    "training.documents=5",
    "training.minutes=null",
    "training.workers=0",
    "training.log_every=1",
    "training.precision=fp32",
    "training.compile=false",
    "training.optim.warmup=1",
    "validation.documents=2",
    "samples.held_out=1",
    "samples.steps=2",
    "samples.max_new_tokens=2",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A tiny Llama with a byte-level tokenizer, as `make demo` leaves one."""
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def smollm(tmp_path_factory) -> Path:
    """SmolLM2 in small: its config's fields, tied embeddings, GPT-2's tokenizer class, ChatML; random weights."""
    folder = tmp_path_factory.mktemp("smollm")
    spellings.byte_level().save_pretrained(folder)
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = spellings.CHATML
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=families.VOCAB + 8,
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        initializer_range=0.042,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """An AutoencoderKL as diffusers saves it: 8 pixels to a latent as Stable Diffusion's, few channels, random
    weights."""
    folder = tmp_path_factory.mktemp("vae")
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Captioned images, edit pairs of two kinds, and pages longer than a row."""
    root, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    rows, pairs, pages = [], [], []
    for subject in range(20):
        colour = tuple(rng.randrange(256) for _ in range(3))
        for style in ("flat", "round"):
            (root / style).mkdir(exist_ok=True)
            image = Image.new("RGB", (40, 48), "white")
            draw = ImageDraw.Draw(image)
            (draw.rectangle if style == "flat" else draw.ellipse)((6, 8, 34, 40), fill=colour)
            image.save(root / style / f"{subject}.png")
            rows.append({"file_name": f"{style}/{subject}.png", "text": f"thing {subject}, {style} style"})
        kind = ("style", "skin tone")[subject % 2]
        pair = {"input_file_name": f"flat/{subject}.png", "edited_file_name": f"round/{subject}.png"}
        pairs.append(pair | {"instruction": "make it round", "kind": kind, "subject": f"thing {subject}"})
        words = [{"type": "text", "text": f"Paragraph {number} of page {subject}. " * 6} for number in range(6)]
        pages.append({"content": [*words[:3], {"type": "image", "image": f"flat/{subject}.png"}, *words[3:]]})
    for name, table in (("metadata", rows), ("edits", pairs), ("documents", pages)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return root


def two_steps(name: str, run: Path, *words: str) -> fusion.Fusion:
    """Train as the command line does, check what the run left, and return the saved model."""
    assert unified.main([str(CONFIGS / f"{name}.yaml"), *DEBUG, f"run={run}", *words]) == 0
    rows = read(run / "metrics.jsonl")
    assert rows[-1]["step"] >= 2
    assert {"loss/text", "loss/flow", "val/text", "val/x_error"} <= {metric for row in rows for metric in row}
    assert (run / "report.html").stat().st_size > 10_000
    return fusion.load(run / "model")


@pytest.mark.parametrize("name", NAMES)
def test_every_config_says_how_to_run_it_and_loads(name):
    path = CONFIGS / f"{name}.yaml"
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    program = re.search(r"-m (train\.\w+)", head)[1]
    assert "Cost:" in head
    kind = getattr(importlib.import_module(program.replace("train.", "fusion.recipes.")), CLASSES[program])
    assert isinstance(load_config(kind, path, NEEDED.get(program, [])), kind)


@pytest.mark.parametrize("name", ["unified", "alice", "images"])
def test_two_steps(name, tiny, folder, tmp_path):
    model = two_steps(name, tmp_path / "run", f"model.llm={tiny}", f"data.path={folder}", "data.max_side=32")
    assert model.processor.stride == 8


def test_two_steps_of_emoji_show_held_out_subjects(tiny, folder, tmp_path):
    two_steps(
        "emoji", tmp_path / "run", f"model.llm={tiny}", f"data.path={folder}", "data.size=[16,16]", "data.held_out=0.2"
    )
    report = (tmp_path / "run" / "report.html").read_text()
    for title in ("Held-out characters, from their names", "edits of skin tone", "edits of style"):
        assert title in report
    assert report.count("came nearer to what was wanted") == 2


def test_two_steps_of_smollm2_with_a_vae(smollm, vae, folder, tmp_path):
    words = [
        f"model.llm={smollm}",
        f"model.codec={vae}",
        f"data.path={folder}",
        "data.max_side=48",
        f"model.latents={tmp_path}/latents",
    ]
    model = two_steps("smollm2", tmp_path / "run", *words)
    assert model.processor.stride == 16 and model.model.config.target == "v"
    assert list(Path(tmp_path, "latents").rglob("*.safetensors"))
    assert model.draw("a thing", image_size=(32, 48), steps=2)[0].size == (32, 48)


@pytest.mark.parametrize("name", ["laptop", "gpu24", "h200"])
def test_two_steps_of_recipes(name, smollm, vae, folder, tmp_path):
    codec = [] if name == "laptop" else [f"model.codec={vae}"]
    words = [f"model.llm={smollm}", *codec, f"data.path={folder}", "data.max_side=48", "training.accumulate=1"]
    model = two_steps(f"recipes/{name}", tmp_path / "run", *words)
    config = model.model.config
    assert (config.mode, bool(config.lora)) == {
        "laptop": ("shared", True),
        "gpu24": ("shared", False),
        "h200": ("mot", False),
    }[name]


@pytest.mark.parametrize(("name", "data"), [("emoji", "emoji"), ("alice", "alice")])
def test_two_steps_on_the_real_data(name, data, tiny, shared_data, tmp_path):
    words = [
        f"model.llm={tiny}",
        f"data.path={shared_data / data}",
        "training.documents=40",
        "evaluation=null",
    ]  # most pages have no image
    size = "data.size=[16,16]" if name == "emoji" else "data.max_side=32"
    assert two_steps(name, tmp_path / "run", size, *words).processor.stride == 8


TEXT_TO_IMAGE_MODELS = [name for name in NAMES if "train.diffusion" in (CONFIGS / f"{name}.yaml").read_text()]


@pytest.mark.parametrize("name", TEXT_TO_IMAGE_MODELS)
def test_every_architecture_has_a_config_that_builds_it(name, tiny):
    config = load_config(Diffusion, CONFIGS / f"{name}.yaml")
    texts = [replace(one, path=str(tiny), layers=[0, 1, 2] if one.layers else []) for one in config.text_to_image.texts]
    text_to_image = make_text_to_image(replace(config.text_to_image, texts=texts))
    assert config.run == f"out/{name}" and config.text_to_image.architecture == name
    assert 1.5e6 < sum(p.numel() for p in text_to_image.network.parameters()) < 5e6
    assert text_to_image.draw("draw a red circle", steps=1)[0].size == (32, 32)


def test_every_architecture_has_a_config():
    assert set(TEXT_TO_IMAGE_MODELS) == set(ARCHITECTURES)
