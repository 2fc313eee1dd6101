"""Simulated training steps: tensors without contents, all allocations tracked, to forecast the memory."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fusion.training.ema import EMA
from fusion.training.optim import Optimizers
from fusion.training.trainer import Training

_ATEN = torch.ops.aten
_BY_INDEX = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}


class Imagined(TorchDispatchMode):
    """Inside, fractions have shapes and no contents, and what is made of whole numbers alone is real: which row is
    whose decides over shapes further on (how many patches are noised), and no weight ever does."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not given:
            made = self._run(func, args, kwargs)
            return made if not isinstance(made, Tensor) or made.is_floating_point() else func(*args, **kwargs)
        if not any(isinstance(tensor, FakeTensor) for tensor in given):
            return func(*args, **kwargs)
        if func in _BY_INDEX:  # how many are chosen is known
            args = (args[0], [part for index in args[1] for part in _chosen(index)], *args[2:])
        return self._run(func, args, kwargs)

    def _run(self, func, args, kwargs):
        with self.fake:
            return func(*args, **kwargs)

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of that shape on the CPU: in fp32 and without contents, or the whole numbers themselves (zeros where
        they are on "meta")."""
        if not tensor.is_floating_point():
            return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor
        with self.fake:
            return torch.empty(tensor.shape, dtype=torch.float32)

    def embody(self, module: nn.Module) -> None:
        """Put imagined weights in the place of those on "meta"; what is shared stays so."""
        made: dict[int, Tensor] = {}
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, tensor in store.items():
                    if tensor is not None and id(tensor) not in made:
                        copy = self.like(tensor)
                        made[id(tensor)] = (
                            nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
                        )
                    store[name] = None if tensor is None else made[id(tensor)]


def _chosen(index: Tensor | None) -> Iterable[Tensor | None]:
    """The indices that a mask stands for."""
    return (
        index.nonzero().unbind(1)
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        else [index]
    )


class Meter(TorchDispatchMode):
    """Follows the memory of every tensor that is made inside, real or imagined, operation by operation. live, peak:
    bytes."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.hold(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)))
        return result

    def hold(self, *tensors: Tensor) -> int:
        """Count these from now on, until they are gone; returns the bytes that they add."""
        before = self.live
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if (key := storage._cdata) not in self._known:
                self._known.add(key)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return self.live - before

    def overlook(self, *tensors: Tensor) -> None:
        """Do not count these, nor views of them."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Memory:
    """Bytes of a step on one device. weights: of the model, trained or not; codec: of the autoencoder, if there is one;
    optimizer: its state; average: the EMA of the weights; gradients; kept: what the forward pass leaves for the
    backward pass, copies of weights in bf16 included; peak: the most that is there at once, `when`. Gradients come
    while what is kept goes, so that the peak is less than the sum.
    """

    weights: int
    codec: int
    optimizer: int
    average: int
    gradients: int
    kept: int
    peak: int
    when: str


def follow(
    model: nn.Module,
    codec: nn.Module,
    batch: Iterable[Tensor],
    loss: Callable[[], Tensor],
    settings: Training,
    autocast: torch.autocast,
    ranks: int = 1,
) -> Memory:
    """The memory of a step as fusion.training.trainer.Trainer takes it, the optimizer's state already there. loss: the
    forward pass of one batch, whose tensors are in `batch` and not counted. ranks: how many devices train, each with
    all weights.

    On real tensors as well as inside `Imagined`; the model is not what it was afterwards, and what `settings` freezes
    is frozen.
    """
    with Meter() as meter:
        meter.overlook(*batch)
        weights = meter.hold(*model.parameters(), *model.buffers())
        encoder = meter.hold(*codec.parameters(), *codec.buffers())
        optimizers = Optimizers(model, settings.optim)
        ema = EMA(model, settings.ema)
        average = meter.live - weights - encoder
        for p in ema.live:
            p.grad = torch.zeros_like(p)
        _update(optimizers)
        optimizer = meter.live - weights - encoder - average
        meter.peak, peaks = meter.live, {}
        for _ in range(min(settings.accumulate, 2)):  # gradients of the first batch are there while the second passes
            before = meter.live
            with autocast:
                total = loss()
            kept = meter.live - before
            total.backward()
            del total
        peaks["between forward and backward pass"] = meter.peak
        gradients = sum(p.grad.nbytes for p in ema.live if p.grad is not None)
        if ranks > 1:
            _sum_gradients(ema.live)
        torch.nn.utils.clip_grad_norm_(ema.live, settings.optim.clip, foreach=True)
        _update(optimizers)
        ema.update(1)
        peaks["while weights are updated"] = meter.peak
    return Memory(
        weights,
        encoder,
        optimizer,
        average,
        gradients,
        kept,
        meter.peak,
        next(when for when, peak in peaks.items() if peak == meter.peak),
    )


def _update(optimizers: Optimizers) -> None:
    optimizers.step()
    optimizers.zero_grad()


def _sum_gradients(parameters: list[Tensor]) -> None:
    """What Trainer._sum_gradients allocates: all gradients in one piece, and accelerate's copy of that."""
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    torch.cat([p.grad.flatten() for p in parameters]).clone()
