"""Make batches of (image, text) pairs of one image size, to train text-to-image diffusion models on."""

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

FULL = 16  # waiting pairs, in batches, at which the oldest is emitted even if its image size fills no batch


@dataclass(frozen=True)
class Pairing:
    """Settings for batches of pairs. rows: images per batch. drop_text: probability that an image's text is dropped.

    The dropped texts train the unconditional prediction for classifier-free guidance. Raises ValueError for rows below
    1 or a drop_text outside [0, 1].
    """

    rows: int = 64
    drop_text: float = 0.1

    def __post_init__(self):
        if self.rows < 1 or not 0 <= self.drop_text <= 1:
            raise ValueError(
                f"rows={self.rows}, drop_text={self.drop_text}: rows is at least 1, and drop_text a probability"
            )


@dataclass(frozen=True)
class Pair:
    """An image with values in [-1, 1] and its text, which is "" if it was dropped."""

    pixels: Float[Tensor, "3 h w"]
    text: str

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class PairBatch:
    """A batch of images of one size with their texts.

    pixels: in [-1, 1]. texts: "" where dropped. keys, skipped, shard, state: as in fusion.data.packing.Batch.
    """

    pixels: Float[Tensor, "b 3 h w"]
    texts: tuple[str, ...]
    keys: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    shard: int = 0
    state: dict | None = None


def pair(sample: Sample, stride: int = 1) -> Pair:
    """Convert a conversation in which a text is answered with one image to a Pair; raises BadSample for anything else.

    stride: the image is resized so that its sides are multiples of it. Several text blocks are joined by newlines.
    """
    messages = sample.messages or []
    said = [block for message in messages if message["role"] != "assistant" for block in blocks(message["content"])]
    answered = [block for message in messages if message["role"] == "assistant" for block in blocks(message["content"])]
    if [block["type"] for block in answered] != ["image"] or any(block["type"] != "text" for block in said) or not said:
        raise BadSample(
            sample.key, "is not a text with the one image it asks for, and nothing else can be learned here"
        )
    return Pair(to_pixels(fit(open_image(answered[0]["image"]), stride)), "\n".join(block["text"] for block in said))


def fixed_pairs(samples: Iterable[Sample], stride: int, rows: int) -> list[PairBatch]:
    """Batch a finite set of samples for validation, at most `rows` pairs of one image size each; no text is dropped.

    Samples that are not pairs are left out and reported in `skipped` of the first batch.
    """
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
    """The batches of pairs of one shard; iterate with `next`."""

    def __init__(self, samples: Samples, seed: int, shard: int, stride: int, pairing: Pairing):
        super().__init__(samples, seed, shard)
        self.stride, self.pairing = stride, pairing

    def contents(self, sample: Sample, rng: random.Random) -> list[Pair]:
        """Return one pair, with its text dropped with probability `pairing.drop_text`; raises BadSample."""
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
    """Endless batches of (image, text) pairs of one image size.

    Each pair is made of a sample of `open_samples` as in `pair`; seed, rank and world as in Batches.
    """

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
