"""The built-in synthetic world as a source: endless documents, each generated from (seed, number) alone."""

import random

import numpy as np
from PIL import Image

from fusion.data.formats.sample import Sample
from fusion.data.formats.stream import Stream
from fusion.worlds.shapes.redraw import redrawn
from fusion.worlds.shapes.world import World

STRIPES = 16
"""Parts of a pool; document i takes its words from part i modulo this."""


class WorldSource:
    """A source of documents that a `World` generates.

    Document i follows from (seed, i). Two seeds share no documents. pool: number of distinct texts, so that what reads
    each distinct text once has little to read; ranks that divide documents among them divide the pool too.
    """

    def __init__(self, world: World, seed: int = 0, name: str = "world", pool: int | None = None):
        self.name, self._world, self._seed, self._pool = name, world, seed, pool

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> Sample:
        """Return document number `index` as a sample, with PIL images."""
        drawn = self._drawn(index)
        messages = [
            {"role": m["role"], "content": [_with_pil(block) for block in m["content"]]} for m in drawn.messages
        ]
        return Sample(messages, None, self.name, f"{self.name}:{index}:{drawn.task}")

    def _drawn(self, index: int):
        """Generate a document; of a pool, its words are those of one of the first documents, and its image is new."""
        if self._pool is None:
            return self._world.sample(np.random.default_rng([self._seed, index]))
        rng = np.random.default_rng([self._seed, index, self._pool])
        stripe = index % STRIPES
        number = stripe + STRIPES * int(rng.integers(max(1, self._pool // STRIPES)))
        return redrawn(rng, self._world.sample(np.random.default_rng([self._seed, number])))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Return document number `index`; `rng` is not used."""
        return self[index]

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """Return a shuffled stream of the documents, none of which occurs twice."""
        return Stream(self, seed, shard, shards)


def _with_pil(block: dict) -> dict:
    return {"type": "image", "image": Image.fromarray(block["image"])} if block["type"] == "image" else block
