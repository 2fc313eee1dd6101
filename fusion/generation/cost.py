"""Cost of networks and images, counted, not timed: parameters, operations, activation memory, forward passes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusion.flow.solvers import SOLVERS, schedule
from fusion.generation.sampling import Sampling

Shape = Sequence[int]


@contextmanager
def imagined() -> Iterator[None]:
    """Inside, tensors have shapes and no contents: networks of any size are built and run in no memory and no time."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def parameters(*modules: nn.Module, trained: bool = False) -> int:
    """How many numbers they learn; each once, however many modules share it. trained: only those that need a
    gradient."""
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad or not trained}
    return sum(p.numel() for p in found.values())


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions in `run()`, two for a multiply-add; of its backward
    pass too if it has one."""
    # Attention as two matrix products, which the counter knows on every device.
    with sdpa_kernel(SDPBackend.MATH), counting() as counter:
        run()
    return counter.get_total_flops()


def counting() -> FlopCounterMode:
    """Counts such operations of what runs inside, eagerly and in whatever kernels it would without; torch knows those
    of attention on GPUs."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    gradient: Shape,
    x: Shape,
    weight: Shape,
    bias,
    stride,
    padding,
    dilation,
    transposed: bool,
    output_padding,
    groups: int,
    wanted,
    out_shape=None,
) -> int:
    """Of what is wanted, the gradients of input and weight, each is as much as the forward pass. The counter's own
    knows nothing of groups."""
    where = x if transposed else gradient
    return (wanted[0] + wanted[1]) * 2 * where[0] * math.prod(where[2:]) * math.prod(weight)


def kept_bytes(run: Callable[[], Any]) -> int:
    """Bytes of activations that `run()` keeps for the backward pass, parameters left out, shared storage counted
    once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(kept.values())


@cache
def passes(settings: Sampling) -> int:
    """Forward passes that one image takes: each evaluation of the solver, once for every branch of guidance that
    takes part in it."""
    counted = 0

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal counted
        counted += len(settings.flow_guidance.branches(t))
        return torch.zeros_like(x)

    SOLVERS[settings.solver](velocity, torch.zeros(1), schedule(settings.steps, settings.shift))
    return counted
