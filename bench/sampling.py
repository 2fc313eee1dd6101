"""Measure the overhead of drawing an image beyond its forward passes, in one-thread CPU time.

Usage: `python -m bench.sampling`

One image of 64 patches behind a prompt whose prefix is 32 tokens, 16 Euler steps, without guidance (1 row per pass) and
with it (2 rows, as one batch, and a second prefix). Drawing is Fusion.draw from the prompt's text to the finished
image. It is divided by 16 forward passes of the model over the patches, the prefix cached, plus the passes over the
prefixes, measured in turn in the same process. `bare` is the same with the decoder alone in the passes: no modulation,
axial positions, patch embedding or head, and so a measure of those.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bench import measure
from bench.tiny_model import PATCH, SIDE, subject
from fusion.generation.api import Fusion
from fusion.generation.prefix import Prefix, arranged
from fusion.nn.kv_cache import PrefixCache
from fusion.sequence.packed import Tokens
from fusion.sequence.rows import Rows
from fusion.unified.step import Images

STEPS, PREFIX, GRID = 16, 32, (SIDE // PATCH, SIDE // PATCH)
TARGET = 1.2


def prompt_of(model: Fusion) -> str:
    """Return a prompt whose prefix, template and size text included, is PREFIX tokens.

    Raises ValueError if there is none with this tokenizer.
    """
    words = "draw a red circle left of a blue square and a green cross and a black triangle".split()
    for count in range(len(words), 0, -1):
        for padding in range(12):
            prompt = " ".join(words[:count]) + "." * padding
            if len(prefix_rows(model, prompt)) == PREFIX:
                return prompt
    raise ValueError(f"no prompt has a prefix of {PREFIX} tokens with this tokenizer")


def prefix_rows(model: Fusion, prompt: str) -> tuple[int, ...]:
    """Return the ids of all tokens before the patches."""
    pieces = model.processor.pieces(model.processor.document(prompt, prompt=True))
    ids = tuple(token for piece in pieces if isinstance(piece, Tokens) for token in piece.ids)
    return (*ids, model.processor.control.image_start, *model.processor.size_ids(SIDE, SIDE))


def prefix_of(model: Fusion, ids: tuple[int, ...], rows: int) -> Prefix:
    """Return the prefix's key/value cache in a batch of `rows`, computed by the model."""
    prefix = Prefix(model.model, model.processor.control, rows)
    for writer in prefix.writers:
        writer.text(ids)
    prefix.read([])
    return prefix


class Pass:
    """One forward pass of the model over the patches of `rows` branches, behind a cached prefix."""

    def __init__(self, model: Fusion, ids: tuple[int, ...], rows: int):
        self.model, prefix = model.model, prefix_of(model, ids, rows)
        block = arranged([writer.noised_block(GRID) for writer in prefix.writers], PREFIX, self.model.device)
        self.rows, self.mask = block, self.model.backbone.mask(block, Rows.cat([prefix.rows, block]))
        self.cache = PrefixCache.stack([prefix.cache], [list(range(rows))])
        self.cache.freeze(len(block))
        patches = torch.randn(block.ids.numel(), self.model.config.patch_width)
        self.images = Images(patches, torch.tensor([0.5]), torch.tensor([GRID] * rows))

    def __call__(self) -> Tensor:
        prediction = self.model.step(self.rows, self.mask, self.images, self.cache).prediction
        return prediction.view(*self.rows.ids.shape, -1)


class BarePass:
    """One forward pass of the plain Llama, without hooks, over as many tokens behind as long a prefix."""

    def __init__(self, model: Fusion, rows: int):
        self.llm = type(model.model.llm)(model.model.llm.config).eval().base_model
        self.embeds = torch.randn(rows, GRID[0] * GRID[1], self.llm.config.hidden_size)
        self.cache = DynamicCache()
        self.llm(
            inputs_embeds=torch.randn(rows, PREFIX, self.llm.config.hidden_size),
            past_key_values=self.cache,
            use_cache=True,
        )

    def __call__(self) -> None:
        self.llm(inputs_embeds=self.embeds, past_key_values=self.cache, use_cache=True)
        self.cache.crop(-self.embeds.shape[1])


def repeated(step: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that calls `step` STEPS times."""

    def times() -> None:
        for _ in range(STEPS):
            step()

    return times


@torch.inference_mode()
def compared(model: Fusion, guidance: float, rounds: int) -> dict[str, Any]:
    """Measure with this guidance; return times in ms and the ratios, medians over rounds."""
    branches = 1 if guidance == 1 else 2
    prompt = prompt_of(model)
    ids = prefix_rows(model, prompt)
    times = measure.in_turn(
        {
            "draw": lambda: model.draw(prompt, steps=STEPS, guidance=guidance, image_size=(SIDE, SIDE)),
            "passes": repeated(Pass(model, ids, branches)),
            "prefix": lambda: prefix_of(model, ids, branches),
            "bare passes": repeated(BarePass(model, branches)),
        },
        rounds,
    )
    product = [passes + prefix for passes, prefix in zip(times["passes"], times["prefix"], strict=True)]
    bare = [passes + prefix for passes, prefix in zip(times["bare passes"], times["prefix"], strict=True)]
    ratio = median(draw / whole for draw, whole in zip(times["draw"], product, strict=True))
    return {
        **{f"{name}, ms": round(1000 * median(values), 2) for name, values in times.items()},
        "ratio": round(ratio, 3),
        "target": TARGET,
        "ratio to bare": round(median(draw / whole for draw, whole in zip(times["draw"], bare, strict=True)), 3),
    }


def main(arguments: list[str]) -> int:
    """Measure with and without guidance, print the figures, and write them to bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="images of each kind")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = subject()
    figures = {}
    for name, guidance in (("without guidance", 1.0), ("with guidance", 3.0)):
        figures[name] = compared(model, guidance, options.rounds)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()), flush=True)
    print(
        measure.write("sampling", {"steps": STEPS, "prefix": PREFIX, "patches": GRID[0] * GRID[1], "figures": figures})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
