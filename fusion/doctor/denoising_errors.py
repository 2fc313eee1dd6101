"""Errors of the predicted x on held-out images, with the same noise and times for all that is compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.data.formats import Sample
from fusion.doctor.run_data import Patient, Task, said, told
from fusion.flow.matching import uniform
from fusion.unified.objective import Objective


@dataclass(frozen=True)
class Within(Objective):
    """A training objective whose times are spread evenly from `low` to `high`."""

    low: float = 0.0
    high: float = 1.0

    def sample_times(self, count: int, generator: torch.Generator) -> Float[Tensor, " m"]:
        """Return the times of `count` images, on the generator's device."""
        return self.low + (self.high - self.low) * uniform(count, generator)


@torch.no_grad()
def x_errors(
    patient: Patient, samples: Sequence[Sample], low: float, high: float, rounds: int = 4
) -> tuple[Float[Tensor, "m rounds"], Float[Tensor, "m rounds"]]:
    """Compute the mean squared error of x_hat, and its time t, of every target image of some documents.

    low, high: bounds of t. rounds: draws of noise and times, the same at every call. Returns errors and times, on the
    CPU.
    """
    device, batches = next(patient.learner.model.parameters()).device, patient.batches(samples)
    errors, times = [], []
    for number in range(rounds):
        found = []
        for place, batch in enumerate(batches):
            generator = torch.Generator(device).manual_seed(1000 * number + place)
            found.append(patient.learner.losses(batch, Within(low=low, high=high), generator))
        errors.append(torch.cat([losses.x_error.float().cpu() for losses in found]))
        times.append(torch.cat([losses.time.float().cpu() for losses in found]))
    return torch.stack(errors, dim=1), torch.stack(times, dim=1)


def misled(tasks: Sequence[Task], most: int = 3) -> list[tuple[Task, list[Sample]]]:
    """Return each task with its document as it would be with the texts of other tasks.

    They are the next of its kind that say something else, at most `most`; tasks without any are left out.
    """
    found = []
    for number, task in enumerate(tasks):
        others = [*tasks[number + 1 :], *tasks[:number]]
        others = list(
            islice((other for other in others if other.kind == task.kind and other.words != task.words), most)
        )
        if others:
            found.append(
                (task, [told(task.sample, [block["text"] for block in said(other.sample)]) for other in others])
            )
    return found
