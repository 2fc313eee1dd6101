"""The built-in synthetic world as a source: endless documents, each generated from (seed, number) alone."""

import random

import numpy as np
from PIL import Image

from fusion.data.formats.sample import Sample
from fusion.data.formats.stream import Stream
from fusion.worlds.shapes.world import World


class WorldSource:
    """A source of documents that a `World` generates.

    Document i follows from (seed, i). Two seeds share no documents.
    """

    def __init__(self, world: World, seed: int = 0, name: str = "world"):
        self.name, self._world, self._seed = name, world, seed

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> Sample:
        """Return document number `index` as a sample, with PIL images."""
        drawn = self._world.sample(np.random.default_rng([self._seed, index]))
        messages = [
            {"role": m["role"], "content": [_with_pil(block) for block in m["content"]]} for m in drawn.messages
        ]
        return Sample(messages, None, self.name, f"{self.name}:{index}:{drawn.task}")

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Return document number `index`; `rng` is not used."""
        return self[index]

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """Return a shuffled stream of the documents, none of which occurs twice."""
        return Stream(self, seed, shard, shards)


def _with_pil(block: dict) -> dict:
    return {"type": "image", "image": Image.fromarray(block["image"])} if block["type"] == "image" else block
