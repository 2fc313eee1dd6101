"""The built-in world and plain text in stages: what comes changes along a run, by the number of the document alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from fusion.data.formats import Sample, Source, Stream, WorldSource
from fusion.data.formats.config import DataConfig, open_sources
from fusion.worlds.shapes import Options, World


@dataclass
class Stage:
    """What comes until document number `until`, None for ever. text: the share of plain text. The others say what the
    world draws as in fusion.worlds.shapes.Options (tasks, counts, sizes, colours and questions are weights); what is
    left out is as the world has it."""

    until: int | None = None
    text: float = 0.0
    tasks: dict[str, float] | None = None
    counts: dict[int, float] | None = None
    sizes: dict[str, float] | None = None
    colours: dict[str, float] | None = None
    questions: dict[str, float] | None = None
    described: float | None = None
    placed: bool | None = None
    open: float | None = None
    distinct: bool | None = None

    def __post_init__(self):
        if not 0 <= self.text < 1:
            raise ValueError(f"text={self.text}: a share of at least 0 and below 1")

    @property
    def world(self) -> World:
        """The world of this stage."""
        given = {field.name: getattr(self, field.name) for field in fields(Options) if hasattr(self, field.name)}
        return World(Options(**{name: value for name, value in given.items() if value is not None}))


class Curriculum:
    """A source for fusion.data.formats.Mixture: document number i comes from the first stage that ends after it, or
    from `texts`.

    Stages follow the number of documents, not the clock, so that a run is the same on every machine and resumes
    exactly, and a longer run has stages of the same length; one that its time limit ends early has not seen the last of
    them.
    """

    def __init__(self, stages: Sequence[Stage], seed: int = 0, texts: "Texts | None" = None, name: str = "world"):
        ends = [float("inf") if stage.until is None else stage.until for stage in stages]
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or stages[-1].until is not None:
            said = [stage.until for stage in stages]
            raise ValueError(
                f"stages end at {said}: let each end some documents after the one before, and give the last no end"
            )
        if texts is None and any(stage.text for stage in stages):
            raise ValueError("a stage has plain text, but there are no texts")
        self.name, self._seed, self._texts = name, seed, texts
        self._stages = [
            (end, stage.text, WorldSource(stage.world, seed, name)) for end, stage in zip(ends, stages, strict=True)
        ]

    def __len__(self) -> int:
        return 2**62

    def sample(self, index: int) -> Sample:
        """Document number `index`."""
        share, world = next((share, world) for end, share, world in self._stages if index < end)
        rng = random.Random(f"{self._seed}/{index}")
        if share and rng.random() < share:
            return self._texts.sample(rng.randrange(len(self._texts)), rng)
        return world[index]

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> "Walk":
        """The documents in the order of their numbers, dealt to the shards in turn; they have a seed of their own."""
        return Walk(self, shard, shards)


@runtime_checkable
class Numbered(Protocol):
    """Documents by number, such as those of a Curriculum."""

    def sample(self, index: int) -> Sample:
        """Return document number `index`."""
        ...


class Walk:
    """An endless stream over numbered documents, in order."""

    def __init__(self, curriculum: Numbered, shard: int, shards: int):
        self._curriculum, self._shards, self._next = curriculum, shards, shard

    def __next__(self) -> Sample:
        sample = self._curriculum.sample(self._next)
        self._next += self._shards
        return sample

    def state_dict(self) -> dict[str, int]:
        """The number of the next document."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._next = state["next"]


class Texts:
    """Plain texts as a source; each is a page, learned from its first token to its end."""

    def __init__(self, texts: Sequence[str], name: str = "text"):
        self.name, self._texts = name, list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def sample(self, index: int, rng) -> Sample:
        """Text number `index`; there is nothing left for `rng` to choose."""
        return Sample(None, [{"type": "text", "text": self._texts[index]}], self.name, f"{self.name}:{index}")

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """All texts shuffled, again and again."""
        return Stream(self, seed, shard, shards)


TRAINING_SEED, HELD_OUT_SEED = 1, 2  # of the world's documents: two seeds share none


def open_data(data: DataConfig, stages: Sequence[Stage], side: str, stride: int) -> tuple[list[Source], list[float]]:
    """The sources of a config on one side of the split ("train" or "validation") and their weights; or the built-in
    world in stages, of which the last is validated on."""
    if stages and data.sources:
        raise ValueError("stages are the built-in world instead of data.sources: give one of them")
    if not stages:
        return open_sources(data, side, stride), [source.weight for source in data.sources]
    training = side == "train"
    return [Curriculum(stages if training else stages[-1:], TRAINING_SEED if training else HELD_OUT_SEED)], [1.0]
