"""Key-value cache of a prefix, layer by layer, with room for a block of rows that is recomputed every step."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class PrefixCache(DynamicCache):
    """Keys and values of a prefix; once frozen, a block of rows is read behind it at every solver step and not kept."""

    layers: list[Any]  # with keys and values each, which the base of transformers' kinds of layers does not declare

    def __init__(self):
        super().__init__()
        self.buffers: list[tuple[Tensor, Tensor]] | None = None

    @property
    def frozen(self) -> bool:
        """Whether a block is read behind it, and not kept."""
        return self.buffers is not None

    def freeze(self, rows: int) -> None:
        """Make room for a block of `rows` rows behind the prefix; from now on every update overwrites it in place."""
        self.buffers = [(_room(layer.keys, rows), _room(layer.values, rows)) for layer in self.layers]

    def head(self, batch: int) -> "PrefixCache":
        """The first rows of a frozen cache; writes go to the same memory."""
        part = PrefixCache()
        part.buffers = [(keys[:batch], values[:batch]) for keys, values in self.buffers]  # type: ignore[union-attr]
        return part

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Keys and values of prefix and new rows, (b, heads, k, c) each."""
        if not self.frozen:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        keys, values = self.buffers[layer_idx]  # type: ignore[index]  # it is frozen
        keys[:, :, -key_states.shape[2] :], values[:, :, -value_states.shape[2] :] = key_states, value_states
        return keys, values

    @staticmethod
    def stack(caches: "list[PrefixCache]", rows: list[list[int]]) -> "PrefixCache":
        """One batch out of chosen rows of several caches, each padded at its end to the longest."""
        length = max(cache.get_seq_length() for cache in caches)
        stacked = PrefixCache()
        for index in range(len(caches[0].layers)):
            parts = [(c.layers[index].keys[r], c.layers[index].values[r]) for c, r in zip(caches, rows, strict=True)]
            keys, values = zip(
                *((_room(k, length - k.shape[2]), _room(v, length - v.shape[2])) for k, v in parts), strict=True
            )
            DynamicCache.update(stacked, torch.cat(keys), torch.cat(values), index)
        return stacked


def _room(states: Tensor, rows: int) -> Tensor:
    return torch.cat([states, states.new_zeros(*states.shape[:2], rows, states.shape[3])], dim=2)
