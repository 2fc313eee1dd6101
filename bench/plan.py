"""What `fusion plan` says of memory against what training then takes, on CPU. `python -m bench.plan`

A Llama of 110 M parameters with random weights learns the built-in world for two steps of train.loop's own in a process of its own. What is
measured is the growth of its largest resident memory over that of the same process before there was a model.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench import measure
from fusion.data.shapes import plain_text
from train import unified
from train.config import load_config
from train.forecast import forecast
from train.tokenizer import train_tokenizer

TARGET = 0.15  # of the measured growth
STEPS = 2  # the second has the optimizer's state from its beginning
SETTINGS = [
    "world=1", "data.path=.", "stages=[{}]", "packing.length=512", "packing.rows=4", "training.workers=0", "training.validate_every=0",
    "training.sample_every=0", "validation.documents=1", "samples.held_out=0", "training.optim.warmup=1",
]  # fmt: skip
CASES = {
    "fp32, adamw": ["training.precision=fp32"],
    "bf16, muon": ["training.precision=bf16", "training.optim.optimizer=muon"],
    "fp32, adamw, lora": ["training.precision=fp32", "model.lora={rank: 8}"],
}


class Enough(Exception):
    """The steps that were wanted are done."""


class Counted:
    """A loader that stops the run after so many batches."""

    def __init__(self, loader):
        self.loader, self.batches, self.left = loader, loader.batches, STEPS

    def __next__(self):
        if not self.left:
            raise Enough
        self.left -= 1
        return next(self.loader)


def save_llm(folder: Path) -> None:
    """A Llama of SmolLM2's kind with tied embeddings, and a tokenizer that has fewer tokens than it."""
    draw = np.random.default_rng(0)
    tokenizer = train_tokenizer("bpe", [plain_text(draw) for _ in range(200)], 400)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(words: list[str]) -> None:
    """Two steps; prints how many bytes the process grew, as JSON."""
    config = load_config(unified.Unified, None, words)
    idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    trainer = unified.trainer_for(config, unified.build(config.model))
    trainer.loader = Counted(trainer.loader)
    try:
        trainer.fit()
    except Enough:
        print(json.dumps({"growth": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - idle}))


def compared(llm: Path, case: list[str]) -> dict[str, float]:
    """What is said and what is measured, in MiB, and by how much of the latter they differ."""
    with tempfile.TemporaryDirectory() as run:
        words = [f"model.llm={llm}", f"run={run}", *SETTINGS, *case]
        told = forecast(load_config(unified.Unified, None, words), device="cpu")
        asked = subprocess.run([sys.executable, "-m", "bench.plan", "--train", *words], capture_output=True, text=True)
    if asked.returncode:
        raise ValueError(asked.stderr.strip().splitlines()[-1])
    growth = json.loads(asked.stdout.splitlines()[-1])["growth"]
    planned = told.memory.peak
    return {"planned_mib": round(planned / 2**20), "measured_mib": round(growth / 2**20), "off": round(planned / growth - 1, 3)}


def main(arguments: list[str]) -> int:
    """Compare each case, print, write down."""
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES, help="one of them")
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)  # what the process that is measured is told
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.train:
        train(options.train)
        return 0
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        save_llm(Path(folder))
        for name in [options.only] if options.only else CASES:
            figures[name] = compared(Path(folder), CASES[name])
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    if not options.only:
        print(measure.write("plan", {"target": TARGET, "steps": STEPS, "settings": SETTINGS, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
