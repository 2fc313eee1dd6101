"""AdamW whose states take a byte per number (Dettmers et al., arXiv 2110.02861), as bitsandbytes has it.

This is imported only where it is chosen: bitsandbytes need not be there. A state is codes in blocks of 256 and the
largest magnitude of each block; tensors of less than 4096 numbers have theirs in fp32. The code books are the same for
all tensors.
"""

import bitsandbytes
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import _disable_current_modes

BOOKS = {"qmap1": "dynamic", "qmap2": "udynamic"}


class AdamW8bit(bitsandbytes.optim.AdamW8bit):
    """bitsandbytes' own, with a state that can be put back from what is saved of it."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            raise ValueError(
                "optimizer='adamw8bit': bitsandbytes cannot share out its states over ranks: choose adamw, or do not "
                "share out"
            )

    def fill_qmap(self) -> None:
        """The code books, real ones where a step is imagined too (fusion.planning.fake_step): they are made by looking
        at numbers."""
        with _disable_current_modes():
            super().fill_qmap()

    def complete(self) -> None:
        """Put back what is not saved, after the tensors of a state are in place."""
        for p, state in self.state.items():
            state["step"] = int(state["step"])
            if state["state1"].dtype == torch.uint8:
                state |= {kind: self._book(name, p.device) for kind, name in BOOKS.items()}

    def _book(self, name: str, device: torch.device) -> Tensor:
        self.name2qmap[name] = self.name2qmap[name].to(device)
        return self.name2qmap[name]
