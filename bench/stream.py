"""Compare a frozen LLM whose text sees images with one whose text never does, and what is read of it is kept.

Usage: `python -m bench.stream [LLM]`    (default: smollm2-135m-instruct)

Both have an image stream of width 192 and read documents of a distinct caption and an image of 64 patches, with four
noised copies: forward and backward, in turn, on one thread. *first*: every caption is new; *again*: all of them have
been read before, as in every epoch after the first. The record has documents a second.
"""

import sys
from collections.abc import Callable
from statistics import median

import torch

import fusion
from bench import measure
from fusion.sequence.packed import ImagePiece, Packed, finish, layout, pack
from fusion.unified.objective import Objective, latents, losses

CAPTIONS, DOCUMENTS, COPIES, SIDE, PATCH, WIDTH = 1000, 8, 4, 64, 8, 192
SETTINGS = {
    "mode": "frozen",
    "image_width": WIDTH,
    "patch_size": PATCH,
    "max_side": SIDE,
    "time": "added",
    "embed": "linear",
    "head": "linear",
}
ROUNDS = 5


def model_of(llm: str, see: str) -> fusion.Fusion:
    """Return the LLM, extended in one of the two ways."""
    made = fusion.from_llm(llm, see=see, dtype=torch.float32, **SETTINGS)
    made.model.set_attention("matmul")
    return made


def batch(model: fusion.Fusion, start: int) -> Packed:
    """Return documents with captions `start` and on, of those there are, in one row."""
    generator, documents = torch.Generator().manual_seed(start), []
    for number in range(start, start + DOCUMENTS):
        words = f"Draw number {number % CAPTIONS}: a red circle above two blue squares."
        prompt = model.processor.pieces(model.processor.document(words, prompt=True))
        pixels = torch.rand(3, SIDE, SIDE, generator=generator) * 2 - 1
        size = model.processor.size_ids(SIDE, SIDE)
        image = ImagePiece(pixels, size, (SIDE // PATCH, SIDE // PATCH), target=True)
        documents.append(layout(finish([*prompt, image], False), model.processor.control, noised_copies=COPIES))
    return latents(pack([documents]), model.codec, PATCH)


def step(model: fusion.Fusion, packed: Packed) -> Callable[[], None]:
    """Return a function that computes losses and gradients of a batch."""

    def run() -> None:
        found = losses(model.model, packed, Objective(), torch.Generator().manual_seed(0))
        found.total(found.text_count, found.flow_count).backward()
        model.model.zero_grad(set_to_none=True)

    return run


def compare(llm: str) -> dict[str, float]:
    """Return documents a second by kind, and ratios."""
    before, now = model_of(llm, "projected"), model_of(llm, "none")
    times: dict[str, list[float]] = {"projected": [], "none, first": [], "none, again": []}
    step(before, batch(before, 0))(), step(now, batch(now, 0))()
    for turn in range(1, ROUNDS + 1):
        times["projected"].append(measure.cpu_seconds(step(before, batch(before, turn * DOCUMENTS))))
        again = step(now, batch(now, turn * DOCUMENTS))
        times["none, first"].append(measure.cpu_seconds(again))
        times["none, again"].append(measure.cpu_seconds(again))
    found = {name: DOCUMENTS / median(each) for name, each in times.items()}
    ratios = {f"{name} / projected": found[name] / found["projected"] for name in ("none, first", "none, again")}
    return {name: round(value, 3) for name, value in (found | ratios).items()}


def main(argv: list[str]) -> None:
    """Print the figures and write the record."""
    torch.set_num_threads(1)
    found = compare(argv[0] if argv else "smollm2-135m-instruct")
    for name, value in found.items():
        print(f"{name:<26} {value:8.2f}")
    print(measure.write("stream", {"documents": DOCUMENTS, "copies": COPIES, "documents_per_second": found}))


if __name__ == "__main__":
    main(sys.argv[1:])
