"""The built-in world as a source: endless documents, each drawn from its number alone."""

import random

import numpy as np
from PIL import Image

from fusion.data.formats.sample import Sample
from fusion.data.formats.stream import Stream
from fusion.worlds.shapes.world import World


class WorldSource:
    """Documents that a `World` draws; document number i follows from (seed, i). Two seeds share no documents."""

    def __init__(self, world: World, seed: int = 0, name: str = "world"):
        self.name, self._world, self._seed = name, world, seed

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> Sample:
        """Document number `index`, with PIL images."""
        drawn = self._world.sample(np.random.default_rng([self._seed, index]))
        messages = [
            {"role": m["role"], "content": [_with_pil(block) for block in m["content"]]} for m in drawn.messages
        ]
        return Sample(messages, None, self.name, f"{self.name}:{index}:{drawn.task}")

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Document number `index`; there is nothing left for `rng` to choose."""
        return self[index]

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """Documents without end, none twice."""
        return Stream(self, seed, shard, shards)


def _with_pil(block: dict) -> dict:
    return {"type": "image", "image": Image.fromarray(block["image"])} if block["type"] == "image" else block
