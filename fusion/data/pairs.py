"""Samples -> batches of pictures of one size, each with its text: what diffusion models learn from."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.data.formats.sample import BadSample, Sample
from fusion.data.loader import Batches, Item, Samples, Shard
from fusion.sequence.document import blocks
from fusion.sequence.images import fit, open_image, to_pixels

FULL = 16  # batches of waiting pairs with which the oldest goes, in a smaller batch if there are few of its size


@dataclass(frozen=True)
class Pairing:
    """How pairs become batches. rows: pictures of a batch. drop_text: probability that a picture loses its text, for
    guidance."""

    rows: int = 64
    drop_text: float = 0.1

    def __post_init__(self):
        if self.rows < 1 or not 0 <= self.drop_text <= 1:
            raise ValueError(
                f"rows={self.rows}, drop_text={self.drop_text}: rows is at least 1, and drop_text a probability"
            )


@dataclass(frozen=True)
class Pair:
    """A picture, in [-1, 1], and its text."""

    pixels: Float[Tensor, "3 h w"]
    text: str

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class PairBatch:
    """Pictures of one size with their texts; keys, skipped, shard and state as in fusion.data.packing.Batch."""

    pixels: Float[Tensor, "b 3 h w"]
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    shard: int = 0
    state: dict | None = None


def pair(sample: Sample, stride: int = 1) -> Pair:
    """The text of a user and the picture that answers it, its sides multiples of `stride`. Raises BadSample for
    anything else."""
    messages = sample.messages or []
    said = [block for message in messages if message["role"] != "assistant" for block in blocks(message["content"])]
    answered = [block for message in messages if message["role"] == "assistant" for block in blocks(message["content"])]
    if [block["type"] for block in answered] != ["image"] or any(block["type"] != "text" for block in said) or not said:
        raise BadSample(
            sample.key, "is not a text with the one picture it asks for, and nothing else can be learned here"
        )
    return Pair(to_pixels(fit(open_image(answered[0]["image"]), stride)), "\n".join(block["text"] for block in said))


def fixed_pairs(samples: Iterable[Sample], stride: int, rows: int) -> list[PairBatch]:
    """A finite set of samples as batches, for validation: nothing is dropped; what is no pair is told in `skipped` of
    the first batch."""
    by_size: dict[tuple, list[Item]] = {}
    skipped = []
    for sample in samples:
        try:
            item = Item(pair(sample, stride), sample.key, sample.source)
        except BadSample as bad:
            skipped.append((bad.key, bad.reason))
            continue
        by_size.setdefault(_size(item), []).append(item)
    parts = [items[i : i + rows] for items in by_size.values() for i in range(0, len(items), rows)]
    return [_batch(part, skipped=tuple(skipped) if number == 0 else ()) for number, part in enumerate(parts)]


def _size(item: Item) -> tuple[int, ...]:
    return tuple(item.content.pixels.shape)


def _batch(items: list[Item], **rest) -> PairBatch:
    pairs = [item.content for item in items]
    return PairBatch(
        torch.stack([one.pixels for one in pairs]),
        tuple(one.text for one in pairs),
        tuple(item.key for item in items),
        **rest,
    )


class Pairs(Shard):
    """Batches of pairs of one shard."""

    def __init__(self, samples: Samples, seed: int, shard: int, stride: int, pairing: Pairing):
        super().__init__(samples, seed, shard)
        self.stride, self.pairing = stride, pairing

    def contents(self, sample: Sample, rng: random.Random) -> list[Pair]:
        """One pair, now and then without its text."""
        whole = pair(sample, self.stride)
        return [Pair(whole.pixels, "") if rng.random() < self.pairing.drop_text else whole]

    def __next__(self) -> PairBatch:
        rows = self.pairing.rows
        counts = Counter(map(_size, self.waiting))
        while max(counts.values(), default=0) < rows and len(self.waiting) < FULL * rows:
            self.wait_for_one()
            counts[_size(self.waiting[-1])] += 1
        most = counts.most_common(1)[0]
        size = most[0] if most[1] >= rows else _size(self.waiting[0])
        chosen = [item for item in self.waiting if _size(item) == size][:rows]
        taken = set(map(id, chosen))
        self.waiting = [item for item in self.waiting if id(item) not in taken]
        return _batch(chosen, skipped=self.newly_skipped(), shard=self.shard, state=self.state_dict())


class PairBatches(Batches):
    """Endless batches of the pairs that the samples of `open_samples` are."""

    def __init__(
        self,
        open_samples: Callable[[int, int], Samples],
        stride: int,
        pairing: Pairing,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        super().__init__(open_samples, partial(Pairs, stride=stride, pairing=pairing), seed, rank, world)
