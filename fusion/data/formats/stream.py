"""Stream an indexed source endlessly: shuffled, sharded and resumable."""

import hashlib
import random
from typing import Protocol, runtime_checkable

from fusion.data.formats.sample import Sample


@runtime_checkable
class Indexed(Protocol):
    """A source whose samples are read by index."""

    name: str

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Return sample number `index`; raises BadSample.

        rng: makes the random choices that the sample leaves open, such as the prompt or the direction.
        """


class Stream:
    """An endless stream over all samples of a source, in an order that depends on seed and epoch alone.

    The positions of one endless sequence of epochs are distributed to the shards round robin: a shard never runs dry,
    however few the samples. `next()` raises BadSample for a bad sample, and continues behind it when called again.
    Raises ValueError unless 0 <= shard < shards.
    """

    def __init__(self, source: Indexed, seed: int | str = 0, shard: int = 0, shards: int = 1):
        if not 0 <= shard < shards:
            raise ValueError(f"shard={shard} of shards={shards}: number the shards from 0")
        self.source, self._seed, self._shards = source, seed, shards
        self._place = shard

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Sample:
        epoch, position = divmod(self._place, len(self.source))
        self._place += self._shards
        index = shuffled(position, len(self.source), f"{self._seed}/{epoch}")
        return self.source.sample(index, random.Random(f"{self._seed}/{epoch}/{index}"))

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and the position of the next sample in it."""
        epoch, position = divmod(self._place, len(self.source))
        return {"epoch": epoch, "position": position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a `state_dict` taken with the same source, seed and shards."""
        self._place = state["epoch"] * len(self.source) + state["position"]


def shuffled(position: int, length: int, key: str) -> int:
    """Return the index at `position` of a pseudorandom permutation of range(length), which is determined by `key`.

    A Feistel cipher of four rounds on the smallest even number of bits that holds `length`, iterated until it falls in
    range (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). It needs no table, so
    epochs, resuming and huge lengths cost nothing.
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    while True:
        left, right = position >> half, position & (1 << half) - 1
        for step in range(4):
            digest = hashlib.blake2b(f"{key}/{step}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ int.from_bytes(digest) & (1 << half) - 1
        position = left << half | right
        if position < length:
            return position
