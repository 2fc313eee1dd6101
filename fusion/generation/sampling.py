"""The sampling parameters of generation, and how one token is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion.flow.solvers import SOLVERS, Guidance


@dataclass(frozen=True)
class Sampling:
    """How text and images are sampled; raises ValueError in one line for values that make no sense.

    temperature, top_p: of text; temperature 0 takes the likeliest token. max_new_tokens, max_images: per answer. steps,
    solver, shift: of the flow (shift > 1 spends more steps at high noise). guidance: towards the text; image_guidance:
    towards the context images (InstructPix2Pix's two scales, 1 is off); guidance_interval: times (lo, hi] within which
    both act. negative_prompt: what the unconditional branch reads in place of nothing. image_size: (width, height) in
    pixels; None lets the model choose.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    max_images: int = 8
    steps: int = 20
    solver: str = "euler"
    shift: float = 1.0
    guidance: float = 3.0
    image_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative_prompt: str | None = None
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        checks = {
            "temperature is at least 0": self.temperature >= 0,
            "top_p lies in (0, 1]": 0 < self.top_p <= 1,
            "max_new_tokens is at least 0": self.max_new_tokens >= 0,
            "max_images is at least 0": self.max_images >= 0,
            "steps is at least 1": self.steps >= 1,
            f"solver is one of {', '.join(SOLVERS)}": self.solver in SOLVERS,
            "shift is above 0": self.shift > 0,
        }
        for rule, holds in checks.items():
            if not holds:
                raise ValueError(f"{rule}, not {getattr(self, rule.split()[0])!r}")
        Guidance(self.guidance, self.image_guidance, self.guidance_interval)

    @property
    def flow_guidance(self) -> Guidance:
        """The guidance of the flow."""
        return Guidance(self.guidance, self.image_guidance, self.guidance_interval)


def row_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Seeds of the `count` rows of a batch: seed, seed + 1, ..., or those given, one a row; ValueError for another
    number of them."""
    seeds = list(seed) if isinstance(seed, Sequence) else [seed + row for row in range(count)]
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} rows: give one for each, or a single number")
    return seeds


def choose(
    logits: Float[Tensor, " v"], allowed: Bool[Tensor, " v"], settings: Sampling, generator: torch.Generator
) -> int:
    """One token out of the allowed ones: the likeliest, or drawn with temperature from the nucleus of mass top_p."""
    logits = logits.masked_fill(~allowed, -torch.inf)
    if settings.temperature == 0:
        return int(logits.argmax())
    probability, order = (logits.double() / settings.temperature).softmax(-1).sort(descending=True)
    before = probability.cumsum(-1) - probability
    probability = probability.masked_fill(before >= settings.top_p, 0.0)
    return int(order[torch.multinomial(probability.cpu(), 1, generator=generator)])
