"""Generate documents of all tasks by weight, deterministic given a numpy Generator."""

import numpy as np

from fusion.worlds.shapes.chance import weighted
from fusion.worlds.shapes.options import Options
from fusion.worlds.shapes.sample import Sample
from fusion.worlds.shapes.tasks import TASKS


class World:
    """A generator of documents, drawn by the weights of its options.

    It has no state: the same state of the Generator gives the same document.
    """

    def __init__(self, options: Options | None = None):
        self.options = options or Options()

    def sample(self, rng: np.random.Generator, task: str | None = None) -> Sample:
        """Generate a document of a task drawn by weight, or of the named one; raises ValueError for an unknown name."""
        name = task or weighted(rng, self.options.tasks)
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r} of the built-in world: choose from {', '.join(TASKS)}")
        return TASKS[name](rng, self.options)
