"""Tiny fusion models of every family, and mixed documents for the laws.

The documents have text longer than the attention window, several images, and one larger than the window.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.codecs.codec import Pixel
from fusion.sequence.packed import Control, ImagePiece, Packed, Piece, Tokens, layout, pack
from fusion.testing import tiny_llms as families
from fusion.unified.config import FusionConfig
from fusion.unified.model import FusionModel
from fusion.unified.objective import latents
from fusion.unified.step import Images

PATCH = 2
CONTROL = Control(image_start=families.VOCAB, image_patch=families.VOCAB + 1, image_end=families.VOCAB + 2)
MODES = [("adaln", "shared"), *((time, positions) for time in ("added", "none") for positions in ("axial", "shared"))]
# Every family as from_llm extends it by default, and three of different make with each way to tell time and positions.
CASES = [(family, "adaln", "axial") for family in families.FAMILIES]
CASES += [(family, *mode) for family in ("llama", "gemma3_text") for mode in MODES]
CASES += [("gpt2", time, "shared") for time in ("added", "none")]
# Heads that look at the noised image, and at others.
CASES += [
    ("llama", "adaln", "axial", "conv+reference"),
    ("gpt2", "none", "shared", "conv+reference"),
    ("qwen3", "adaln", "axial", "conv"),
]
# An embedding that looks at the image that is edited.
CASES += [("llama", "adaln", "axial", "linear+reference"), ("gpt2", "added", "shared", "linear+reference")]
# Weights by modality in families of different make: rows of experts, of norms behind the heads, of one axis (opt), of
# post-norms.
CASES += [(family, "adaln", "axial", "linear", "mot") for family in ("llama", "mixtral", "gemma3_text", "olmo2")]
CASES += [(family, "none", "shared", "linear", "mot") for family in ("gpt2", "opt")]
# An image stream beside a language model that never changes.
CASES += [
    (family, "adaln", "axial", "linear", "frozen")
    for family in ("llama", "qwen3_moe", "gpt_oss", "gemma3_text", "olmo2", "olmo")
]
CASES += [("gpt2", "none", "shared", "linear", "frozen"), ("opt", "added", "shared", "conv", "frozen")]
# The same, which reads the language model's hidden states by projections of its own: windows and norms of keys, a cache
# by another name, queries, keys and values in one.
CASES += [(family, "adaln", "axial", "linear", "frozen+hidden") for family in ("gemma3_text", "gpt_neox")]
CASES += [("gpt2", "none", "shared", "linear", "frozen+hidden")]
# An image stream with layers of its own beside a language model that never sees images: rotary positions, windows,
# experts, post-norms, learned positions; time told in each way.
CASES += [
    (family, "adaln", "axial", "linear", "frozen+none") for family in ("llama", "gemma3_text", "qwen3_moe", "olmo2")
]
CASES += [
    ("gpt2", "none", "shared", "linear", "frozen+none"),
    ("opt", "added", "shared", "conv", "frozen+none"),
    ("llama", "added", "axial+sincos", "linear+reference", "frozen+none"),
]
STREAM = 48  # its width, of 64
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout"), 0.0)  # as fusion.from_llm does
TOLERANCE = 1e-5  # of two ways to compute the same fp32 numbers, relative to their RMS


def text(count: int, seed: int) -> Tokens:
    """Random tokens, all learned."""
    generator = torch.Generator().manual_seed(seed)
    return Tokens(tuple(torch.randint(1, families.VOCAB, (count,), generator=generator).tolist()), loss=True)


def image_piece(rows: int, columns: int, seed: int, target: bool = True, clean: bool = True) -> ImagePiece:
    """An image of random pixels, its size text two tokens."""
    pixels = torch.rand(3, rows * PATCH, columns * PATCH, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return ImagePiece(pixels, (20 + rows, 20 + columns), (rows, columns), target=target, clean=clean)


def story() -> list[Piece]:
    """Text beyond the window of 16, a target larger than the window, a context image, a second target of its size,
    and text behind all."""
    return [
        text(19, 1),
        image_piece(5, 4, 2),
        text(3, 3),
        image_piece(2, 3, 4, target=False),
        text(2, 5),
        image_piece(2, 3, 6),
        text(18, 7),
    ]


def drawing() -> list[Piece]:
    """A short request whose document ends with the noised block of its second target."""
    return [text(5, 8), image_piece(2, 2, 9), text(4, 10), image_piece(4, 3, 11, clean=False)]


def ids(count: int = 48) -> Tensor:
    """Plain text, (2, count)."""
    return torch.randint(1, families.VOCAB, (2, count), generator=torch.Generator().manual_seed(3))


def prose() -> list[Piece]:
    """Text alone, twice as long as the window."""
    return [text(34, 12)]


@cache
def tiny_fusion(
    family: str,
    time: str = "adaln",
    positions: str = "axial",
    head: str = "linear",
    mode: str = "shared",
    attention: str | None = None,
) -> FusionModel:
    """A fusion model of a tiny random LLM, float32, what starts at zero drawn from N(0, 0.02), and twins moved away
    from what they are copies of. Shared: do not change it."""
    return stirred(fresh_fusion(family, time, positions, head, mode, attention))


def fresh_fusion(
    family: str,
    time: str = "adaln",
    positions: str = "axial",
    head: str = "linear",
    mode: str = "shared",
    attention: str | None = None,
) -> FusionModel:
    """The same as `from_llm` leaves it: what starts at zero is zero. The embedding is of the head's kind;
    linear+reference is an embedding's."""
    llm = families.tiny_llm(family, attention, **NO_DROPOUT)
    embed, head = (head, "linear") if head == "linear+reference" else (head.partition("+")[0], head)
    parts = {"time": time, "positions": positions, "embed": embed, "head": head}
    mode, _, reads = mode.partition("+")
    parts |= {"mode": mode} | ({"image_width": STREAM} if mode == "frozen" else {})
    parts |= {"see": "none", "reads": [1, 2]} if reads == "none" else {"deep": reads} if reads else {}
    config = FusionConfig(text_config=llm.config, patch_size=PATCH, vocab_base=families.VOCAB, **parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return FusionModel.from_llm(llm, config)


def stirred(model: FusionModel) -> FusionModel:
    """The model with every weight of ours that is all zero drawn from N(0, 0.02), so that nothing hides behind a zero;
    nor behind a copy."""
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if name.startswith("twins."):
            weight.data += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        elif not name.startswith("llm.") and not weight.any():
            weight.data.normal_(std=0.02, generator=generator)
    return model


def packed_rows(rows: list[list[list[Piece]]], times: float = 0.6, length: int | None = None) -> Packed:
    """Documents in rows, clean patches in the clean stream, and noise mixed into the noised blocks at time `times`.

    The noise of an image is drawn by its own pixels, so that it does not depend on where the document lies.
    """
    packed = latents(pack([[layout(pieces, CONTROL) for pieces in row] for row in rows], length), Pixel(), PATCH)
    patches = packed.patches.clone()
    for number in packed.noised_image.nonzero()[:, 0].tolist():
        own = packed.image_of_patch == number
        patches[own] = (1 - times) * patches[own] + times * noise_of(packed.patches[own])
    return packed.with_patches(patches, packed.noised_image.float() * times)


def everything() -> Packed:
    """Two rows of all that a document can have."""
    return packed_rows([[story()], [drawing(), prose()]])


def noise_of(patches: Tensor) -> Tensor:
    """Standard normal noise that belongs to an image."""
    generator = torch.Generator().manual_seed(int(patches.double().abs().sum().item() * 1e4))
    return torch.randn(patches.shape, generator=generator)


@dataclass(frozen=True)
class Answer:
    """Everything a packed forward pass says: hidden (b, t, d) after the final norm, logits (b, t, v), prediction (n,
    p)."""

    hidden: Tensor
    logits: Tensor
    prediction: Tensor


@torch.no_grad()
def answer(model: FusionModel, packed: Packed) -> Answer:
    """The model's answer at every row, through its own forward."""
    if model.stream is not None:
        return _answer_beside(model, packed)
    with watched(model) as calls:
        output = model(packed=packed)
    return Answer(calls[0], model.all_logits(calls[0]), output.prediction)


def _answer_beside(model: FusionModel, packed: Packed) -> Answer:
    """The same of an image stream beside an LLM, whose rows of images are as wide as the stream."""
    references = packed.references if model.looks_back and len(packed.patches) else None
    images = Images(packed.patches, packed.time, packed.grid[packed.noised_image], references)
    found, prediction = model.step_packed(packed, images)
    hidden = found.last.clone()
    hidden[packed.patch_rows] = F.pad(found.image, (0, hidden.shape[-1] - found.image.shape[-1]))
    hidden = hidden.view(*packed.ids.shape, -1)
    output = model(packed=packed)
    assert torch.equal(output.prediction, prediction), "forward says the same"
    return Answer(hidden, model.all_logits(hidden), prediction)


@contextmanager
def watched(model: FusionModel) -> Iterator[list[Tensor]]:
    """Hidden states of every call of the decoder, or of the image stream beside it, while the block runs."""
    calls: list[Tensor] = []
    watch = model.llm.base_model if model.stream is None else model.stream
    hook = watch.register_forward_hook(
        lambda module, args, output: calls.append(getattr(output, "last_hidden_state", output).detach())
    )
    try:
        yield calls
    finally:
        hook.remove()


def changed(packed: Packed, row: int, index: int) -> Packed:
    """The batch with another token, or another patch, at one place."""
    if packed.image_index[row, index] < 0:
        ids = packed.ids.clone()
        ids[row, index] = (ids[row, index] + 7) % families.VOCAB
        return replace(packed, ids=ids)
    patches = packed.patches.clone()
    patches[patch_number(packed)[row, index]] += 1.0
    return packed.with_patches(patches, packed.time)


def patch_number(packed: Packed) -> Tensor:
    """Which of `patches` stands in a row, (b, t); meaningless on text."""
    return (packed.image_index >= 0).flatten().cumsum(0).view_as(packed.image_index) - 1


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the RMS of b."""
    return 0.0 if a.numel() == 0 else ((a - b).abs().max() / b.square().mean().sqrt().clamp(min=1e-8)).item()


def assert_close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal but for the order of fp32 sums."""
    assert a.shape == b.shape
    assert error(a, b) <= tolerance, f"off by {error(a, b):.1e} of the RMS, {tolerance:.0e} allowed"


@contextmanager
def routing_margins(model: FusionModel) -> Iterator[list[float]]:
    """By how much the last expert chosen leads the first one left out, per call of each router; empty without experts.

    A margin above the rounding of fp32 says that two ways to compute the same rows choose the same experts.
    """
    margins: list[float] = []

    def watch(module, args, output):
        scores = args[0].flatten(0, -2).float() @ module.weight.float().T
        if getattr(module, "bias", None) is not None:
            scores = scores + module.bias
        best = scores.softmax(-1).sort(-1, descending=True).values
        chosen = model.llm.config.num_experts_per_tok
        margins.append((best[:, chosen - 1] - best[:, chosen]).min().item())

    hooks = [
        module.register_forward_hook(watch)
        for module in model.llm.modules()
        if type(module).__name__.endswith("Router")
    ]
    try:
        yield margins
    finally:
        for hook in hooks:
            hook.remove()
