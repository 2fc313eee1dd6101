"""Mixture of experts: a feed-forward layer with a router that chooses experts per row, and its balance loss.

A router that is left alone comes to send all rows to few experts. The loss of the Switch Transformer (Fedus et al.,
arXiv 2101.03961) keeps them even: the number of experts times the sum over them of (share of the choices) x (mean
probability). It is 1 where all are chosen alike.

    with watched(model) as balance:
        loss = objective(model(x, t, cond))
    loss = loss + 0.01 * balance.loss()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusion.diffusion.networks.blocks import SwiGLU
from fusion.nn.layers import Linear32


class Router(nn.Module):
    """Which experts a row goes to: the `chosen` of the highest probability. In fp32, as the paper advises."""

    def __init__(self, width: int, experts: int, chosen: int):
        super().__init__()
        if not 1 <= chosen <= experts:
            raise ValueError(
                f"{chosen} of {experts} experts cannot be chosen for a row: choose at least one, and no more than "
                "there are"
            )
        self.chosen, self.proj = chosen, Linear32(width, experts, bias=False)

    def forward(
        self, rows: Float[Tensor, "n width"]
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"], Float[Tensor, "n experts"]]:
        """The chosen with their probabilities, which do not sum to one, and the probabilities of all, which do."""
        probability = self.proj(rows).softmax(dim=-1)
        weights, chosen = probability.topk(self.chosen)
        return weights, chosen, probability


class MoE(nn.Module):
    """Experts of which each row goes through `chosen`, weighed by their probability, and one that all rows go through,
    `shared` wide inside (as in DeepSeekMoE, arXiv 2401.06066)."""

    def __init__(self, width: int, inner: int, experts: int, chosen: int, shared: int):
        super().__init__()
        self.router = Router(width, experts, chosen)
        self.experts = nn.ModuleList(SwiGLU(width, inner) for _ in range(experts))
        self.shared = SwiGLU(width, shared)

    def forward(self, h: Float[Tensor, "*n width"]) -> Float[Tensor, "*n width"]:
        rows = h.flatten(0, -2)
        weights, chosen, _ = self.router(rows)
        order = chosen.flatten().argsort(stable=True)  # all choices, expert after expert
        row = order // chosen.shape[1]
        asked = rows.index_select(0, row).split(self.counts(chosen))
        # An expert that nobody chose is asked too: its gradients are zero, and not missing.
        answers = torch.cat([expert(part) for expert, part in zip(self.experts, asked, strict=True)])
        weighed = answers * weights.flatten()[order, None]
        mixed = weighed.new_zeros(rows.shape).index_add(0, row, weighed)
        return mixed.view_as(h).to(h.dtype) + self.shared(h)

    def counts(self, chosen: Int[Tensor, "n chosen"]) -> list[int]:
        """How many rows go through each expert."""
        return chosen.flatten().bincount(minlength=len(self.experts)).tolist()


@dataclass(frozen=True)
class Balance:
    """What the routers of a network chose while it was watched, one entry for each time a router was passed.

    shares: of all choices, those that fell on each expert. probabilities: what each was given on average; gradients go
    through these. All rows count, those of padding too.
    """

    shares: list[Float[Tensor, " experts"]] = field(default_factory=list)
    probabilities: list[Float[Tensor, " experts"]] = field(default_factory=list)

    def share(self) -> Float[Tensor, "layers experts"]:
        """The shares of all experts, layer by layer; those of a layer sum to 1. ValueError where nothing was
        watched."""
        if not self.shares:
            raise ValueError("no router was passed: call the network while it is watched, and one that has experts")
        return torch.stack(self.shares)

    def loss(self) -> Float[Tensor, ""]:
        """The balance loss, its mean over layers: 1 where all experts are chosen alike, more where not. The paper's
        weight for it is 0.01."""
        share = self.share()
        return share.shape[1] * (share * torch.stack(self.probabilities)).sum(dim=1).mean()


@contextmanager
def watched(model: nn.Module) -> Iterator[Balance]:
    """While this is open, calls of the network tell how evenly its experts are chosen. Nothing is left on the network
    afterwards."""
    balance = Balance()

    def note(router: Router, rows: tuple, answer: tuple) -> None:
        _, chosen, probability = answer
        balance.shares.append(chosen.flatten().bincount(minlength=probability.shape[1]) / chosen.numel())
        balance.probabilities.append(probability.mean(dim=0))

    hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, Router)]
    try:
        yield balance
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evenly(model: nn.Module) -> Iterator[None]:
    """Inside, experts share out the rows evenly: how many each has is known of tensors without contents too, and costs
    the same."""
    layers = [part for part in model.modules() if isinstance(part, MoE)]

    def even(experts: int, chosen: Tensor) -> list[int]:
        return [chosen.numel() // experts + (number < chosen.numel() % experts) for number in range(experts)]

    for layer in layers:
        layer.counts = partial(even, len(layer.experts))
    try:
        yield
    finally:
        for layer in layers:
            del layer.counts


def active(model: nn.Module) -> int:
    """How many of a network's parameters one row goes through: all but the experts that are not chosen."""
    idle = (
        (len(part.experts) - part.router.chosen) * sum(p.numel() for p in part.experts[0].parameters())
        for part in model.modules()
        if isinstance(part, MoE)
    )
    return sum(p.numel() for p in model.parameters()) - sum(idle)
