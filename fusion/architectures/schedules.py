"""A checkpoint's scheduler_config.json as times for our solvers, and what its network predicts as a velocity on the straight path."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion.flow import shift
from fusion.solvers import Velocity, schedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noised latents, a time in [0, 1] as the network is told it) -> the network's guided prediction, fp32."""


@dataclass(frozen=True)
class FlowSchedule:
    """Networks that predict the velocity itself (diffusers' FlowMatchEulerDiscreteScheduler).

    shift: of the times towards noise, for every size; by_size: (tokens, shift) of a small and of a large picture, between which a line gives the
    shift of others, or None. exponential: that line gives the logarithm (SD3's and Flux's). last: the least time but 0, None for even steps.
    """

    shift: float
    by_size: tuple[tuple[int, float], tuple[int, float]] | None
    exponential: bool
    last: float | None

    def times(self, steps: int, tokens: int) -> Float[Tensor, " n"]:
        """steps + 1 falling times from 1 to 0, for pictures of that many patches."""
        even = schedule(steps)
        if self.last is not None:
            even[:-1] = torch.linspace(1, self.last, steps)
        return shift(even, self.shift if self.by_size is None else self.shift_of(tokens))

    def shift_of(self, tokens: int) -> float:
        """The shift for pictures of that many patches."""
        (few, least), (many, most) = self.by_size
        mu = least + (most - least) * (tokens - few) / (many - few)
        return math.exp(mu) if self.exponential else mu

    def begin(self, noise: Float[Tensor, "b c h w"], times: Float[Tensor, " n"]) -> Float[Tensor, "b c h w"]:
        """The state at times[0]: the noise."""
        return noise

    def velocity(self, predict: Predict) -> Velocity:
        """What is predicted."""
        return predict


@dataclass(frozen=True)
class DiscreteSchedule:
    """Networks that predict the noise of x_k = sqrt(a_k) x + sqrt(1 - a_k) noise at whole steps k (DDPM, arXiv 2006.11239).

    Divided by sqrt(a_k) + sqrt(1 - a_k), x_k is a point of the straight path, at t_k = sqrt(1 - a_k) / (sqrt(a_k) + sqrt(1 - a_k)). The ODE
    is the same in both, so that every solver serves: an Euler step in t is a step of DDIM (arXiv 2010.02502), and dpmpp_2m, which depends on
    signal to noise alone, stays what it is. signal, noise: sqrt(a_k) and sqrt(1 - a_k) by step k. The walk ends at the data.
    """

    signal: Float[Tensor, " k"]
    noise: Float[Tensor, " k"]
    spacing: str
    offset: int

    @property
    def t(self) -> Float[Tensor, " k"]:
        """The time of every step."""
        return self.noise / (self.signal + self.noise)

    def chosen(self, steps: int) -> Int[Tensor, " n"]:
        """The falling steps k at which the network is asked, as diffusers' DDIM (leading) and DPM-Solver (linspace) choose them."""
        total = len(self.signal)
        if not 1 <= steps <= total:
            raise ValueError(f"{steps} solver steps: this network knows {total}; use 1 to {total}")
        if self.spacing == "leading":
            chosen = torch.arange(steps).flip(0) * (total // steps) + self.offset
        elif self.spacing == "trailing":
            chosen = torch.arange(steps, 0, -1, dtype=torch.float64).mul(total / steps).round().long() - 1
        else:
            chosen = torch.linspace(total - 1, 0, steps + 1, dtype=torch.float64).round().long()[:-1]
        return chosen.clamp(max=total - 1)

    def times(self, steps: int, tokens: int) -> Float[Tensor, " n"]:
        """steps + 1 falling times, the last 0; the number of patches plays no part."""
        return torch.cat([self.t[self.chosen(steps)], torch.zeros(1)])

    def begin(self, noise: Float[Tensor, "b c h w"], times: Float[Tensor, " n"]) -> Float[Tensor, "b c h w"]:
        """The state at times[0], whose x_k is the noise."""
        signal, part = self._at(times[0])
        return noise / (signal + part)

    def velocity(self, predict: Predict) -> Velocity:
        """dx/dt = noise - data on the straight path. Solvers ask at times of the schedule alone, where k is whole."""

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            signal, part = self._at(t)
            x_k = (signal + part) * x
            noise = predict(x_k, self._step(t) / len(self.signal))
            return noise - (x_k - part * noise) / signal

        return velocity

    def _step(self, t: Tensor) -> Tensor:
        return (self.t - t.cpu()).abs().argmin()

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        k = self._step(t)
        return self.signal[k], self.noise[k]


# What a scheduler can be told beside, and no checkpoint of the pipelines here is: it would draw otherwise than its authors.
LEFT_OUT = (
    "clip_sample", "thresholding", "rescale_betas_zero_snr", "trained_betas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "shift_terminal", "invert_sigmas", "stochastic_sampling",
)  # fmt: skip


def read_schedule(folder: Path, even: bool) -> FlowSchedule | DiscreteSchedule:
    """The schedule of the folder `scheduler` of a pipeline. even: whether the pipeline's flow times are even before their shift.

    ValueError in one line for a scheduler of another class or with settings that are left out here.
    """
    try:
        settings = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/scheduler_config.json cannot be read ({' '.join(str(error).split())[:100]})") from None
    kind = settings.get("_class_name")
    if told := [name for name in LEFT_OUT if settings.get(name)]:
        raise ValueError(f"{folder}/scheduler_config.json sets {told[0]}, which our schedules leave out")
    if kind == "FlowMatchEulerDiscreteScheduler":
        return _flow(settings, even)
    if kind not in SPACINGS or settings.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"{folder}: {kind} of {settings.get('prediction_type')}; read are flow matching, and epsilon of {', '.join(SPACINGS)}")
    return _discrete(settings, folder)


def _flow(settings: dict, even: bool) -> FlowSchedule:
    """Unless steps are even, the last time but 0 is the first in training, shifted with the others (and so twice if for every size)."""
    by_size, always = None, settings.get("shift", 1.0)
    if settings.get("use_dynamic_shifting"):
        few, many = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
        by_size, always = ((few, settings.get("base_shift", 0.5)), (many, settings.get("max_shift", 1.15))), 1.0
    last = None if even else shift(torch.tensor(1 / settings.get("num_train_timesteps", 1000)), always).item()
    return FlowSchedule(always, by_size, settings.get("time_shift_type", "exponential") == "exponential", last)


# Schedulers of the same training; of how they choose their steps, what each does unless told.
SPACINGS = {"DDIMScheduler": "leading", "DDPMScheduler": "leading", "DPMSolverMultistepScheduler": "linspace"}
BETAS = {"linear": 1.0, "scaled_linear": 0.5}
"""The power of beta that grows by equal steps."""


def _discrete(settings: dict, folder: Path) -> DiscreteSchedule:
    kind = settings.get("beta_schedule", "linear")
    if kind not in BETAS:
        raise ValueError(f"{folder}: beta_schedule {kind} is not read; {' and '.join(BETAS)} are")
    total, power = settings.get("num_train_timesteps", 1000), BETAS[kind]
    ends = (settings.get(name, usual) ** power for name, usual in (("beta_start", 1e-4), ("beta_end", 0.02)))
    kept = (1 - torch.linspace(*ends, total) ** (1 / power)).cumprod(0)
    spacing = settings.get("timestep_spacing", SPACINGS[settings["_class_name"]])
    return DiscreteSchedule(kept.sqrt(), (1 - kept).sqrt(), spacing, settings.get("steps_offset", 0))
