"""Simulated devices on one machine: CPU tensors that report another device and refuse to meet others."""

from contextlib import ExitStack, nullcontext
from unittest.mock import patch

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class On(Tensor):
    """A tensor on a device that is only said: "meta:0", "meta:1", ..."""

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device):
        device = torch.device("meta", device.index or 0)
        how = {"strides": real.stride(), "storage_offset": real.storage_offset(), "dtype": real.dtype, "device": device}
        return torch.Tensor._make_wrapper_subclass(cls, real.shape, **how)

    def __init__(self, real: Tensor, device: torch.device):
        self.inner = real

    def __repr__(self):
        return f"On({self.inner}, {self.device})"

    def __getitem__(self, index):
        return super().__getitem__(On(torch.as_tensor(index), self.device) if isinstance(index, list) else index)

    def tolist(self):
        return self.inner.tolist()

    def new_tensor(self, data, **how) -> "On":
        """A tensor beside this one."""
        return On(self.inner.new_tensor(data, **how), self.device)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    places = {tensor.device for tensor in tensors if tensor.ndim or isinstance(tensor, On)}
    asked = kwargs.get("device")
    if asked is not None and torch.device(asked) == torch.device("meta"):
        asked = torch.device("meta", 0)  # as "cuda" is the first one
    if (
        func not in COPIES
        and len({place for place in places if place.type == "meta"}) + (torch.device("cpu") in places) > 1
    ):
        raise RuntimeError(f"{func}: tensors on {', '.join(sorted(map(str, places)))}")
    place = torch.device(asked) if asked is not None else next(iter(places))
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    given = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, On)}
    result = func(*tree_map(_real, args), **tree_map(_real, kwargs))

    def placed(made):
        if not isinstance(made, Tensor):
            return made
        return given.get(id(made)) if id(made) in given else On(made, place) if place.type == "meta" else made

    return tree_map(placed, result)


def _real(value):
    return value.inner if isinstance(value, On) else value


class Several(TorchDispatchMode):
    """Inside, tensors can be made on said devices too; they know no autocast."""

    def __enter__(self):
        self.patches = ExitStack()
        autocast, enabled, tensor = torch.autocast, torch.is_autocast_enabled, torch.tensor
        self.patches.enter_context(
            patch("torch.autocast", lambda kind, *how, **more: _without(kind) or autocast(kind, *how, **more))
        )
        self.patches.enter_context(
            patch("torch.is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))
        )
        self.patches.enter_context(
            patch("torch.tensor", lambda data, device=None, **how: tensor(data, **how).to(device or "cpu"))
        )
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if any(issubclass(kind, On) for kind in types) or (asked is not None and torch.device(asked).type == "meta"):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


def _without(kind: str):
    return nullcontext() if kind == "meta" else None


class Placed(AlignDevicesHook):
    """What accelerate puts around a module on a device, whose weights are there already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def spread(model: nn.Module, places: dict[str, torch.device]) -> None:
    """Say of every part of a model that it is on a device, by name."""
    done: dict[int, Tensor] = {}
    for name, place in places.items():
        parent, _, last = name.rpartition(".")
        part = getattr(model.get_submodule(parent), last)
        if not isinstance(part, nn.Module):
            setattr(model.get_submodule(parent), last, nn.Parameter(On(part.data, place), False))
            continue
        for module in part.modules():
            for store in (module._parameters, module._buffers):
                for key, tensor in store.items():
                    if tensor is not None:
                        made = done.setdefault(id(tensor), On(tensor.data, place))
                        store[key] = nn.Parameter(made, False) if isinstance(tensor, nn.Parameter) else made
        add_hook_to_module(part, Placed(execution_device=place))
