"""Solvers that integrate a velocity from noise to data, and guidance, which makes one velocity out of several.

A solver is called `solver(velocity, x, times, path) -> x`; `steps(solver, velocity, x, times, path)` is the same walk,
seen state by state. The state is fp32. The step that reaches t = 0 returns x_hat, the data that the last velocity
speaks of, so that nothing is ever divided by the noise level 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.flow.matching import LINEAR, Path
from fusion.flow.matching import shift as shift_times

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> dx/dt at x, of x's shape; t is a 0-d fp32 tensor on the CPU, so that float(t) costs no synchronisation."""


@dataclass(frozen=True)
class State:
    """After step `index`: the state x at time t, and x_hat, the clean data as the step saw it."""

    index: int
    t: float
    x: Float[Tensor, "..."]
    x_hat: Float[Tensor, "..."]


Walk = Callable[[Velocity, Tensor, Tensor, Path], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Solver:
    """An algorithm box `walk`, which yields (x, x_hat) step by step, as a function from noise to data."""

    walk: Walk
    evaluations: Callable[[int], int]
    """Calls of the velocity for that many steps that end at t = 0."""

    def __call__(
        self, velocity: Velocity, x: Float[Tensor, "*s"], times: Float[Tensor, " n"], path: Path = LINEAR
    ) -> Float[Tensor, "*s"]:
        """Integrate from times[0] to times[-1] and return the last state in fp32."""
        for state in steps(self, velocity, x, times, path):
            x = state.x
        return x


def steps(
    solver: Solver, velocity: Velocity, x: Float[Tensor, "*s"], times: Float[Tensor, " n"], path: Path = LINEAR
) -> Iterator[State]:
    """The states a solver passes through, as they are computed. Raises ValueError unless `times` falls within [0,
    1]."""
    times = times.detach().float().cpu()
    if len(times) < 2 or not (times[0] <= 1 and times[-1] >= 0 and (times.diff() < 0).all()):
        raise ValueError(f"solver times {times.tolist()} must fall from at most 1 to at least 0: use schedule(steps)")
    walk = solver.walk(velocity, x.float(), times, path)
    for i, (state, x_hat) in enumerate(walk):
        yield State(i, times[i + 1].item(), state, x_hat)


def schedule(steps: int, shift: float = 1.0) -> Float[Tensor, " n"]:
    """steps + 1 times from 1 to 0, evenly spaced and then moved towards noise by `shift` (see `flow.shift`)."""
    if steps < 1:
        raise ValueError(f"{steps} solver steps are too few: use at least 1")
    return shift_times(torch.linspace(1.0, 0.0, steps + 1), shift)


def _euler(velocity: Velocity, x: Tensor, times: Tensor, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """First order, one evaluation a step."""
    for t, s in pairwise(times):
        v = velocity(x, t).float()
        x_hat = path.data(x, v, t)
        x = x_hat if s == 0 else x + (s - t) * v
        yield x, x_hat


def _heun(velocity: Velocity, x: Tensor, times: Tensor, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Second order, two evaluations a step and one in the last (EDM, arXiv 2206.00364, algorithm 1)."""
    for t, s in pairwise(times):
        v = velocity(x, t).float()
        x_hat = path.data(x, v, t)
        if s == 0:
            x = x_hat
        else:
            ahead = velocity(x + (s - t) * v, s).float()
            x = x + (s - t) / 2 * (v + ahead)
        yield x, x_hat


def _dpmpp_2m(velocity: Velocity, x: Tensor, times: Tensor, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Second order, one evaluation a step: DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) on any path.

    With lambda = log(alpha / sigma) and h = lambda_s - lambda_t, the exponential in `alpha_s (1 - e^-h) x_hat` is
    written out, which leaves it finite at t = 1, where lambda is -inf; a step whose past began there is of first order.
    Over the whole path in even steps the error falls as log(n) / n^2, since lambda is singular at both ends.
    """
    past = None
    for i, (t, s) in enumerate(pairwise(times)):
        x_hat = path.data(x, velocity(x, t).float(), t)
        if s == 0:
            x = x_hat
        else:
            aim = x_hat
            if past is not None:
                before, now, after = path.log_snr(times[i - 1 : i + 2])
                aim = x_hat + (after - now) / (now - before) / 2 * (x_hat - past)
            keep = path.sigma(s) / path.sigma(t)
            x = keep * x + (path.alpha(s) - path.alpha(t) * keep) * aim
        past = x_hat
        yield x, x_hat


euler = Solver(_euler, lambda steps: steps)
heun = Solver(_heun, lambda steps: 2 * steps - 1)
dpmpp_2m = Solver(_dpmpp_2m, lambda steps: steps)
SOLVERS = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance by text and by context images: v0 + image (v_img - v0) + text (v_full - v_img).

    Of the three branches `full` sees everything, `image` sees no text, and `none` neither text nor images
    (InstructPix2Pix, arXiv 2211.09800, eq. 3). Scale 1 is off, and what scales of 1 make superfluous is not evaluated;
    without context images `image` is the unconditional branch. Guidance acts for lo < t <= hi (arXiv 2404.07724).
    Raises ValueError for an interval outside [0, 1].
    """

    text: float = 1.0
    image: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        lo, hi = self.interval
        if not 0 <= lo <= hi <= 1:
            raise ValueError(
                f"guidance interval {self.interval} is not within [0, 1]: give (lo, hi) with 0 <= lo <= hi <= 1"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each branch that takes part while guidance acts, `full` first; they sum to 1."""
        others = {"image": self.image - self.text, "none": 1 - self.image}
        return {"full": self.text} | {branch: weight for branch, weight in others.items() if weight != 0}

    def branches(self, t: float | Tensor) -> tuple[str, ...]:
        """Names of the branches to evaluate at time t, best as one batch."""
        lo, hi = self.interval
        return tuple(self.weights) if lo < float(t) <= hi else ("full",)

    def combine(self, predictions: Sequence[Float[Tensor, "*s"]]) -> Float[Tensor, "*s"]:
        """One fp32 prediction out of those of `branches(t)`, in their order.

        The weights sum to 1 and `flow.estimate` is affine, so predictions of any target combine as velocities do.
        """
        if len(predictions) == 1:
            return predictions[0].float()
        weighted = zip(self.weights.values(), predictions, strict=True)
        return sum(weight * prediction.float() for weight, prediction in weighted)  # type: ignore[return-value]

    def velocity(self, branches: Mapping[str, Velocity]) -> Velocity:
        """The guided velocity of branches that are functions of their own."""

        def guided(x: Tensor, t: Tensor) -> Tensor:
            return self.combine([branches[name](x, t) for name in self.branches(t)])

        return guided


def text_guidance(full: Velocity, drop: Velocity, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Velocity:
    """v_drop + scale (v_full - v_drop) within the interval, v_full outside."""
    return Guidance(text=scale, interval=interval).velocity({"full": full, "image": drop})


def image_guidance(
    full: Velocity,
    image: Velocity,
    none: Velocity,
    text_scale: float,
    image_scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """v_none + image_scale (v_image - v_none) + text_scale (v_full - v_image) within the interval, v_full outside."""
    guidance = Guidance(text=text_scale, image=image_scale, interval=interval)
    return guidance.velocity({"full": full, "image": image, "none": none})
