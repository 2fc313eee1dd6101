"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) on the language model, by peft: put in, merged into the weights, or taken from them."""

from dataclasses import dataclass

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

TARGETS = ("attention", "linear")


@dataclass(frozen=True)
class Lora:
    """rank: of what is added to a matrix; alpha: it counts alpha / rank times. targets: the projections of attention, or all linear layers of
    the decoder's layers (experts that are one tensor are no linear layers). Raises ValueError for what is no such thing."""

    rank: int = 8
    alpha: float = 16.0
    targets: str = "linear"

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0 or self.targets not in TARGETS:
            raise ValueError(f"lora rank={self.rank}, alpha={self.alpha}, targets={self.targets!r}: targets are one of {', '.join(TARGETS)}")


def adapt(layers: nn.ModuleList, attention: str, settings: Lora) -> None:
    """Wrap the targets in place; the first answers are those of before, to the bit. attention: the name of that part of a layer."""
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=_targets(layers, attention, settings.targets))
    for layer in layers:
        peft.inject_adapter_in_model(config, layer)


def _targets(layers: nn.ModuleList, attention: str, which: str) -> list[str]:
    found = [name for name, module in layers[0].named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in found if which == "linear" or name.startswith(f"{attention}.")]


def merge(layers: nn.ModuleList) -> None:
    """Add what the adapters learned to the weights, and take the adapters away."""
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(layer.get_submodule(parent), child, module.get_base_layer())
