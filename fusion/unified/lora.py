"""LoRA (Hu et al., arXiv 2106.09685) on the language model, by peft: adapters inserted, merged and removed."""

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from fusion.unified.settings import Lora


def adapt(layers: nn.ModuleList, attention: str, settings: Lora) -> None:
    """Wrap the targets in place; the first answers are those of before, to the bit. attention: the name of that part of
    a layer."""
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=_targets(layers, attention, settings.targets)
    )
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
