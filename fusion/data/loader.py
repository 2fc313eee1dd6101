"""Make endless batches out of endless samples, with ranks, worker processes, skipped samples and exact resume.

Every choice made for a sample follows from (seed, shard, its number in the shard's stream) alone. So the state of a
stream is small: the state of its samples, and which of them wait for a batch; resuming reads those again.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fusion.data.formats.sample import BadSample, Sample

# This many unusable samples in a row mean that the settings are wrong, not the samples.
PATIENCE = 1000


@runtime_checkable
class Samples(Protocol):
    """An endless stream of samples, such as fusion.data.formats.Mixture.

    skipped: the samples left out so far, as (key, reason), each once.
    """

    skipped: list[tuple[str, str]]

    def __next__(self) -> Sample: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class Item:
    """Content made of a sample that waits to be put in a batch.

    content: for example a laid-out document or a Pair. number: the number of its sample in the shard's stream. part:
    its index among the contents of that sample.
    """

    content: Any
    key: str
    source: str
    number: int = 0
    part: int = 0
    before: dict | None = None  # the state of the samples just before this one was read

    @cached_property
    def size(self) -> int:
        """The length of the content, cached because it is read often while the item waits."""
        return len(self.content)

    def __len__(self) -> int:
        return self.size


class Shard(ABC):
    """The batches of one shard, and all state that is needed to resume them; an abstract base class."""

    def __init__(self, samples: Samples, seed: int, shard: int):
        self.samples, self.seed, self.shard = samples, seed, shard
        self.number = 0
        self.waiting: list[Item] = []
        self.left_out: list[tuple[str, str]] = []
        self.told: set[str] = set()

    @abstractmethod
    def contents(self, sample: Sample, rng: random.Random) -> list:
        """Convert a sample to one or several contents for batches; raises BadSample."""

    @abstractmethod
    def __next__(self) -> Any:
        """Return the next batch, whose field `shard` is this shard's number and `state` its state after this batch."""

    def read(self) -> list[Item]:
        """Read the next sample and return its items; a bad sample is recorded in `left_out` and gives none."""
        before = self.samples.state_dict()
        rng = random.Random(f"{self.seed}/{self.shard}/{self.number}")
        sample = next(self.samples)
        self.number += 1
        try:
            contents = self.contents(sample, rng)
        except BadSample as bad:
            self.left_out.append((bad.key, bad.reason))
            return []
        return [
            Item(content, sample.key, sample.source, self.number - 1, part, before)
            for part, content in enumerate(contents)
        ]

    def wait_for_one(self) -> None:
        """Read samples until one more item waits; raises ValueError after PATIENCE unusable samples in a row."""
        for _ in range(PATIENCE):
            items = self.read()
            self.waiting += items
            if items:
                return
        raise ValueError(f"none of the last {PATIENCE} samples could be used, as {': '.join(self.left_out[-1])}")

    def newly_skipped(self) -> tuple[tuple[str, str], ...]:
        """Return (key, reason) of each sample that this shard left out for the first time since the last call."""
        met = dict([*self.left_out, *self.samples.skipped])
        new = tuple((key, reason) for key, reason in met.items() if key not in self.told)
        self.told.update(met)
        self.left_out = []
        return new

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
    """Endless batches, as a dataset for torch's DataLoader; deterministic in (seed, rank, world, workers).

    open_samples: (shard, shards) -> an endless stream of the samples of that shard. Every worker process of every rank
    is one shard. shard: (samples, seed, shard) -> a Shard. rank, world: this process's rank and the number of ranks.
    """

    def __init__(
        self,
        open_samples: Callable[[int, int], Samples],
        shard: Callable[[Samples, int, int], Shard],
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.open_samples, self.open_shard = open_samples, shard
        self.seed, self.rank, self.world = seed, rank, world
        self.resume: dict | None = None

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        # After n batches the next one is due from worker n % workers, but a DataLoader begins with worker 0: rotate
        # the shards among the workers instead.
        turn = self.resume["batches"] if self.resume else 0
        role = ((worker.id if worker else 0) + turn) % workers
        shard = self.rank * workers + role
        stream = self.open_shard(self.open_samples(shard, self.world * workers), self.seed, shard)
        if self.resume and self.resume["shards"].get(str(shard)):
            stream.load_state_dict(self.resume["shards"][str(shard)])
        while True:
            yield next(stream)


class Loader:
    """Batches made ahead of time by worker processes, in a fixed order, resumable after the last batch taken.

    workers: processes that make batches; 0 makes them in this process. prefetch: batches that each worker keeps ready.
    pinned: whether a thread copies batches to pinned memory; set it to train on a GPU.
    """

    def __init__(self, batches: Batches, workers: int = 0, prefetch: int = 4):
        self.batches, self.workers, self.prefetch = batches, workers, prefetch
        self.pinned = False
        self.taken, self.shards = 0, {}
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            ahead = (
                {"prefetch_factor": self.prefetch, "worker_init_fn": _quiet, "pin_memory": self.pinned}
                if self.workers
                else {}
            )
            self._iterator = iter(DataLoader(self.batches, batch_size=None, num_workers=self.workers, **ahead))
        batch = next(self._iterator)
        self.taken += 1
        self.shards[str(batch.shard)] = batch.state
        return batch

    def state_dict(self) -> dict:
        """Return a JSON-serialisable state: the number of batches taken and the state of each shard after them."""
        return {
            "batches": self.taken,
            "workers": self.workers,
            "world": self.batches.world,
            "shards": dict(self.shards),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`; raises ValueError if the number of workers or ranks differs."""
        for name, now in (("workers", self.workers), ("world", self.batches.world)):
            if state[name] != now:
                raise ValueError(
                    f"the run was saved with {name}={state[name]} and cannot go on with {name}={now}: its shards "
                    "would differ"
                )
        self.taken, self.shards = state["batches"], dict(state["shards"])
        self.batches.resume = state
        self._iterator = None

    def close(self) -> None:
        """Stop the worker processes and discard the batches made ahead."""
        self._iterator = None


def _quiet(worker: int) -> None:
    """Initialise a worker process: ignore SIGINT and use one thread.

    Ctrl-C is sent to the whole process group; the trainer alone decides when the workers end.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
