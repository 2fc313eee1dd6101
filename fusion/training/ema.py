"""Exponential moving average of the weights: fp32, few fused operations for all of them, warmed-up decay."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Average of a model's trained parameters.

    The decay of step s is min(decay, (1 + s) / (10 + s)) (TensorFlow's ExponentialMovingAverage): early on the average
    forgets the random start within a few steps, and a short run is not an average over its whole youth.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"ema={decay}: choose a decay in [0, 1), 0 for none")
        self.decay = decay
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.live = list(named), list(named.values())
        self.average = [p.detach().float().clone() for p in self.live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after `step` (counted from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(self.average, [p.detach().float() for p in self.live], 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own again, to the bit."""
        own = [p.data for p in self.live]
        for p, average in zip(self.live, self.average, strict=True):
            p.data = average.to(p.dtype)
        try:
            yield
        finally:
            for p, data in zip(self.live, own, strict=True):
                p.data = data

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model the averaged weights for good."""
        for p, average in zip(self.live, self.average, strict=True):
            p.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self.names, self.average, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages back."""
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(state[name])
