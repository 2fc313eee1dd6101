"""Measure forward plus backward of every architecture against the equivalent diffusers class.

Usage: `python -m bench.architectures`

Both have the same weights and the same input: 4 latents of 4 x 32 x 32 in patches of 2 (256 tokens) with texts of 64
tokens, width 384, fp32. Ours and theirs run in turn in one process; the ratio is the median over rounds.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import diffusers
import torch

from bench import measure
from fusion.diffusion.architectures import ARCHITECTURES
from fusion.diffusion.checkpoints import save_diffusers
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.testing.reference_networks import REFERENCES, stir

BATCH, SIDE, WORDS, TEXT, POOLED = 4, 32, 64, 512, 256
TARGET = 1.05
SIZES = {"width": 384, "heads": 6}
# Settings besides SIZES with which a class of diffusers is the same network.
SUBJECTS: dict[str, dict[str, Any]] = {
    "dit": {"layers": 6, "classes": 10, "base_grid": 16.0, "channels": 4, "freq_shift": 1.0},
    "pixart": {"layers": 6, "base_grid": 16.0, "channels": 4, "text_width": TEXT},
    "sana": {"layers": 6, "channels": 4, "patch_size": 2, "text_width": TEXT},
    "mmdit": {"layers": 4, "channels": 4, "text_width": TEXT, "pooled_width": POOLED, "qk_norm": True},
    "flux": {"layers": 2, "single": 4, "axes": (16, 24, 24), "channels": 4, "text_width": TEXT, "pooled_width": POOLED},
    "flux2": {"layers": 2, "single": 4, "axes": (16, 16, 16, 16), "channels": 4, "text_width": TEXT},
    "lumina2": {
        "layers": 4,
        "refiners": 1,
        "kv_heads": 2,
        "axes": (16, 24, 24),
        "multiple": 256,
        "channels": 4,
        "text_width": TEXT,
    },
    "hidream": {
        "layers": 1,
        "single": 2,
        "axes": (32, 16, 16),
        "channels": 4,
        "text_width": TEXT,
        "pooled_width": POOLED,
        "layer_width": TEXT,
        "reads": (0, 1, 2),
        "largest": (SIDE, SIDE),
    },
}


def condition(model) -> Conditioning:
    """Return random conditioning for the model: class labels, or embeddings of texts of WORDS tokens, none masked."""
    if getattr(model, "label", None) is not None:
        return Conditioning(label=torch.arange(BATCH))
    read = torch.randn(max(model.config.reads) + 1, BATCH, WORDS, TEXT) if hasattr(model.config, "reads") else None
    return Conditioning(
        torch.randn(BATCH, WORDS, TEXT),
        torch.ones(BATCH, WORDS, dtype=torch.bool),
        torch.randn(BATCH, POOLED),
        layers=read,
    )


def pair(name: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two functions that run forward plus backward: of our network, and of diffusers' with the same weights.

    Raises ValueError if their outputs differ by more than 1e-3.
    """
    architecture = ARCHITECTURES[name]
    ours = architecture.network(architecture.config(**SIZES, **SUBJECTS[name]))
    stir(ours)
    kind = architecture.diffusers.classes[0]
    with tempfile.TemporaryDirectory() as folder:
        save_diffusers(ours, f"{folder}/model")
        theirs = getattr(diffusers, kind).from_pretrained(f"{folder}/model")
    ask = next(reference.ask for reference in REFERENCES.values() if reference.name == kind)
    x, t, cond = torch.randn(BATCH, 4, SIDE, SIDE), torch.rand(BATCH), condition(ours)
    error = (ours(x, t, cond) - ask(theirs.eval(), x, t, cond)).abs().max()
    if error > 1e-3:
        raise ValueError(f"{name}: the two differ by {error:.2g}, so that their times say nothing")
    return step(ours, lambda: ours(x, t, cond)), step(theirs, lambda: ask(theirs, x, t, cond))


def step(model, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Return a function that runs forward plus backward and discards the gradients."""

    def run() -> None:
        forward().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return run


def compared(name: str, rounds: int) -> dict[str, float]:
    """Measure ours and theirs; return CPU times in ms and the ratio ours / theirs, medians over rounds."""
    ours, theirs = pair(name)
    times = measure.in_turn({"ours": ours, "theirs": theirs}, rounds)
    ratio = median(one / other for one, other in zip(times["ours"], times["theirs"], strict=True))
    return {
        **{f"{who}, ms": round(1000 * median(values), 1) for who, values in times.items()},
        "ratio": round(ratio, 3),
        "target": TARGET,
    }


def main(arguments: list[str]) -> int:
    """Measure each architecture, print the figures, and write them to bench/results unless only one was selected."""
    parser = argparse.ArgumentParser(prog="python -m bench.architectures", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="steps of each")
    parser.add_argument("--only", choices=SUBJECTS, help="one of them")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = {}
    for name in [options.only] if options.only else SUBJECTS:
        figures[name] = compared(name, options.rounds)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    if not options.only:
        print(measure.write("architectures", {"batch": BATCH, "side": SIDE, "words": WORDS, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
