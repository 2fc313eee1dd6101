"""Mix the built-in world and plain text in stages (a curriculum) that depend on the document's number alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

from fusion.data.formats import Chat, Sample, Source, Stream, WorldSource
from fusion.data.formats.config import DataConfig, open_sources
from fusion.worlds.shapes import Options, World


@dataclass
class Stage:
    """One stage of a curriculum: the mixture of documents up to document number `until`.

    until: number of the first document of the next stage, or below 1 the share of the run's documents at which it ends;
    None for the last stage, which has no end. pool: distinct texts of its documents, None for endless ones. text: share
    of plain text, in [0, 1). The other fields set the fields of fusion.worlds.shapes.Options with the same names
    (tasks, counts, sizes, colours and questions are weights); None leaves the world's default.
    """

    until: float | None = None
    text: float = 0.0
    pool: int | None = None
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
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"pool={self.pool}: at least one text")
        if not 0 <= self.text < 1:
            raise ValueError(f"text={self.text}: a share of at least 0 and below 1")

    @property
    def world(self) -> World:
        """The world that this stage draws its documents from."""
        given = {field.name: getattr(self, field.name) for field in fields(Options) if hasattr(self, field.name)}
        return World(Options(**{name: value for name, value in given.items() if value is not None}))


class Curriculum:
    """A source for fusion.data.formats.Mixture whose document number i comes from the first stage that ends after i.

    With the stage's probability `text`, the document comes from `texts` instead. Stages are counted in documents, not
    in time, so that a run is the same on every machine and resumes exactly, and a longer run has stages of the same
    length; a run that its time limit ends early has not seen the last stages. Raises ValueError if the stages' ends do
    not increase, the last stage has an end, a stage needs texts and there are none, or ends are shares and `documents`,
    of the whole run, is not given.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        seed: int = 0,
        texts: "Texts | Chat | None" = None,
        name: str = "world",
        documents: int | None = None,
    ):
        ends = [_end(stage.until, documents) for stage in stages]
        if not ends or ends != sorted(set(ends)) or ends[0] <= 0 or stages[-1].until is not None:
            said = [stage.until for stage in stages]
            raise ValueError(
                f"stages end at {said}: let each end some documents after the one before, and give the last no end"
            )
        if texts is None and any(stage.text for stage in stages):
            raise ValueError("a stage has plain text, but there are no texts")
        self.name, self._seed, self._texts = name, seed, texts
        self._stages = [
            (end, stage.text, WorldSource(stage.world, seed, name, stage.pool))
            for end, stage in zip(ends, stages, strict=True)
        ]

    def __len__(self) -> int:
        return 2**62

    def sample(self, index: int) -> Sample:
        """Return document number `index`; it depends on (seed, index) alone."""
        share, world = next((share, world) for end, share, world in self._stages if index < end)
        rng = random.Random(f"{self._seed}/{index}")
        if share and rng.random() < share:
            return self._texts.sample(rng.randrange(len(self._texts)), rng)
        return world[index]

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> "Walk":
        """Return a stream of the documents in order of their numbers, every `shards`-th from `shard` on.

        The parameter `seed` is ignored: the documents follow from the seed of the curriculum.
        """
        return Walk(self, shard, shards)


def _end(until: float | None, documents: int | None) -> float:
    """Return the document at which a stage ends."""
    if until is None:
        return float("inf")
    if until >= 1 or until <= 0:
        return until
    if documents is None:
        raise ValueError(f"until={until:g}: a share of the run needs its number of documents")
    return max(1, round(until * documents))


@runtime_checkable
class Numbered(Protocol):
    """A source whose documents are read by number, such as a Curriculum."""

    def sample(self, index: int) -> Sample:
        """Return document number `index`."""
        ...


class Walk:
    """An endless stream over the numbered documents of one shard, in order: numbers shard, shard + shards, ..."""

    def __init__(self, curriculum: Numbered, shard: int, shards: int):
        self._curriculum, self._shards, self._next = curriculum, shards, shard

    def __next__(self) -> Sample:
        sample = self._curriculum.sample(self._next)
        self._next += self._shards
        return sample

    def state_dict(self) -> dict[str, int]:
        """Return the number of the next document."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the document number saved by `state_dict`."""
        self._next = state["next"]


class Texts:
    """A source of plain texts; each is a document without roles in which every token has a loss."""

    def __init__(self, texts: Sequence[str], name: str = "text"):
        self.name, self._texts = name, list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def sample(self, index: int, rng) -> Sample:
        """Return text number `index` as a sample; `rng` is not used."""
        return Sample(None, [{"type": "text", "text": self._texts[index]}], self.name, f"{self.name}:{index}")

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """Return an endless stream of all texts, shuffled anew in each epoch."""
        return Stream(self, seed, shard, shards)


TRAINING_SEED, HELD_OUT_SEED = 1, 2  # of the world's documents: two seeds share none


def open_data(data: DataConfig, stages: Sequence[Stage], side: str, stride: int) -> tuple[list[Source], list[float]]:
    """Open the sources of a config on one side of the split ("train" or "validation"); return them and their weights.

    stages: if not empty, the one source is the built-in world as a Curriculum; validation uses the last stage alone,
    and other documents than training. stride: sides of images are multiples of it. Raises ValueError if both `stages`
    and `data.sources` are given.
    """
    if stages and data.sources:
        raise ValueError("stages are the built-in world instead of data.sources: give one of them")
    if not stages:
        return open_sources(data, side, stride), [source.weight for source in data.sources]
    training = side == "train"
    return [Curriculum(stages if training else stages[-1:], TRAINING_SEED if training else HELD_OUT_SEED)], [1.0]
