"""Compare the memory that `fusion plan` forecasts with what training takes, on CPU: `python -m bench.plan`

A Llama of 110 M parameters with random weights, and a DiT of 115 M with it as text encoder, train on the built-in world
for two steps of fusion.training.trainer's own, each in a process of its own. What is measured is the growth of its peak
resident memory over that of the same process before there was a model: with a malloc that returns freed memory
(fusion.planning.plan.GIVES_BACK), and with glibc's default, which does not find room for aligned blocks in the holes
that others of their size left.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench import measure
from fusion.common.config import load_config
from fusion.diffusion import make_text_to_image
from fusion.planning.forecast import Run, forecast
from fusion.planning.plan import GIVES_BACK, GLIBC
from fusion.recipes import diffusion, unified
from fusion.recipes.tokenizer import train_tokenizer
from fusion.training.trainer import Trainer
from fusion.worlds.shapes import plain_text

TARGET = 0.15  # largest error, as a share of the measured growth
STEPS = 2  # the second has the optimizer's state from its start
COMMON = [
    "training.workers=0",
    "training.validate_every=0",
    "training.sample_every=0",
    "validation.documents=1",
    "samples.held_out=0",
    "training.optim.warmup=1",
]
UNIFIED = ["model.llm=LLM", "stages=[{}]", "packing.length=512", "packing.rows=4", *COMMON]
DIFFUSION = [
    "text_to_image.texts=[{path: LLM}]",
    "text_to_image.network={patch_size: 4, width: 768, layers: 12, heads: 12}",
    "pairing.rows=24",
    "stages=[{tasks: {text_to_image: 1.0}, sizes: {64x64: 1.0}}]",
    *COMMON,
]
ADAMW, MUON = ["training.precision=fp32"], ["training.precision=bf16", "training.optim.optimizer=muon"]
CASES = {
    "fp32, adamw": UNIFIED + ADAMW,
    "bf16, muon": UNIFIED + MUON,
    "DiT, fp32, adamw": DIFFUSION + ADAMW,
    "DiT, bf16, muon": DIFFUSION + MUON,
}


class Enough(Exception):
    """Raised when the wanted number of steps is done."""


class Counted:
    """A loader that raises Enough after STEPS batches."""

    def __init__(self, loader):
        self.loader, self.batches, self.left = loader, loader.batches, STEPS

    def __next__(self):
        if not self.left:
            raise Enough
        self.left -= 1
        return next(self.loader)


def save_llm(folder: Path) -> None:
    """Save a random Llama like SmolLM2 with tied embeddings, and a tokenizer with fewer tokens than its vocabulary."""
    draw = np.random.default_rng(0)
    tokenizer = train_tokenizer("bpe", [plain_text(draw) for _ in range(200)], 400)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def config_of(words: list[str]) -> Run:
    """Parse config entries key=value as the config of the recipe they belong to."""
    text_to_image = any(word.startswith("text-to-image model.") for word in words)
    return load_config(diffusion.Diffusion if text_to_image else unified.Unified, None, words)


def trainer_of(config: Run) -> Trainer:
    """Build the model and the trainer of a config."""
    if isinstance(config, diffusion.Diffusion):
        return diffusion.trainer_for(config, make_text_to_image(config.text_to_image))
    return unified.trainer_for(config, unified.build(config.model))


def train(words: list[str]) -> None:
    """Train two steps, and print by how many bytes the process grew, as JSON."""
    config = config_of(words)
    idle = resident("VmRSS")
    trainer = trainer_of(config)
    trainer.loader = Counted(trainer.loader)
    try:
        trainer.fit()
    except Enough:
        print(json.dumps({"growth": resident("VmHWM") - idle}))


def resident(name: str) -> int:
    """Return a memory figure of this process in bytes, as Linux counts it: VmRSS (now) or VmHWM (peak so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def growth(words: list[str], environment: dict[str, str]) -> int:
    """Train in another process and return the bytes that it grows by; raises ValueError if it fails."""
    command = [sys.executable, "-m", "bench.plan", "--train", *words]
    asked = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if asked.returncode:
        raise ValueError(asked.stderr.strip().splitlines()[-1])
    return json.loads(asked.stdout.splitlines()[-1])["growth"]


def compared(llm: Path, case: list[str]) -> dict[str, float]:
    """Return forecast and measured memory in MiB, and their difference as a share of the latter."""
    name, _, value = GIVES_BACK.partition("=")
    figures = {}
    for kind, factor, environment in (("", 1.0, {name: value}), (", as glibc has it", GLIBC, {})):
        with tempfile.TemporaryDirectory() as run:
            words = [f"run={run}", *(word.replace("LLM", str(llm)) for word in case)]
            planned = forecast(config_of(words), device="cpu").memory.peak
            measured = growth(words, environment)
        told = round(factor * planned)
        figures |= {
            f"planned{kind}, MiB": told >> 20,
            f"measured{kind}, MiB": measured >> 20,
            f"off{kind}": round(told / measured - 1, 3),
        }
    return figures


def main(arguments: list[str]) -> int:
    """Compare each case, print the figures, and write them to bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        help="some; bf16 is ten times as slow on CPUs without it",
    )
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)  # arguments of the measured process
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.train:
        train(options.train)
        return 0
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        save_llm(Path(folder))
        for name in options.only:
            figures[name] = compared(Path(folder), CASES[name])
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    print(measure.write("plan", {"target": TARGET, "steps": STEPS, "cases": CASES, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
