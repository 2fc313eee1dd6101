"""A small training run in a process of its own, killed at random moments and begun again.

`python -m fusion.testing.killed_runs LLM RUN` is the run.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from fusion.testing import tiny_runs as training
from fusion.training import checkpoint

STEPS_KEPT = 3


def start(llm: Path, run: Path) -> subprocess.Popen:
    """The run in its process, from the newest checkpoint on; a checkpoint after every step, so that most kills hit one
    being written."""
    return subprocess.Popen(
        [sys.executable, "-m", "fusion.testing.killed_runs", str(llm), str(run)], stdout=subprocess.DEVNULL
    )


def run(llm: Path, folder: Path) -> None:
    """To its end, undisturbed."""
    if start(llm, folder).wait():
        raise RuntimeError(f"the run in {folder} failed")


def until_done(llm: Path, folder: Path, rng: random.Random, most: int) -> list[float]:
    """Kill -9 the run up to `most` times, each at a random moment after its first step, and let it end then. Returns
    those moments in seconds."""
    kills: list[float] = []
    while len(kills) < most:
        process, before = start(llm, folder), _written(folder)
        while process.poll() is None and _written(folder) == before:
            time.sleep(0.01)
        moment = rng.uniform(0, 1.0)
        time.sleep(moment)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills.append(moment)
    run(llm, folder)
    return kills


def _written(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.stat().st_size if metrics.exists() else 0


def differences(one: Path, other: Path) -> list[str]:
    """The tensors in which the last checkpoints of two runs differ."""
    last, same = (checkpoint.newest(folder / "checkpoints") for folder in (one, other))
    found = [] if last.name == same.name else [f"{last.name} and {same.name}"]
    for file in ("weights.safetensors", "optimizer.safetensors", "model/model.safetensors"):
        a, b = load_file(last / file), load_file(same / file)
        found += [
            f"{file}: {name}"
            for name in a.keys() | b.keys()
            if name not in a or name not in b or not torch.equal(a[name], b[name])
        ]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    training.make(
        Path(sys.argv[1]), Path(sys.argv[2]), resume=True, save_every=1, keep=STEPS_KEPT, validate=False, documents=120
    ).fit()
