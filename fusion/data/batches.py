"""An endless stream of samples -> packed batches: guidance drops, layout, best-fit packing, worker processes, exact resume.

Every choice made for a document follows from (seed, shard, its number in the shard's stream) alone. So the state of a stream is small:
where its samples stand, and which documents wait in the lookahead buffer; resuming reads those again.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import itemgetter
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fusion.data.sources.sample import BadSample, Sample
from fusion.sequence import (
    IGNORE,
    Control,
    Layout,
    Packed,
    Picture,
    Piece,
    Tokens,
    drop_all,
    drop_text,
    finish,
    layout,
    pack,
)

# So many samples in a row that do not fit mean that the settings are wrong, not the samples.
PATIENCE = 1000


@runtime_checkable
class Samples(Protocol):
    """An endless stream of samples, such as fusion.data.sources.Mixture.

    skipped: the samples that it left out so far, as (key, reason), each once; skipped_count: how many times it left one out.
    """

    skipped: list[tuple[str, str]]
    skipped_count: int

    def __next__(self) -> Sample: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class Packing:
    """How documents become batches.

    length, rows: tokens per row, rows per batch. drop_text, drop_all: probability that a document that draws loses its text, or its
    text and its context images, so that guidance has something to compare with. tail: probability that the clean copy of a last
    picture is kept, so that stopping is learned. lookahead: documents to choose from when a row is filled.
    noised_copies: noised blocks of each target, each with noise and time of its own. short: batches whose oldest document fits this
    many tokens have rows of that length, and more of them: where attention reads a dense mask, its cost grows with the row.
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
            sizes = f"length={self.length}, rows={self.rows}, lookahead={self.lookahead}, noised_copies={self.noised_copies}"
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
    """A packed batch and what it was made of.

    keys, sources: of its documents, in row order. skipped: one line for each sample left out since the shard's last batch.
    shard, state: whose stream it comes from, and the state of that stream behind it.
    """

    packed: Packed
    keys: tuple[str, ...]
    sources: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    shard: int = 0
    state: dict | None = None

    @property
    def padding(self) -> float:
        """Share of the batch's tokens that are padding."""
        return float((self.packed.doc < 0).float().mean())

    def __reduce__(self):
        """To another process as a few arrays: one tensor per image would cost a shared-memory file each."""
        packed = {f.name: getattr(self.packed, f.name) for f in fields(Packed) if f.name not in ("pixels", "patches", "time")}
        arrays = {name: tensor.numpy() for name, tensor in packed.items()}
        shapes = [tuple(image.shape) for image in self.packed.pixels]
        flat = np.concatenate([np.zeros(0, np.float32), *(image.numpy().ravel() for image in self.packed.pixels)])
        return _arrived, (arrays, flat, shapes, self.keys, self.sources, self.skipped, self.shard, self.state)


def _arrived(arrays: dict, flat: np.ndarray, shapes: list, *rest) -> Batch:
    images = torch.from_numpy(flat).split([int(np.prod(shape)) for shape in shapes]) if shapes else ()
    pixels = tuple(image.view(shape) for image, shape in zip(images, shapes, strict=True))
    return Batch(Packed(**{name: torch.from_numpy(array) for name, array in arrays.items()}, pixels=pixels), *rest)


# ---- one sample -> laid out documents -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A laid out document that waits for a row. number: of its sample in the shard's stream; part: which cut of it."""

    layout: Layout
    key: str
    source: str
    number: int = 0
    part: int = 0
    before: dict | None = None  # the state of the samples just before this one was read

    def __len__(self) -> int:
        return len(self.layout)


def documents(sample: Sample, processor, packing: Packing, rng: random.Random, guidance: bool = True) -> list[Layout]:
    """The laid out documents of a sample: one, or several where a page is longer than a row.

    guidance: drop text and images for guidance as `packing` says. Raises BadSample.
    """
    try:
        pieces = processor.pieces(processor.document(sample.messages or {"content": sample.content}, prompt=False))
    except ValueError as error:
        raise BadSample(sample.key, str(error)) from None
    is_page = sample.messages is None
    cuts = _cut(pieces, packing) if is_page else [pieces]
    laid_out = [_lay_out(cut, processor.control, packing, rng, guidance) for cut in cuts]
    laid_out = [document for document in laid_out if document.noised.any() or (document.labels != IGNORE).any()]
    if not laid_out:
        raise BadSample(sample.key, "holds nothing to learn: no text or image of an assistant's")
    longest = max(map(len, laid_out))
    if longest > packing.length:
        raise BadSample(sample.key, f"{longest} tokens do not fit a row of {packing.length}: raise length, or shrink its images")
    return laid_out


def _lay_out(pieces: list[Piece], control: Control, packing: Packing, rng: random.Random, guidance: bool) -> Layout:
    keep_tail, drop = rng.random() < packing.tail, rng.random()
    if guidance:
        kept = _dropped(pieces, drop, packing)
        if kept is not pieces:
            return layout(finish(kept, keep_tail=False), control, False, packing.noised_copies)
    return layout(finish(pieces, keep_tail), control, noised_copies=packing.noised_copies)


def _dropped(pieces: list[Piece], drop: float, packing: Packing) -> list[Piece]:
    """Guidance drops of a document that draws. Where there is no context image, the second kind would only repeat the first."""
    pictures = [piece for piece in pieces if isinstance(piece, Picture)]
    if not any(picture.target for picture in pictures):
        return pieces
    if drop < packing.drop_text:
        return drop_text(pieces)
    if drop < packing.drop_text + packing.drop_all and len(pictures) > 1:
        return drop_all(pieces)
    return pieces


def _rows_of(piece: Piece, noised_copies: int) -> int:
    """Rows that a piece takes at most: a picture its start, size, end, clean copy and noised ones."""
    if isinstance(piece, Tokens):
        return len(piece.ids)
    return 2 + len(piece.size_ids) + piece.grid[0] * piece.grid[1] * (1 + noised_copies * piece.target)


def _cut(pieces: list[Piece], packing: Packing) -> list[list[Piece]]:
    """A page cut into documents that fit: between its parts where possible, inside a text only where that text alone is too long."""
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
    if isinstance(piece, Picture) or len(piece.ids) <= length:
        return [piece]
    return [replace(piece, ids=piece.ids[start : start + length]) for start in range(0, len(piece.ids), length)]


# ---- documents -> rows ----------------------------------------------------------------------------------------------------------


def fill_row(waiting: list[Sized], length: int) -> list[Sized]:
    """Take out of `waiting` the documents of one row: the oldest that fits, then again and again the longest that still does.

    The oldest goes first so that none waits for ever.
    """
    oldest = next(index for index, item in enumerate(waiting) if len(item) <= length)
    row, room = [waiting[oldest]], length - len(waiting[oldest])
    left = sorted((len(item), index) for index, item in enumerate(waiting) if index != oldest)
    while place := bisect_right(left, room, key=itemgetter(0)):
        size, index = left.pop(place - 1)
        row.append(waiting[index])
        room -= size
    waiting[:] = [waiting[index] for index in sorted(index for _, index in left)]
    return row


def _batch(rows: list[list[Item]], length: int, **rest) -> Batch:
    packed = pack([[item.layout for item in row] for row in rows], length)
    items = [item for row in rows for item in row]
    return Batch(packed, tuple(i.key for i in items), tuple(i.source for i in items), **rest)


def fixed_batches(samples: Iterable[Sample], processor, packing: Packing, seed: int = 0) -> list[Batch]:
    """A finite set of samples as batches, for validation: nothing is dropped for guidance.

    What does not fit a row is left out, as in training, and told in `skipped` of the first batch.
    """
    waiting, skipped = [], []
    for number, sample in enumerate(samples):
        rng = random.Random(f"{seed}/fixed/{number}")
        try:
            laid_out = documents(sample, processor, packing, rng, guidance=False)
        except BadSample as bad:
            skipped.append(str(bad))
            continue
        waiting += [Item(document, sample.key, sample.source) for document in laid_out]
    rows = []
    while waiting:
        rows.append(fill_row(waiting, packing.length))
    batches = [_batch(rows[i : i + packing.rows], packing.length) for i in range(0, len(rows), packing.rows)]
    return [replace(batches[0], skipped=tuple(skipped)), *batches[1:]] if batches else []


# ---- the endless stream ---------------------------------------------------------------------------------------------------------


class _Shard:
    """The batches of one shard, with everything that its state needs."""

    def __init__(self, samples: Samples, processor, packing: Packing, seed: int, shard: int):
        self.samples, self.processor, self.packing = samples, processor, packing
        self.seed, self.shard = seed, shard
        self.number = 0
        self.waiting: list[Item] = []
        self.too_long: list[str] = []
        self.known_bad: set[tuple[str, str]] = set()

    def read(self) -> list[Item]:
        """The documents of the next sample; one that does not fit is noted and gives none."""
        before = self.samples.state_dict()
        rng = random.Random(f"{self.seed}/{self.shard}/{self.number}")
        sample = next(self.samples)
        self.number += 1
        try:
            laid_out = documents(sample, self.processor, self.packing, rng)
        except BadSample as bad:
            self.too_long.append(str(bad))
            return []
        return [Item(doc, sample.key, sample.source, self.number - 1, part, before) for part, doc in enumerate(laid_out)]

    def refill(self) -> None:
        failures = 0
        while len(self.waiting) < self.packing.lookahead:
            items = self.read()
            self.waiting += items
            failures = 0 if items else failures + 1
            if failures == PATIENCE:
                raise ValueError(f"none of the last {PATIENCE} samples could be used, as {self.too_long[-1]}")

    def newly_skipped(self) -> tuple[str, ...]:
        """The samples left out since the last call, one line each."""
        lines, self.too_long = self.too_long, []
        if self.samples.skipped_count > len(self.known_bad):
            new = [pair for pair in self.samples.skipped if pair not in self.known_bad]
            self.known_bad.update(new)
            lines += [f"{key}: {reason}" for key, reason in new]
        return tuple(lines)

    def __next__(self) -> Batch:
        self.refill()
        length, count = self.packing.shape(len(self.waiting[0]))
        rows = []
        for _ in range(count):
            self.refill()
            if all(len(item) > length for item in self.waiting):
                break  # only long documents are left: the next batch is theirs
            rows.append(fill_row(self.waiting, length))
        return _batch(rows, length, skipped=self.newly_skipped(), shard=self.shard, state=self.state_dict())

    def state_dict(self) -> dict:
        oldest = self.waiting[0] if self.waiting else None
        return {
            "samples": oldest.before if oldest else self.samples.state_dict(),
            "first": oldest.number if oldest else self.number,
            "number": self.number,
            "waiting": [[item.number, item.part] for item in self.waiting],
        }

    def load_state_dict(self, state: dict) -> None:
        self.samples.load_state_dict(state["samples"])
        wanted = {tuple(pair) for pair in state["waiting"]}
        self.number = state["first"]
        while self.number < state["number"]:
            self.waiting += [item for item in self.read() if (item.number, item.part) in wanted]
        self.newly_skipped()  # reported before the state was taken


class Batches(IterableDataset):
    """Endless packed batches, as a dataset for torch's DataLoader; the same for the same (seed, rank, world, workers).

    open_samples: (shard, shards) -> an endless stream of the samples of that shard. Every worker process of every rank is one shard.
    """

    def __init__(
        self,
        open_samples: Callable[[int, int], Samples],
        processor: Any,
        packing: Packing,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.open_samples, self.processor, self.packing = open_samples, processor, packing
        self.seed, self.rank, self.world = seed, rank, world
        self.resume: dict | None = None

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        # After n batches it is worker n % workers whose turn is next, but a DataLoader begins with the first: turn the roles instead.
        turn = self.resume["batches"] if self.resume else 0
        role = ((worker.id if worker else 0) + turn) % workers
        shard = self.rank * workers + role
        stream = _Shard(self.open_samples(shard, self.world * workers), self.processor, self.packing, self.seed, shard)
        if self.resume and self.resume["shards"].get(str(shard)):
            stream.load_state_dict(self.resume["shards"][str(shard)])
        while True:
            yield next(stream)


class Loader:
    """Batches made by worker processes ahead of time, in a fixed order; `state_dict` says how to go on behind the last one taken.

    workers: processes that make batches; 0 makes them in this one. prefetch: batches that each worker keeps ready.
    """

    def __init__(self, batches: Batches, workers: int = 0, prefetch: int = 4):
        self.batches, self.workers, self.prefetch = batches, workers, prefetch
        self.taken, self.shards = 0, {}
        self._iterator: Iterator[Batch] | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            ahead = {"prefetch_factor": self.prefetch, "worker_init_fn": _quiet} if self.workers else {}
            self._iterator = iter(DataLoader(self.batches, batch_size=None, num_workers=self.workers, **ahead))
        batch = next(self._iterator)
        self.taken += 1
        self.shards[str(batch.shard)] = batch.state
        return batch

    def state_dict(self) -> dict:
        """JSON: the number of batches taken and the state of each shard behind them."""
        return {"batches": self.taken, "workers": self.workers, "world": self.batches.world, "shards": dict(self.shards)}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state_dict` was taken. Raises ValueError if the number of workers or ranks is another one."""
        for name, now in (("workers", self.workers), ("world", self.batches.world)):
            if state[name] != now:
                raise ValueError(f"the run was saved with {name}={state[name]} and cannot go on with {name}={now}: its shards would differ")
        self.taken, self.shards = state["batches"], dict(state["shards"])
        self.batches.resume = state
        self._iterator = None

    def close(self) -> None:
        """Stop the worker processes."""
        self._iterator = None


def _quiet(worker: int) -> None:
    """Ctrl-C goes to the whole process group; the trainer alone decides when the workers end. One thread each is their share."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
