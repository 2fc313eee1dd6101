"""A checkpoint's scheduler_config.json as solver times, and its network's output as velocity on the linear path."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fusion.flow.matching import shift
from fusion.flow.solvers import Velocity

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noised latents, a time in [0, 1] as the network is told it) -> the network's guided prediction, fp32."""


BySize = Callable[[int, int], float]
"""(patches of an image, steps) -> mu, the shift or its logarithm."""


def line(few: tuple[int, float], many: tuple[int, float]) -> BySize:
    """mu on the line through (patches, mu) of a small and of a large image."""
    return lambda tokens, steps: few[1] + (many[1] - few[1]) * (tokens - few[0]) / (many[0] - few[0])


def flux2_mu(tokens: int, steps: int) -> float:
    """Flux.2's, fitted at 10 and at 200 steps, between which a line gives that of others (black-forest-labs/flux2,
    sampling.py)."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (steps - 200)


@dataclass(frozen=True)
class FlowSchedule:
    """Networks that predict the velocity itself.

    shift: of the times towards noise, for every size; by_size: instead of it, or None. exponential: mu is the shift's
    logarithm (SD3's and Flux's). first, end: of even times before their shift, where 0 stands in the place of the end;
    last: of the least but 0, None for even ones. whole: how many steps the network counts where it is told whole ones
    alone, rounded down, else None.
    """

    shift: float
    by_size: BySize | None = None
    exponential: bool = True
    first: float = 1.0
    end: float = 0.0
    last: float | None = None
    whole: int | None = None

    def times(self, steps: int, tokens: int) -> Float[Tensor, " n"]:
        """steps + 1 falling times, the last 0, for images of that many patches."""
        if steps < 1:
            raise ValueError(f"{steps} solver steps are too few: use at least 1")
        even = torch.linspace(self.first, self.end, steps + 1)
        if self.last is not None:
            even[:-1] = torch.linspace(self.first, self.last, steps)
        even[-1] = 0
        return shift(even, self.shift if self.by_size is None else self.shift_of(tokens, steps))

    def shift_of(self, tokens: int, steps: int) -> float:
        """The shift for images of that many patches."""
        mu = self.by_size(tokens, steps)
        return math.exp(mu) if self.exponential else mu

    def begin(self, noise: Float[Tensor, "b c h w"], times: Float[Tensor, " n"]) -> Float[Tensor, "b c h w"]:
        """The state at times[0]: the noise."""
        return noise

    def velocity(self, predict: Predict) -> Velocity:
        """What is predicted."""
        if self.whole is None:
            return predict
        return lambda x, t: predict(x, torch.floor(t * self.whole) / self.whole)


@dataclass(frozen=True)
class DiscreteSchedule:
    """Networks that predict the noise of x_k = sqrt(a_k) x + sqrt(1 - a_k) noise at whole steps k (DDPM, arXiv
    2006.11239).

    Divided by sqrt(a_k) + sqrt(1 - a_k), x_k is a point of the straight path, at t_k = sqrt(1 - a_k) / (sqrt(a_k) +
    sqrt(1 - a_k)). The ODE is the same in both, so that every solver serves: an Euler step in t is a step of DDIM
    (arXiv 2010.02502), and dpmpp_2m, which depends on signal to noise alone, stays what it is. signal, noise: sqrt(a_k)
    and sqrt(1 - a_k) by step k. The walk ends at the data.
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
        """The falling steps k at which the network is asked, as diffusers' DDIM (leading) and DPM-Solver (linspace)
        choose them."""
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


# What a scheduler can be told beside, and no checkpoint of the pipelines here is: it would draw otherwise than its
# authors.
LEFT_OUT = (
    "clip_sample",
    "thresholding",
    "rescale_betas_zero_snr",
    "trained_betas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "shift_terminal",
    "invert_sigmas",
    "stochastic_sampling",
)


def read_schedule(folder: Path, even: bool, by_size: BySize | None = None) -> FlowSchedule | DiscreteSchedule:
    """The schedule of the folder `scheduler` of a pipeline. even: whether the pipeline's flow times are even before
    their shift; by_size: what the pipeline shifts them by if the scheduler says by size, None for the scheduler's own
    line.

    ValueError in one line for a scheduler of another class or with settings that are left out here.
    """
    try:
        settings = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}/scheduler_config.json cannot be read ({' '.join(str(error).split())[:100]})"
        ) from None
    kind = settings.get("_class_name")
    if told := [name for name in LEFT_OUT if settings.get(name)]:
        raise ValueError(f"{folder}/scheduler_config.json sets {told[0]}, which our schedules leave out")
    if kind == "FlowMatchEulerDiscreteScheduler":
        return _flow(settings, even, by_size)
    if (
        kind in FLOW_SOLVERS
        and settings.get("use_flow_sigmas")
        and settings.get("prediction_type") == "flow_prediction"
    ):
        return _flow_of_solver(settings, folder, by_size)
    if kind not in SPACINGS or settings.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"{folder}: {kind} of {settings.get('prediction_type')}; read are flow matching, and epsilon of "
            f"{', '.join(SPACINGS)}"
        )
    return _discrete(settings, folder)


def _flow(settings: dict, even: bool, by_size: BySize | None) -> FlowSchedule:
    """Unless steps are even, the last time but 0 is the first in training, shifted with the others (and so twice if for
    every size)."""
    by_size, always = _shifts(settings, "shift", by_size)
    last = None if even else shift(torch.tensor(1 / settings.get("num_train_timesteps", 1000)), always).item()
    return FlowSchedule(always, by_size, settings.get("time_shift_type", "exponential") == "exponential", last=last)


def _shifts(settings: dict, name: str, by_size: BySize | None) -> tuple[BySize | None, float]:
    """By size, if the scheduler says so, and for every size. by_size: instead of the scheduler's own line."""
    if not settings.get("use_dynamic_shifting"):
        return None, settings.get(name, 1.0)
    few = settings.get("base_image_seq_len", 256), settings.get("base_shift", 0.5)
    many = settings.get("max_image_seq_len", 4096), settings.get("max_shift", 1.15)
    return by_size or line(few, many), 1.0


FLOW_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers of noise prediction that walk flows as well; they tell networks whole steps."""


def _flow_of_solver(settings: dict, folder: Path, by_size: BySize | None) -> FlowSchedule:
    """Of the steps of training, DPM-Solver begins at the last but one and comes to the data; UniPC begins a breath
    before the end of the last and comes to the first."""
    if settings.get("final_sigmas_type", "zero") != "zero":
        raise ValueError(f"{folder}: final_sigmas_type {settings['final_sigmas_type']} is not read; zero is")
    total = settings.get("num_train_timesteps", 1000)
    ends = (1 - 1 / total, 0.0) if settings["_class_name"] == "DPMSolverMultistepScheduler" else (1 - 1e-6, 1 / total)
    by_size, always = _shifts(settings, "flow_shift", by_size)
    return FlowSchedule(always, by_size, first=ends[0], end=ends[1], whole=total)


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
