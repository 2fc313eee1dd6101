"""What a Trainer trains, seen from its loop: weights, what a batch teaches them, and the folder that they become."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusion.data.packing import Batch
from fusion.generation.api import Fusion
from fusion.nn.conv import ConvHead
from fusion.sequence.packed import IGNORE
from fusion.training.log import Counts
from fusion.unified.backbone import layers_of
from fusion.unified.objective import FlowObjective, Losses, Objective, latents, losses


class Learner(ABC):
    """`model`: the network whose parameters with requires_grad are trained. `kept`: the network that users get; it is
    the same one, unless the ranks share `model` out (fusion.training.sharding)."""

    model: nn.Module
    kept: nn.Module

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move everything there; what is trained is fp32 from now on, whatever it was saved in: autocast casts it for
        the products."""

    @abstractmethod
    def counts(self, batch: Any) -> Counts:
        """What a batch holds."""

    @abstractmethod
    def losses(self, batch: Any, objective: FlowObjective, generator: torch.Generator) -> Losses:
        """The losses of a batch as sums; all noise and all times come from the generator, on the model's device."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write the folder that users load."""

    @abstractmethod
    def units(self) -> list[nn.Module]:
        """The parts of `model` that are whole one at a time where the ranks share it out: layers, and last what is
        called to use them."""

    def rest(self, resting: bool) -> None:
        """Let the convolutions of the head rest, or no longer. ValueError where there are none."""
        raise ValueError("conv_from: this model's head has no convolutions; give it head=conv, or conv_from=0")

    def compiled(self) -> AbstractContextManager:
        """Inside, what is worth it runs compiled."""
        return nullcontext()

    def recomputed(self) -> AbstractContextManager:
        """Inside, layers keep little for the backward pass. ValueError where that is not possible."""
        return recomputed(self.units()[:-1])


class UnifiedLearner(Learner):
    """A Fusion that learns from packed batches. llm: where its LLM came from, which is left out of saved folders if it
    never changes."""

    def __init__(self, fusion: Fusion, llm: str | None = None):
        self.fusion, self.llm = fusion, llm
        self.model = self.kept = fusion.model

    def to(self, device: torch.device) -> None:
        """Model and codec."""
        self.model.to(device=device, dtype=torch.float32)
        self.fusion.codec.to(device)

    def counts(self, batch: Batch) -> Counts:
        """Of text: the learned tokens; of images: the noised blocks."""
        packed = batch.packed
        return Counts(
            text=int((packed.labels != IGNORE).sum()),
            images=int(packed.noised_image.sum()),
            documents=len(batch.keys),
            tokens=packed.ids.numel(),
            padding=int((packed.doc < 0).sum()),
            skipped=len(batch.skipped),
        )

    def losses(self, batch: Batch, objective: Objective, generator: torch.Generator) -> Losses:
        """Next tokens, and the flow of noised blocks."""
        device = next(self.model.parameters()).device
        return losses(
            self.model,
            latents(batch.packed.to(device), self.fusion.codec, self.model.config.patch_size),
            objective,
            generator,
        )

    def save_pretrained(self, folder: Path) -> None:
        """A folder for fusion.load."""
        config = self.model.config
        self.fusion.save_pretrained(folder, self.llm if config.lora or config.mode == "frozen" else None)

    def units(self) -> list[nn.Module]:
        """The decoder's layers. Weights by modality belong to the model as a whole: the layers that use them do not
        hold them."""
        return [*layers_of(self.model.llm), self.model]

    def rest(self, resting: bool) -> None:
        """While it does, the decoder learns what to draw (docs/log.md)."""
        if not isinstance(self.model.flow_head, ConvHead):
            super().rest(resting)
        self.model.flow_head.resting = resting

    def compiled(self) -> AbstractContextManager:
        """Each layer of the decoder, its hooks with it."""
        return compiled(layers_of(self.model.llm))


def compiles(device: torch.device) -> str | None:
    """None where torch.compile works on a device, or else why not, in one line: it needs a C++ compiler, on GPUs
    Triton, and not every machine has them. The first time on a machine it takes some seconds, which compiling anything
    else would take as well."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(64, device=device))
    except Exception as error:  # whatever can be amiss with a toolchain
        first, *_ = str(error).strip().splitlines() or ["no reason given"]
        return f"{type(error).__name__}: {first}"
    return None


@contextmanager
def compiled(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, each of the layers runs compiled."""
    # Hooks know the number of their layer, so that each layer is a compilation of its own; beyond the limit they would
    # run eagerly.
    with torch._dynamo.config.patch(recompile_limit=4 * len(layers)), _changed(layers, torch.compile):
        yield


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, of each layer only what enters is kept for the backward pass, which computes the rest again (Chen et al.,
    arXiv 1604.06174)."""
    with _changed(layers, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield


@contextmanager
def _changed(layers: Sequence[nn.Module], change: Callable[[Callable], Callable]) -> Iterator[None]:
    """Inside, `forward` of each layer is changed; from outside, so that the model itself knows nothing of it."""
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = change(layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
