"""Pack samples into batches: dropout for guidance, layout, and best-fit packing of documents into rows."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from operator import itemgetter

import numpy as np
import torch

from fusion.data.formats.sample import BadSample, Sample
from fusion.data.loader import Batches, Item, Samples, Shard
from fusion.sequence.packed import (
    Control,
    ImagePiece,
    Layout,
    Packed,
    Piece,
    Tokens,
    drop_all,
    drop_text,
    finish,
    layout,
    pack,
)


@dataclass(frozen=True)
class Packing:
    """Settings for packing documents into batches.

    length: tokens per row. rows: rows per batch. drop_text, drop_all: probability that a document with a target image
    loses its text, or its text and its context images, for classifier-free guidance. tail: probability that the clean
    copy of a final target image is kept, so that the model learns to stop after it. lookahead: number of waiting
    documents to choose from when a row is filled. noised_copies: noised blocks per target image, each with noise and
    timestep of its own. short: a batch whose oldest document fits this many tokens has rows of that length, and more of
    them: where attention reads a dense mask, its cost grows with the row. Raises ValueError for sizes that do not fit
    each other.
    """

    length: int = 512
    rows: int = 8
    drop_text: float = 0.1
    drop_all: float = 0.1
    tail: float = 0.2
    lookahead: int = 128
    noised_copies: int = 1
    short: int | None = None

    def __post_init__(self):
        if min(self.length, self.rows, self.lookahead, self.noised_copies) < 1:
            sizes = (
                f"length={self.length}, rows={self.rows}, lookahead={self.lookahead}, "
                f"noised_copies={self.noised_copies}"
            )
            raise ValueError(f"{sizes}: each is at least 1")
        if self.short is not None and not 1 <= self.short <= self.length:
            raise ValueError(f"short={self.short}: choose it between 1 and length={self.length}, or leave it out")
        if min(self.drop_text, self.drop_all) < 0 or self.drop_text + self.drop_all > 1 or not 0 <= self.tail <= 1:
            chances = f"drop_text={self.drop_text}, drop_all={self.drop_all}, tail={self.tail}"
            raise ValueError(f"{chances}: these are probabilities, and the first two at most 1 together")

    def shape(self, oldest: int) -> tuple[int, int]:
        """Length and number of the rows of a batch whose oldest document has so many tokens."""
        if self.short is None or oldest > self.short:
            return self.length, self.rows
        return self.short, self.rows * self.length // self.short


@dataclass(frozen=True)
class Batch:
    """A packed batch and the documents it was made of.

    keys, sources: of its documents, in row order. skipped: (key, reason) of each sample that the shard left out for the
    first time since its last batch. shard: the shard it comes from. state: the state of that shard's stream after it.
    """

    packed: Packed
    keys: tuple[str, ...]
    sources: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    shard: int = 0
    state: dict | None = None

    @property
    def padding(self) -> float:
        """Share of the batch's tokens that are padding."""
        return float((self.packed.doc < 0).float().mean())

    def pin_memory(self) -> "Batch":
        """Return the batch with its tensors in pinned memory; called by torch's DataLoader."""
        return replace(self, packed=self.packed.pin_memory())

    def __reduce__(self):
        """Serialise for another process as a few arrays: one tensor per image would cost a shared-memory file each."""
        packed = {
            f.name: getattr(self.packed, f.name) for f in fields(Packed) if f.name not in ("pixels", "patches", "time")
        }
        arrays = {name: tensor.numpy() for name, tensor in packed.items()}
        shapes = [tuple(image.shape) for image in self.packed.pixels]
        flat = np.concatenate([np.zeros(0, np.float32), *(image.numpy().ravel() for image in self.packed.pixels)])
        return _arrived, (arrays, flat, shapes, self.keys, self.sources, self.skipped, self.shard, self.state)


def _arrived(arrays: dict, flat: np.ndarray, shapes: list, *rest) -> Batch:
    images = torch.from_numpy(flat).split([int(np.prod(shape)) for shape in shapes]) if shapes else ()
    pixels = tuple(image.view(shape) for image, shape in zip(images, shapes, strict=True))
    return Batch(Packed(**{name: torch.from_numpy(array) for name, array in arrays.items()}, pixels=pixels), *rest)


# ---- one sample -> laid out documents
# -------------------------------------------------------------------------------------------


def documents(sample: Sample, processor, packing: Packing, rng: random.Random, guidance: bool = True) -> list[Layout]:
    """Lay out a sample as documents: one, or several where a page is longer than a row.

    processor: the model's FusionProcessor. guidance: drop text and images as `packing` says. Raises BadSample if the
    sample has nothing to learn, or a conversation does not fit a row.
    """
    try:
        pieces = processor.pieces(processor.document(sample.messages or {"content": sample.content}, prompt=False))
    except ValueError as error:
        raise BadSample(sample.key, str(error)) from None
    is_page = sample.messages is None
    cuts = _cut(pieces, packing) if is_page else [pieces]
    laid_out = [_lay_out(cut, processor.control, packing, rng, guidance) for cut in cuts]
    laid_out = [document for document in laid_out if document.learned]
    if not laid_out:
        raise BadSample(sample.key, "holds nothing to learn: no text or image of an assistant's")
    longest = max(map(len, laid_out))
    if longest > packing.length:
        raise BadSample(
            sample.key, f"{longest} tokens do not fit a row of {packing.length}: raise length, or shrink its images"
        )
    return laid_out


def _lay_out(pieces: list[Piece], control: Control, packing: Packing, rng: random.Random, guidance: bool) -> Layout:
    keep_tail, drop = rng.random() < packing.tail, rng.random()
    if guidance:
        kept = _dropped(pieces, drop, packing)
        if kept is not pieces:
            return layout(finish(kept, keep_tail=False), control, False, packing.noised_copies)
    return layout(finish(pieces, keep_tail), control, noised_copies=packing.noised_copies)


def _dropped(pieces: list[Piece], drop: float, packing: Packing) -> list[Piece]:
    """Drop text, or text and context images, of a document with a target image; `drop` is a uniform number in [0, 1).

    Without a context image, the second kind would only repeat the first, so nothing is dropped.
    """
    images = [piece for piece in pieces if isinstance(piece, ImagePiece)]
    if not any(image.target for image in images):
        return pieces
    if drop < packing.drop_text:
        return drop_text(pieces)
    if drop < packing.drop_text + packing.drop_all and len(images) > 1:
        return drop_all(pieces)
    return pieces


def _rows_of(piece: Piece, noised_copies: int) -> int:
    """Return the most tokens a piece takes: for an image its start, size, end, clean and noised patches."""
    if isinstance(piece, Tokens):
        return len(piece.ids)
    return 2 + len(piece.size_ids) + piece.grid[0] * piece.grid[1] * (1 + noised_copies * piece.target)


def _cut(pieces: list[Piece], packing: Packing) -> list[list[Piece]]:
    """Cut a page into documents that fit a row.

    Cuts are between its pieces where possible, within a text only if that text alone is too long.
    """
    cuts, room = [[]], packing.length
    for piece in chain.from_iterable(_shortened(piece, packing.length) for piece in pieces):
        rows = _rows_of(piece, packing.noised_copies)
        if rows > room:
            cuts.append([])
            room = packing.length
        cuts[-1].append(piece)
        room -= rows
    return [cut for cut in cuts if cut]


def _shortened(piece: Piece, length: int) -> list[Piece]:
    if isinstance(piece, ImagePiece) or len(piece.ids) <= length:
        return [piece]
    return [replace(piece, ids=piece.ids[start : start + length]) for start in range(0, len(piece.ids), length)]


# ---- documents -> rows
# ----------------------------------------------------------------------------------------------------------


def fill_row(waiting: list[Sized], length: int) -> list[Sized]:
    """Remove the documents of one row from `waiting` and return them.

    The oldest that fits comes first, so that none waits for ever, then repeatedly the longest that still fits. Raises
    StopIteration if none fits `length` tokens.
    """
    sizes = [len(item) for item in waiting]
    oldest = next(index for index, size in enumerate(sizes) if size <= length)
    row, room = [waiting[oldest]], length - sizes[oldest]
    left = sorted((size, index) for index, size in enumerate(sizes) if index != oldest)
    while place := bisect_right(left, room, key=itemgetter(0)):
        size, index = left.pop(place - 1)
        row.append(waiting[index])
        room -= size
    waiting[:] = [waiting[index] for index in sorted(index for _, index in left)]
    return row


def _batch(rows: list[list[Item]], length: int, **rest) -> Batch:
    packed = pack([[item.content for item in row] for row in rows], length)
    items = [item for row in rows for item in row]
    return Batch(packed, tuple(i.key for i in items), tuple(i.source for i in items), **rest)


def fixed_batches(samples: Iterable[Sample], processor, packing: Packing, seed: int = 0) -> list[Batch]:
    """Pack a finite set of samples into batches for validation; nothing is dropped for guidance.

    A sample that does not fit a row, or is otherwise bad, is left out as in training and reported in `skipped` of the
    first batch.
    """
    waiting, skipped = [], []
    for number, sample in enumerate(samples):
        rng = random.Random(f"{seed}/fixed/{number}")
        try:
            laid_out = documents(sample, processor, packing, rng, guidance=False)
        except BadSample as bad:
            skipped.append((bad.key, bad.reason))
            continue
        waiting += [Item(document, sample.key, sample.source) for document in laid_out]
    rows = []
    while waiting:
        rows.append(fill_row(waiting, packing.length))
    batches = [_batch(rows[i : i + packing.rows], packing.length) for i in range(0, len(rows), packing.rows)]
    return [replace(batches[0], skipped=tuple(skipped)), *batches[1:]] if batches else []


# ---- the endless stream
# ---------------------------------------------------------------------------------------------------------


class Rows(Shard):
    """The packed batches of one shard; iterate with `next`."""

    def __init__(self, samples: Samples, seed: int, shard: int, processor, packing: Packing):
        super().__init__(samples, seed, shard)
        self.processor, self.packing = processor, packing

    def contents(self, sample: Sample, rng: random.Random) -> list[Layout]:
        """Return the laid-out documents of a sample; raises BadSample."""
        return documents(sample, self.processor, self.packing, rng)

    def refill(self) -> None:
        """Read samples until at least `packing.lookahead` documents wait."""
        while len(self.waiting) < self.packing.lookahead:
            self.wait_for_one()

    def __next__(self) -> Batch:
        self.refill()
        length, count = self.packing.shape(len(self.waiting[0]))
        rows = []
        for _ in range(count):
            self.refill()
            if all(len(item) > length for item in self.waiting):
                break  # only long documents are left, for the next batch
            rows.append(fill_row(self.waiting, length))
        return _batch(rows, length, skipped=self.newly_skipped(), shard=self.shard, state=self.state_dict())


class PackedBatches(Batches):
    """Endless packed batches of the samples of `open_samples`; other parameters as in Batches and Packing."""

    def __init__(
        self,
        open_samples: Callable[[int, int], Samples],
        processor,
        packing: Packing,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        super().__init__(open_samples, partial(Rows, processor=processor, packing=packing), seed, rank, world)
