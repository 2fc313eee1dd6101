"""Measure training on a CUDA device: tokens per second, utilisation, and memory against the plan's.

Usage: `python -m bench.gpu`

The model has SmolLM2-135M's shape and random weights, and learns to draw images of noise, 128 x 128 pixels in patches
of 8, in rows of 1,024 tokens, in bf16. Each way to compute attention and layers trains for some steps of
fusion.training.trainer's own, on batches made beforehand. The share of the chip's speed counts operations as `fusion
plan` does, including those of a second forward pass (activation checkpointing).
"""

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from statistics import median

import torch

from bench import measure
from bench.lora import save_images, save_llm
from fusion.common.config import load_config
from fusion.planning.forecast import forecast
from fusion.recipes import unified
from fusion.training.devices import DEVICES, name_of

WARM_UP = 4  # steps that are not timed
SETTINGS = [
    "model.patch_size=8",
    "model.embed=linear",
    "model.head=linear",
    "data.sources=[{kind: images}]",
    "data.max_side=128",
    "data.held_out=0.1",
    "packing.length=1024",
    "packing.lookahead=64",
    "training.precision=bf16",
    "training.workers=0",
    "training.validate_every=0",
    "training.sample_every=0",
    "training.save_every=0",
    "training.trackers=[]",
    "training.optim.warmup=1",
    "samples.held_out=0",
]
CASES = {
    "sdpa": ["packing.rows=16"],
    "flex_attention": ["packing.rows=16", "model.attention=flex_attention"],
    "sdpa, compiled": ["packing.rows=16", "training.compile=true"],
    "sdpa, recomputed, 48 rows": ["packing.rows=48", "training.recompute=true"],
    "flex_attention, 32 rows, muon": [
        "packing.rows=32",
        "model.attention=flex_attention",
        "training.optim.optimizer=muon",
    ],
}


class Timed:
    """A loader of batches made beforehand that records when each is taken.

    It ends the run by StopIteration after `steps` batches.
    """

    def __init__(self, loader, steps: int):
        self.batches, self.left = loader.batches, steps
        self.ready = list(islice(loader, 4))
        self.taken: list[float] = []

    def __next__(self):
        torch.cuda.synchronize()
        self.taken.append(time.perf_counter())
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.ready[self.left % len(self.ready)]


def measured(words: list[str], steps: int, device: str) -> dict[str, float]:
    """Train with these settings; return the median time of a step, throughput, and measured and planned memory.

    words: config entries key=value. steps: number of timed steps. device: one of fusion.training.devices.
    """
    config = load_config(unified.Unified, None, words)
    planned = forecast(config, device=device)
    torch.cuda.reset_peak_memory_stats()
    trainer = unified.trainer_for(config, unified.build(config.model))
    trainer.loader = timed = Timed(trainer.loader, WARM_UP + steps)
    with suppress(StopIteration):
        trainer.fit()
    seconds = median(b - a for a, b in zip(timed.taken[WARM_UP:], timed.taken[WARM_UP + 1 :], strict=False))
    peak, tokens = torch.cuda.max_memory_allocated(), timed.ready[0].packed.ids.numel()
    return {
        "ms per step": round(1000 * seconds, 1),
        "tokens per second": round(tokens / seconds),
        "share of peak": round(planned.work / seconds / planned.peak, 3),
        "memory, GiB": round(peak / 2**30, 2),
        "planned, GiB": round(planned.memory.peak / 2**30, 2),
        "off": round(planned.memory.peak / peak - 1, 3),
    }


def main(arguments: list[str]) -> int:
    """Measure each case, print the figures, and write them to bench/results; return 1 without a known CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, help="of each case, that count")
    options = parser.parse_args(arguments)
    device = name_of(torch.device("cuda")) if torch.cuda.is_available() else None
    if device is None:
        print(
            "error: no CUDA device here that fusion.training.devices knows: "
            f"{', '.join(name for name in DEVICES if name != 'cpu')}",
            file=sys.stderr,
        )
        return 1
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        llm, images = Path(place, "llm"), Path(place, "images")
        images.mkdir()
        save_llm(llm)
        save_images(images)
        for number, (name, case) in enumerate(CASES.items()):
            words = [f"model.llm={llm}", f"data.path={images}", f"run={place}/run{number}", *SETTINGS, *case]
            try:
                figures[name] = measured(words, options.steps, device)
            except (RuntimeError, ValueError) as error:
                figures[name] = {"failed": " ".join(str(error).split())[:300]}
            torch.cuda.empty_cache()
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    told = {"device": torch.cuda.get_device_name(), "settings": SETTINGS, "cases": CASES, "figures": figures}
    print(measure.write("gpu", told, on=device))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
