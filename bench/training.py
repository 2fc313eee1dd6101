"""Compare one training step with transfusion-pytorch 0.20.0, in turn in one process, in one-thread CPU time.

Usage: `python -m bench.training`

Both have width 256, 6 layers, 4 heads of 64, a gated feed-forward of two thirds of 4 x 256, the same vocabulary, and
read 32 documents of 16 text tokens and an image of 64 patches of 48 numbers; what each adds around an image (its size,
marker tokens) is left to each. Both steps are forward, backward, clipping, AdamW; ours is the trainer's, so the EMA and
the log are included. They are not the same architecture: transfusion-pytorch computes modulation per token and connects
distant layers as a U-net does.

    pip install transfusion-pytorch==0.20.0        (not among our dependencies)
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from statistics import median
from time import process_time
from typing import Any

import torch

from bench import measure
from bench.tiny_model import HEADS, LAYERS, PATCH, SIDE, WIDTH, subject
from fusion.data.packing import Batch
from fusion.generation.api import Fusion
from fusion.sequence.packed import ImagePiece, Tokens, layout, pack
from fusion.training.learner import UnifiedLearner
from fusion.training.optim import Optim
from fusion.training.trainer import Trainer, Training
from fusion.unified.objective import Objective

ROWS, TEXT = 32, 16
PATCHES, NUMBERS = (SIDE // PATCH) ** 2, 3 * PATCH**2
WARM_UP = 2
OURS = ["eager fp32", "compiled fp32", "eager bf16", "compiled bf16"]
FP32, BF16 = "transfusion-pytorch fp32", "transfusion-pytorch bf16"


class Turns:
    """A loader that returns the same batch every time, and times the trainer's steps and other functions in turn.

    The trainer's step runs between two calls of `next`; each call runs every function of `others` once. own, times: CPU
    seconds of the trainer's steps and of the others.
    """

    class batches:
        world = 1

    def __init__(self, batch: Batch, others: Mapping[str, Callable[[], Any]]):
        self.batch, self.others, self.began = batch, others, None
        self.own: list[float] = []
        self.times: dict[str, list[float]] = {name: [] for name in others}

    def __next__(self) -> Batch:
        if self.began is not None:
            self.own.append(process_time() - self.began)
        for name, step in self.others.items():
            self.times[name].append(measure.cpu_seconds(step))
        self.began = process_time()
        return self.batch

    def state_dict(self) -> dict:
        """Return an empty state: there is nothing to resume."""
        return {}

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def documents(model: Fusion) -> Batch:
    """Return a batch of 32 rows, each of 16 text tokens, all with a loss, and an image to draw."""
    size, grid = model.processor.size_ids(SIDE, SIDE), (SIDE // PATCH, SIDE // PATCH)
    rows = []
    for _ in range(ROWS):
        ids = tuple(torch.randint(1, len(model.processor.tokenizer), (TEXT,)).tolist())
        image = ImagePiece(torch.rand(3, SIDE, SIDE) * 2 - 1, size, grid, target=True, clean=False)
        rows.append([layout([Tokens(ids, loss=True), image], model.processor.control)])
    return Batch(pack(rows), ("bench",) * ROWS, ("bench",) * ROWS)


def transfusion_step(vocabulary: int, bf16: bool) -> Callable[[], None]:
    """Return a function that runs one step of transfusion-pytorch, as its README trains.

    The documents have the same lengths as ours. vocabulary: number of text tokens. bf16: run under autocast.
    """
    from transfusion_pytorch import Transfusion

    model = Transfusion(
        num_text_tokens=vocabulary,
        dim_latent=NUMBERS,
        modality_default_shape=(PATCHES,),
        transformer={"dim": WIDTH, "depth": LAYERS, "heads": HEADS, "dim_head": WIDTH // HEADS},
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    data = [[torch.randint(0, vocabulary, (TEXT,)), torch.randn(PATCHES, NUMBERS)] for _ in range(ROWS)]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def run(precision: str, compile: bool, rounds: int, others: Mapping[str, Callable[[], Any]]) -> Turns:
    """Train for `rounds` timed steps, with the functions of `others` in turn between them; return the times.

    The first two steps of all do not count, nor the one that ends the run.
    """
    model = subject()
    model.model.set_attention("matmul")  # the default of train.unified on CPUs
    turns = Turns(documents(model), others)
    settings = Training(
        documents=ROWS * (WARM_UP + rounds + 1),
        precision=precision,
        compile=compile,
        workers=0,
        validate_every=0,
        sample_every=0,
        save_every=0,
        optim=Optim(warmup=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        Trainer(UnifiedLearner(model), turns, Objective(), settings, folder).fit()
    return turns


def main(arguments: list[str]) -> int:
    """Measure eager and compiled, fp32 and bf16; print the figures and write them to bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="steps that count, of each")
    parser.add_argument("--ours", nargs="+", choices=OURS, default=OURS, help="which of our steps")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vocabulary = len(subject().processor.tokenizer)
    theirs = {"fp32": {FP32: transfusion_step(vocabulary, bf16=False)}}
    theirs["bf16"] = theirs["fp32"] | {BF16: transfusion_step(vocabulary, bf16=True)}
    gemm = {"gemm fp32": measure.Gemm(torch.float32), "gemm bf16": measure.Gemm(torch.bfloat16)}
    figures = {}
    for name in options.ours:
        kind, precision = name.split()
        figures[name] = compared(run(precision, kind == "compiled", options.rounds, theirs[precision] | gemm))
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    print(measure.write("training", {"documents": ROWS, "text_tokens": TEXT, "patches": PATCHES, "figures": figures}))
    return 0


def compared(turns: Turns) -> dict[str, Any]:
    """Return median CPU times in ms and the ratios.

    Each ratio is the median over rounds, within which both ran side by side.
    """
    own = turns.own[WARM_UP:]
    result = {"step_ms": round(1000 * median(own), 1)}
    for name, values in turns.times.items():
        counted = values[WARM_UP:][: len(own)]
        if name.startswith("gemm"):
            result[f"{name}, GFLOP/s"] = round(measure.Gemm.gflops(median(counted)), 1)
        else:
            result[f"{name}, ms"] = round(1000 * median(counted), 1)
            result[f"times faster than {name}"] = round(
                median(other / ours for other, ours in zip(counted, own, strict=True)), 2
            )
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
