"""Weights, gradients, EMA and optimizer states sharded over ranks by FSDP2 (Zhao et al., arXiv 2304.11277).

Each rank keeps its rows of every tensor; a layer is whole only while it computes. The main rank has the network a
second time, whole and on the CPU: it gets the averaged weights whenever they are looked at or saved, so that
validation, samples and saved folders know nothing of shards and nothing is ever converted.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fusion.training.ema import EMA
from fusion.training.learner import Learner


def share_out(learner: Learner, device: torch.device, ranks: int, main: bool) -> None:
    """Share out the network of a learner that is on the CPU. ValueError where it cannot be."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ValueError(
            f"training.sharded: torch {torch.__version__} cannot share out what only some ranks use; install 2.13, or "
            "set it to false"
        )
    if ranks == 1:
        raise ValueError(
            "training.sharded: one rank has nobody to share with; start more (accelerate launch --num_processes), or "
            "set it to false"
        )
    if main:
        learner.model = copy.deepcopy(learner.kept)
    mesh = init_device_mesh(device.type, (ranks,))
    for unit in learner.units():
        fully_shard(unit, mesh=mesh)
        # Losses are divided by global counts already, so that gradients are summed and not averaged.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        # A rank may have no image, or no text.
        unit.set_reduce_scatter_unused_params(True, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. Where it is shared out, all ranks have to ask at once."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(full: Tensor, other: Tensor) -> Tensor:
    """A tensor that every rank has whole, where and shared out as `other` is."""
    full = full.to(other.device)
    return (
        distribute_tensor(full, other.device_mesh, other.placements, src_data_rank=None)
        if isinstance(other, DTensor)
        else full
    )


def gathered(tensors: Mapping[str, Tensor], main: bool) -> dict[str, Tensor]:
    """Whole tensors on the main rank's CPU; nothing on the others. Those that are whole already stay where they are."""
    found = {}
    for name in sorted(tensors):  # all ranks ask for the same one
        tensor = tensors[name].detach()
        full = whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor
        if main:
            found[name] = full
    return found


@contextmanager
def averaged(learner: Learner, ema: EMA, device: torch.device, main: bool) -> Iterator[None]:
    """Inside, a learner's model on the main rank is the whole network, with averaged weights and on the device."""
    shared, averages = learner.model, gathered(ema.state_dict(), main)
    if main:
        load(learner.kept, averages)
        learner.model = learner.kept.to(device)
    try:
        yield
    finally:
        if main:
            learner.kept.cpu()
            learner.model = shared


@torch.no_grad()
def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put named weights into a network."""
    for name, weight in weights.items():
        model.get_parameter(name).copy_(weight)
