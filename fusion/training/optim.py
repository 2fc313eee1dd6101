"""Optimizers: parameter groups, AdamW, Muon for the decoder's hidden matrices, and the learning rate schedule."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from fusion.training import sharding as shards

# Quintic Newton-Schulz coefficients of Keller Jordan's Muon (kellerjordan.github.io/posts/muon).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
STATES = {"AdamW": "exp_avg", "AdamW8bit": "state1", "Muon": "momentum"}
"""What each kind of optimizer keeps of every parameter."""


@dataclass
class Optim:
    """Settings of the optimizer.

    optimizer: adamw; adamw8bit, whose states take a quarter of the memory (bitsandbytes, which has to be installed); or
    muon, which takes the hidden matrices of the network and leaves the rest to AdamW. lr: the peak learning rate of
    both (Muon's step is scaled to the RMS of AdamW's, so that one rate serves both); matrix_lr: Muon's own, where it
    should differ. rates: factors on the rate by name of parameter, as in {"llm.*": 0.2}: * stands for anything, the
    last pattern that fits counts, and what has 0 is frozen. Names begin with llm. in a language model, twins. in the
    copies of its modules that images pass through, texts. in a text-to-image model's text encoders. schedule: cosine,
    or wsd (constant, then linear down over the last `decay` of the run). warmup: steps of linear warmup. floor: share
    of the peak that is left at the end. clip: largest norm of the gradient.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    matrix_lr: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.05
    momentum: float = 0.95
    schedule: str = "cosine"
    warmup: int = 100
    decay: float = 0.3
    floor: float = 0.0
    clip: float = 1.0

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
        if self.optimizer == "adamw8bit" and not find_spec("bitsandbytes"):
            raise ValueError(
                "optimizer='adamw8bit' needs bitsandbytes, which is not here: pip install bitsandbytes, or choose adamw"
            )
        if self.schedule not in ("cosine", "wsd"):
            raise ValueError(f"schedule={self.schedule!r}: choose cosine or wsd")
        if negative := [pattern for pattern, factor in self.rates.items() if factor < 0]:
            raise ValueError(f"rates: {negative[0]!r} has a factor below 0; 0 freezes")

    def factor(self, name: str) -> float:
        """On the learning rate of a parameter."""
        return next((factor for pattern, factor in reversed(self.rates.items()) if fnmatchcase(name, pattern)), 1.0)


def rate(settings: Optim, step: int, progress: float) -> float:
    """Factor on the peak learning rate at a step (counted from 0) and a share of the run in [0, 1]; `floor` once that
    is 1."""
    progress = min(max(progress, 0.0), 1.0)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    share = cosine if settings.schedule == "cosine" else min(1.0, (1 - progress) / max(settings.decay, 1e-9))
    return min(1.0, (step + 1) / max(settings.warmup, 1)) * (settings.floor + (1 - settings.floor) * share)


def freeze(model: nn.Module, settings: Optim) -> None:
    """Take what has the rate 0 out of training. ValueError for a pattern that fits no parameter, and where nothing is
    left to train."""
    named = dict(model.named_parameters())
    for pattern in settings.rates:
        if not any(fnmatchcase(name, pattern) for name in named):
            parts = ", ".join(
                dict.fromkeys(
                    f"{first}.*" if rest else first for first, _, rest in (name.partition(".") for name in named)
                )
            )
            raise ValueError(f"rates: no parameter is called {pattern!r}; their names fit {parts}")
    for name, p in named.items():
        if not settings.factor(name):
            p.requires_grad_(False)
    if not any(p.requires_grad for p in named.values()):
        raise ValueError("rates: every parameter is frozen, and nothing would be trained")


class Optimizers:
    """The optimizers of a run as one: step, zero_grad, set_rate, and a state of named tensors for safetensors."""

    def __init__(self, model: nn.Module, settings: Optim):
        self.settings = settings
        freeze(model, settings)
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        matrices = hidden_matrices(model) if settings.optimizer == "muon" else []
        self.parts: list[Optimizer] = [_adam(_adam_groups(model, matrices, settings), settings)]
        if matrices:
            groups = _by_factor(matrices, self.names, settings.matrix_lr or settings.lr, settings)
            self.parts.append(
                Muon(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
            )
        for group in self.groups:
            group["peak"] = group["lr"]

    @property
    def groups(self) -> list[dict]:
        """The parameter groups of all optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def set_rate(self, factor: float) -> None:
        """Give every group its peak learning rate times the factor."""
        for group in self.groups:
            group["lr"] = group["peak"] * factor

    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """`<kind>/<parameter>` -> tensor; without code books, which are no state."""
        states = ((self.names[p], state) for part in self.parts for p, state in part.state.items())
        kept = (
            (kind, name, value)
            for name, state in states
            for kind, value in state.items()
            if not kind.startswith("qmap")
        )
        return {f"{kind}/{name}": torch.as_tensor(value) for kind, name, value in kept}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take the state back, each tensor onto the device of its parameter (step counts stay where fused AdamW wants
        them). ValueError for that of another optimizer."""
        parameters = {name: p for p, name in self.names.items()}
        owner = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            p = parameters[name]
            owner[p].state[p][kind] = shards.like(value, p) if value.shape == p.shape else value.to(p.device).clone()
        for part in self.parts:
            if any(STATES[type(part).__name__] not in state for state in part.state.values()):
                raise ValueError(
                    f"optimizer={self.settings.optimizer!r}: the checkpoint was written with another one: go on "
                    "with that"
                )
            if hasattr(part, "complete"):
                part.complete()


def _adam(groups: list[dict], settings: Optim) -> Optimizer:
    how = {"lr": settings.lr, "betas": (settings.beta1, settings.beta2)}
    if settings.optimizer != "adamw8bit":
        return AdamW(groups, fused=True, **how)
    from fusion.training.adamw8bit import AdamW8bit  # bitsandbytes need not be there

    return AdamW8bit(groups, **how)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices inside lists of layers: the decoder's, a diffusion transformer's, the blocks of a
    convolutional head. Muon is for those; embeddings, output layers, tables, and modulation, several matrices in one,
    are not among them."""
    layers = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    inside = (
        (name, p)
        for group in layers
        for name, p in group.named_parameters()
        if "modulation" not in name and "table" not in name
    )
    found = {id(p): p for _, p in inside if p.ndim == 2 and p.requires_grad and min(p.shape) > 1}
    return list(found.values())


def _adam_groups(model: nn.Module, matrices: list[nn.Parameter], settings: Optim) -> list[dict]:
    """Matrices of linear layers decay; norms, biases, embeddings, tables and modulation, where zero means nothing, do
    not."""
    elsewhere = {id(p) for p in matrices}
    linear = {
        id(m.weight) for name, m in model.named_modules() if isinstance(m, nn.Linear) and "modulation" not in name
    }
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}  # a tied head is an embedding
    groups = defaultdict(list)
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in elsewhere:
            groups[settings.factor(name), id(p) in linear - embeddings].append(p)
    return [
        {"params": params, "lr": settings.lr * factor, "weight_decay": settings.weight_decay if decays else 0.0}
        for (factor, decays), params in groups.items()
    ]


def _by_factor(params: list[nn.Parameter], names: dict[nn.Parameter, str], lr: float, settings: Optim) -> list[dict]:
    groups = defaultdict(list)
    for p in params:
        groups[settings.factor(names[p])].append(p)
    return [{"params": group, "lr": lr * factor} for factor, group in groups.items()]


class Muon(Optimizer):
    """Momentum, orthogonalised: every singular value of a matrix's update becomes about 1 (Jordan 2024).

    As torch.optim.Muon with Nesterov momentum and adjust_lr_fn="match_rms_adamw" (0.2 sqrt(max(rows, columns)), arXiv
    2502.16982), but matrices of one shape go through Newton-Schulz together, in the dtype that autocast takes where
    `step` is called, or fp32, and where several ranks train, each takes its share of them (arXiv 2502.16982, section
    2.3).
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, steps: int = 5):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same_shape[p.shape].append(p)
            for params in same_shape.values():
                self._update(params, group)

    def _update(self, params: list[nn.Parameter], group: dict) -> None:
        gradients = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momentum, group["momentum"])  # Nesterov
        updates = _dealt_out(torch.stack([shards.whole(one) for one in ahead]), group["steps"]).unbind()
        scale = 0.2 * math.sqrt(max(params[0].shape))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        updates = [shards.like(update.to(p.dtype), p) for update, p in zip(updates, params, strict=True)]
        torch._foreach_add_(params, updates, alpha=-group["lr"] * scale)


def _dealt_out(x: Tensor, steps: int) -> Tensor:
    """`orthogonalise`, where there are several ranks with the same x, each for every n-th matrix."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return orthogonalise(x, steps)
    updates, mine = (
        torch.zeros_like(x, dtype=_dtype_of_products(x)),
        slice(dist.get_rank(), None, dist.get_world_size()),
    )
    if len(x[mine]):
        updates[mine] = orthogonalise(x[mine], steps)
    dist.all_reduce(updates)  # of each matrix one rank's and zeros
    return updates


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """Autocast's where it is on, or fp32."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """(k, rows, columns) -> the same shape with singular values near 1, by Newton-Schulz iteration; within autocast in
    its dtype, else in fp32."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x.to(_dtype_of_products(x))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
