"""Objective of a batch: noise for target images, next-token loss on learned text, flow loss on noised blocks.

Each loss is a sum that its caller divides by a *global* count (all ranks, the whole accumulation window), so that the
mean does not depend on how documents fell into batches.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion.flow.matching import CLAMP, PATHS, estimate, flow_loss, logit_normal, shift, uniform, x_error
from fusion.sequence.packed import Packed
from fusion.sequence.patches import patchify
from fusion.unified.model import FusionModel, Output

PIXELS_AT_ONCE = 2**20
"""That a codec encodes in one go: an image of 1024 x 1024, or a thousand of 32 x 32."""
LATE = 0.5
"""Time beyond which a noised image does not tell by itself what an edit makes of it."""


@dataclass(frozen=True)
class FlowObjective:
    """How times are drawn and the flow loss is weighted.

    times: uniform or logit_normal (`mean`, `std`; JiT's -0.8, 0.8 is +0.8, 0.8 here), then moved towards noise by
    `shift`. uniform_share: of logit-normal times, so many are uniform all the same: the last steps of a sampler are
    taken where a logit-normal hardly ever falls. clamp: least time by which the loss of an x-prediction is divided, as
    fusion.flow.matching.flow_loss says.
    """

    times: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: float = 0.8
    std: float = 0.8
    uniform_share: float = 0.0
    shift: float = 1.0
    clamp: float = CLAMP

    def sample_times(self, count: int, generator: torch.Generator) -> Float[Tensor, " m"]:
        """Times of `count` images, on the generator's device."""
        drawn = (
            uniform(count, generator)
            if self.times == "uniform"
            else logit_normal(count, generator, self.mean, self.std)
        )
        if self.times != "uniform" and self.uniform_share:
            drawn = torch.where(uniform(count, generator) < self.uniform_share, uniform(count, generator), drawn)
        return shift(drawn, self.shift)


@dataclass(frozen=True)
class Objective(FlowObjective):
    """The same for text and images, with the weights of the two losses."""

    w_text: float = 0.25
    w_flow: float = 1.0


@dataclass(frozen=True)
class Losses:
    """Sums and counts of one batch; `x_error` and `time` of each target image are for the log.

    text: cross-entropy over learned tokens; control: the part of it on control tokens. flow: sum over images of the
    mean loss of each. draws: where nothing is learned, at how many tokens an image was asked for, at how many the
    model would begin one, and at how many both. copied: there too, how far x_hat stays at the image that is edited,
    on the way from the wanted one (0) to it (1): the sum over edits at times beyond LATE, and their number.
    """

    text: Tensor
    text_count: int
    control: Tensor
    control_count: int
    flow: Tensor
    flow_count: int
    x_error: Float[Tensor, " k"]
    time: Float[Tensor, " k"]
    w_text: float
    w_flow: float
    draws: Int[Tensor, "3"] | None = None
    copied: Float[Tensor, "2"] | None = None

    def total(self, text_count: int, flow_count: int) -> Tensor:
        """The scalar to minimise, given the global counts; zero-safe."""
        return self.w_text * self.text / max(text_count, 1) + self.w_flow * self.flow / max(flow_count, 1)


def latents(packed: Packed, codec, patch_size: int) -> Packed:
    """Fill a batch with clean patches of its images, all at time 0. codec: pixels -> latents
    (fusion.codecs.codec)."""
    device = packed.ids.device
    rows, start = _encoded(packed.pixels, codec, patch_size, device)
    counts, image_index = packed.grid.prod(-1), packed.image_of_patch
    inside = torch.arange(len(image_index), device=device) - (counts.cumsum(0) - counts)[image_index]
    return packed.with_patches(
        rows[start[packed.source][image_index] + inside], torch.zeros(len(packed.source), device=device)
    )


def _encoded(
    pixels: Sequence[Float[Tensor, "3 _ _"]], codec, patch_size: int, device: torch.device
) -> tuple[Float[Tensor, "n p"], Int[Tensor, " images"]]:
    """The patches of all images, and where those of each begin. Images of one size are encoded together, as many as a
    codec has room for: one by one, a thousand small ones would keep a GPU waiting for longer than the rest of the step
    takes."""
    sizes = defaultdict(list)
    for index, image in enumerate(pixels):
        sizes[image.shape].append(index)
    rows, start, count = [torch.zeros(0, codec.channels * patch_size**2, device=device)], [0] * len(pixels), 0
    for shape, indices in sizes.items():
        together = max(1, PIXELS_AT_ONCE // shape[1:].numel())
        for first in range(0, len(indices), together):
            some = indices[first : first + together]
            encoded = patchify(codec.encode(torch.stack([pixels[i] for i in some])), patch_size, rank=2)
            rows.append(encoded.flatten(0, 1).float())
            for index in some:
                start[index], count = count, count + encoded.shape[1]
    return torch.cat(rows), torch.tensor(start, dtype=torch.long, device=device)


@dataclass(frozen=True)
class Noised:
    """A batch whose noised blocks carry x_t, and what they were made of, per noised patch."""

    packed: Packed
    clean: Float[Tensor, "k p"]
    noise: Float[Tensor, "k p"]
    time: Float[Tensor, " k"]


def add_noise(packed: Packed, times: Float[Tensor, " m"], generator: torch.Generator, path: str = "linear") -> Noised:
    """Put x_t into the noised blocks. packed: with clean patches (`latents`); times: of each image, used where it is
    noised."""
    where: Bool[Tensor, " n"] = packed.noised_patch
    times = torch.where(packed.noised_image, times.to(packed.patches.device), 0.0)
    time = times[packed.image_of_patch][where]
    clean = packed.patches[where]
    noise = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device)
    mixed = packed.patches.clone()
    mixed[where] = PATHS[path].mix(clean, noise, time)
    return Noised(packed.with_patches(mixed, times), clean, noise, time)


def losses(model: FusionModel, packed: Packed, objective: Objective, generator: torch.Generator, config=None) -> Losses:
    """Noise the batch, run the model, and sum both losses.

    model: a FusionModel, or a wrapper of one (DDP, compiled) with its `config` given. packed: with clean patches.
    """
    config = config or model.config
    times = objective.sample_times(len(packed.source), generator)
    return losses_at(model, add_noise(packed, times, generator, config.path), objective, config)


def losses_at(model, noised: Noised, objective: Objective, config) -> Losses:
    """Both losses of a batch that is already noised; see `losses`."""
    packed = noised.packed
    output = model(packed=packed)
    ce = F.cross_entropy(output.logits, output.labels, reduction="none")
    image_start = output.logits.shape[-1] - config.control_tokens  # the first control token
    control = output.labels >= image_start
    where = packed.noised_patch
    targets = packed.noised_image.nonzero()[:, 0]
    index = torch.zeros_like(packed.source).index_copy(0, targets, torch.arange(len(targets), device=targets.device))
    image_index = index[packed.image_of_patch[where]]
    common = (noised.clean, noised.noise, noised.time, image_index, len(targets), config.target, PATHS[config.path])
    with torch.no_grad():
        error = x_error(output.prediction.detach(), *common)
    return Losses(
        text=ce.sum(),
        text_count=len(ce),
        control=ce.detach()[control].sum(),
        control_count=int(control.sum()),
        flow=flow_loss(output.prediction, *common, clamp=objective.clamp).sum(),
        flow_count=len(targets),
        x_error=error,
        time=packed.time[targets],
        w_text=objective.w_text,
        w_flow=objective.w_flow,
        draws=None if torch.is_grad_enabled() else _draws(output, image_start),
        copied=None if torch.is_grad_enabled() else _copied(output.prediction, noised, image_index, targets, config),
    )


def _copied(
    prediction: Float[Tensor, "k p"], noised: Noised, image_index: Int[Tensor, " k"], targets: Int[Tensor, " m"], config
) -> Float[Tensor, "2"]:
    """See Losses: x_hat - x projected on reference - x, of each edit."""
    packed, clean, path = noised.packed, noised.clean.float(), PATHS[config.path]
    x_hat = estimate(prediction, path.mix(noised.clean, noised.noise, noised.time), noised.time, config.target, path).x
    way = packed.references.float() - clean
    along, length = (
        clean.new_zeros(len(targets)).index_add(0, image_index, (part * way).sum(-1)) for part in (x_hat - clean, way)
    )
    edits = (packed.reference[targets] >= 0) & (packed.time[targets] > LATE) & (length > 0)
    return torch.stack([(along[edits] / length[edits]).sum(), edits.sum().float()])


def _draws(output: Output, image_start: int) -> Int[Tensor, "3"]:
    """See Losses."""
    asked, begun = output.labels == image_start, output.logits.argmax(dim=-1) == image_start
    return torch.stack([asked.sum(), begun.sum(), (asked & begun).sum()])
