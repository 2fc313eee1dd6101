"""Solvers that integrate a velocity from noise to data, and guidance, which makes one velocity out of several.

A solver is called `solver(velocity, x, times, path) -> x`; `steps(solver, velocity, x, times, path)` is the same walk,
seen state by state. The state is fp32. The step that reaches t = 0 returns x_hat, the data that the last velocity
speaks of, so that nothing is ever divided by the noise level 0.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.flow import LINEAR, Path, shift as shift_times

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
    """The states a solver passes through, as they are computed. Raises ValueError unless `times` falls within [0, 1]."""
    times = times.detach().float().cpu()
    if len(times) < 2 or not (times[0] <= 1 and times[-1] >= 0 and (times.diff() < 0).all()):
        raise ValueError(f"solver times {times.tolist()} must fall from at most 1 to at least 0: use schedule(steps)")
    for i, (x, x_hat) in enumerate(solver.walk(velocity, x.float(), times, path)):
        yield State(i, times[i + 1].item(), x, x_hat)


def schedule(steps: int, shift: float = 1.0) -> Float[Tensor, " n"]:
    """steps + 1 times from 1 to 0, evenly spaced and then moved towards noise by `shift` (see `flow.shift`)."""
    if steps < 1:
        raise ValueError(f"{steps} solver steps are too few: use at least 1")
    return shift_times(torch.linspace(1.0, 0.0, steps + 1), shift)


def _euler(velocity: Velocity, x: Tensor, times: Tensor, path: Path) -> Iterator[tuple[Tensor, Tensor]]:
    for t, s in pairwise(times):
        v = velocity(x, t).float()
        x_hat = path.data(x, v, t)
        x = x_hat if s == 0 else x + (s - t) * v
        yield x, x_hat


SOLVERS: dict[str, Solver] = {"euler": Solver(_euler, lambda steps: steps)}
euler = SOLVERS["euler"]
