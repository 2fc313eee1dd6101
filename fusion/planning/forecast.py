"""What a training run would take, before anything is bought: parameters, tokens, memory, operations, time and money."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fusion.generation.cost import flops
from fusion.planning.fake_step import Memory, follow
from fusion.planning.planned_diffusion import TextToImageSubject
from fusion.planning.planned_run import Shares, Subject
from fusion.planning.planned_unified import UnifiedSubject
from fusion.recipes.diffusion import Diffusion
from fusion.recipes.unified import Unified
from fusion.training.devices import DEVICES, Device
from fusion.training.learner import recomputed
from fusion.training.precision import bf16_is_faster

Run = Unified | Diffusion


@dataclass(frozen=True)
class Forecast:
    """What a run takes. parameters: by part, all and trained. work: operations of a step on each device, forward and
    backward; reading: those of texts on top, if all of them are new. mfu: share of the device's speed that is reached.
    price: dollars per device and hour."""

    config: Run
    subject: Subject
    precision: str
    parameters: dict[str, tuple[int, int]]
    memory: Memory
    work: int
    reading: int
    gpus: int
    device: Device
    mfu: float
    price: float | None

    @property
    def shares(self) -> Shares:
        """Of a batch."""
        return self.subject.shares

    @property
    def peak(self) -> float:
        """Operations per second that the data sheet promises."""
        return self.device.speed(self.precision)

    @property
    def batches(self) -> int:
        """Of a step, over all devices."""
        return self.gpus * self.config.training.accumulate

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.work / (self.peak * self.mfu)

    @cached_property
    def steps(self) -> int:
        """Until the run ends, by its documents or by its minutes."""
        training = self.config.training
        ends = [math.ceil(training.documents / (self.shares.documents * self.batches))] if training.documents else []
        ends += [math.ceil(60 * training.minutes / self.step_seconds)] if training.minutes else []
        return min(ends)

    @property
    def seconds(self) -> float:
        """Of all steps; validation, samples and checkpoints come on top."""
        return self.steps * self.step_seconds

    @property
    def cost(self) -> float | None:
        """Dollars."""
        return None if self.price is None else self.price * self.gpus * self.seconds / 3600


def forecast(
    config: Run, gpus: int = 1, device: str = "h100", mfu: float = 0.4, price: float | None = None
) -> Forecast:
    """Imagine a step of the run that a config describes. ValueError in one line where that is not possible."""
    if gpus < 1 or not 0 < mfu <= 1 or (price is not None and price < 0):
        raise ValueError(
            f"gpus={gpus}, mfu={mfu}, price={price}: at least one device, a share above 0 and at most 1, and no "
            "negative price"
        )
    on, training = DEVICES[device](), config.training
    precision = training.precision
    if precision == "auto":
        precision = "bf16" if device != "cpu" or bf16_is_faster() else "fp32"
    subject = (
        TextToImageSubject(config)
        if isinstance(config, Diffusion)
        else UnifiedSubject(config, "matmul" if device == "cpu" else "sdpa")
    )
    try:
        memory, work, reading = _imagine(subject, config, precision, gpus)
    except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError) as error:
        raise ValueError(
            f"{subject.title}: what it computes depends on its weights, so that it cannot be planned ({error})"
        ) from None
    return Forecast(config, subject, precision, parameters(subject), memory, work, reading, gpus, on, mfu, price)


def _imagine(subject: Subject, config: Run, precision: str, gpus: int) -> tuple[Memory, int, int]:
    """Memory, operations of a step, and those of reading texts."""
    given, loss = subject.step()
    training, reading = config.training, subject.reading()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def run() -> None:
        with autocast:
            total = loss()
        total.backward()

    again = recomputed(subject.layers()) if training.recompute else nullcontext()
    with subject.imagined, again:
        memory = follow(subject.model, subject.codec, given, loss, training, autocast, gpus)
        work = flops(run) * training.accumulate  # texts are known by now
        read = flops(reading) * training.accumulate if reading else 0
    return shared_out(memory, subject, gpus) if training.sharded else memory, work, read


def shared_out(memory: Memory, subject: Subject, gpus: int) -> Memory:
    """The memory of each of several devices that share everything out (fusion.training.sharding), reckoned: beside its
    share, a device has what the layers do not hold as a whole, with gradients, and two layers, one that computes and
    the next."""
    if gpus == 1:
        raise ValueError(
            "training.sharded: one device has nobody to share with; plan for more (--gpus), or set it to false"
        )
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in subject.layers()]
    alone = subject.whole()
    whole = 2 * (memory.weights - alone - sum(layers)) + 3 * max(layers)
    share = {name: math.ceil(getattr(memory, name) / gpus) for name in ("optimizer", "average", "gradients")}
    share["weights"] = alone + math.ceil((memory.weights - alone) / gpus)
    peak = sum(share.values()) + memory.codec + memory.kept + whole
    return replace(memory, **share, peak=peak, when="between forward and backward pass, reckoned")


def parameters(subject: Subject) -> dict[str, tuple[int, int]]:
    """All parameters and the trained ones, by part; each once."""
    counts: dict[str, tuple[int, int]] = {}
    for part, p in subject.parts():
        count, trained = counts.get(part, (0, 0))
        counts[part] = count + p.numel(), trained + p.numel() * p.requires_grad
    return counts
