"""Options of the world: the weights of tasks, object counts, image sizes, colours and questions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from fusion.worlds.shapes.constants import COLOURS, EDIT_COUNTS, IMAGE_SIZES, KINDS, QUESTION_KINDS, Kind

DEFAULT_TASKS = {
    "text_to_image": 0.45,
    "edits": 0.2,
    "questions": 0.1,
    "image_to_text": 0.08,
    "stories": 0.07,
    "chat": 0.1,
}
OPTIONAL_TASKS = ("examples",)  # drawn where they are given a weight
DEFAULT_COUNTS = {1: 0.35, 2: 0.35, 3: 0.15, 4: 0.15}
DEFAULT_SIZES = {"32x32": 0.8, "48x32": 0.1, "32x48": 0.1}
DEFAULT_COLOURS = dict.fromkeys(COLOURS, 1.0)
DEFAULT_QUESTIONS = dict.fromkeys(QUESTION_KINDS, 1.0)
_SIZES = {f"{width}x{height}": (width, height) for width, height in IMAGE_SIZES}


def _check(what: str, weights: Mapping, allowed) -> None:
    unknown = [key for key in weights if key not in allowed]
    if unknown:
        raise ValueError(
            f"unknown {what} {unknown[0]!r} in the world's options: choose from {', '.join(map(str, allowed))}"
        )
    if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"the world's {what} weights must be >= 0 with a positive sum, got {dict(weights)}")


@dataclass(frozen=True)
class Options:
    """What the world draws. Weights need not sum to 1; an entry that is left out is never drawn.

    `tasks` by name, `counts` by number of objects (1 to 4), `sizes` by width x height in pixels as in "48x32",
    `colours` by name: the colours that scenes begin with (edits introduce any) and that questions ask about.
    `questions` by kind: count, colour, shape, exists, where. `described`: share of the documents with questions in
    which the image is also described, before, between or after them. `placed`: captions of text_to_image and edits
    always give the positions of several objects (of two equal ones: their alignment). `open`: share of the other
    captions of these tasks that leave colours or shapes open ("two circles"). `distinct`: no two objects of a scene
    begin with the same colour. `held_out`: draw only scenes with a held-out pair of kinds, and examples of held-out
    rules only: for evaluation, never for training. Raises ValueError for unknown names, weights that are negative or
    all zero, and options that exclude each other.
    """

    tasks: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_TASKS))
    counts: Mapping[int, float] = field(default_factory=lambda: dict(DEFAULT_COUNTS))
    sizes: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SIZES))
    colours: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_COLOURS))
    questions: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_QUESTIONS))
    described: float = 0.0
    placed: bool = False
    open: float = 0.08
    distinct: bool = False
    held_out: bool = False

    def __post_init__(self):
        _check("tasks", self.tasks, (*DEFAULT_TASKS, *OPTIONAL_TASKS))
        _check("counts", self.counts, DEFAULT_COUNTS)
        _check("sizes", self.sizes, _SIZES)
        _check("colours", self.colours, COLOURS)
        _check("questions", self.questions, QUESTION_KINDS)
        if not 0 <= self.open <= 1:
            raise ValueError(f"open={self.open}: a share of the world's captions, from 0 to 1")
        if not 0 <= self.described <= 1:
            raise ValueError(f"described={self.described}: a share of the documents with questions, from 0 to 1")
        if self.held_out and sum(weight for count, weight in self.counts.items() if count > 1) <= 0:
            raise ValueError("held-out combinations are pairs: give a weight to counts of 2 or more")
        if self.held_out and self.colours != DEFAULT_COLOURS:
            raise ValueError("held-out combinations come in all colours: leave `colours` out")
        if self.distinct and self.held_out:
            raise ValueError("held-out combinations may share a colour: leave `distinct` out")
        most, several = (
            max(count for count, weight in self.counts.items() if weight > 0),
            sum(w > 0 for w in self.colours.values()),
        )
        if self.distinct and several < most:
            raise ValueError(
                f"{most} objects of distinct colours need {most} colours, got {several}: weigh more `colours`"
            )

    @cached_property
    def image_sizes(self) -> dict[tuple[int, int], float]:
        """The weights of `sizes` by (width, height) in pixels."""
        return {_SIZES[name]: weight for name, weight in self.sizes.items()}

    @cached_property
    def asked_colours(self) -> tuple[str, ...]:
        """The names of those `colours` that have a positive weight."""
        return tuple(name for name in COLOURS if self.colours.get(name, 0.0) > 0)

    @cached_property
    def kinds(self) -> dict[Kind, float]:
        """The weights of all (shape, colour) kinds, taken from `colours`."""
        return {kind: self.colours.get(kind[1], 0.0) for kind in KINDS}

    @cached_property
    def edit_counts(self) -> dict[str, dict[int, float]]:
        """For each possible kind of edit: the weights of the object counts that allow it."""
        lowest = 2 if self.held_out else 1
        counts = {count: weight for count, weight in self.counts.items() if weight > 0 and count >= lowest}
        possible = {kind: {n: w for n, w in counts.items() if n in allowed} for kind, allowed in EDIT_COUNTS.items()}
        return {kind: weights for kind, weights in possible.items() if weights}
