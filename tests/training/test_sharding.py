"""Shards: over all ranks and workers every document comes exactly once an epoch, however few there are."""

import itertools
import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import Image

from fusion.data import loader
from fusion.data.formats import BadSample, ImageFolder, Mixture, Sample, Stream
from fusion.data.loader import Batches, Item, Loader, Shard
from fusion.data.pairs import PairBatches, Pairing

EPOCHS = 3


class Numbers:
    """A source whose samples are their numbers, with the draw that belongs to their epoch."""

    name = "numbers"

    def __init__(self, length: int, bad: frozenset = frozenset()):
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Raises BadSample for the bad ones."""
        if index in self.bad:
            raise BadSample(str(index), "is unlucky")
        return Sample(None, [{"type": "text", "text": f"{index} {rng.random()}"}], self.name, str(index))

    def stream(self, seed=0, shard=0, shards=1) -> Stream:
        """Endless."""
        return Stream(self, seed, shard, shards)

    def epochs(self, seed: str) -> Counter:
        """What comes of the first epochs."""
        places = itertools.product(range(EPOCHS), sorted(set(range(self.length)) - self.bad))
        return Counter(f"{index} {random.Random(f'{seed}/{epoch}/{index}').random()}" for epoch, index in places)


class Singles(Shard):
    """Batches of one sample: (its text, the epoch that the stream is in behind it)."""

    def contents(self, sample: Sample, rng: random.Random) -> list[Item]:
        """Its text."""
        return [sample.content[0]["text"]]

    def __next__(self) -> tuple[str, int]:
        self.wait_for_one()
        return self.waiting.pop().content, self.samples.state_dict()["streams"]["numbers"]["epoch"]


def dealt(source: Numbers, world: int, workers: int, monkeypatch) -> Counter:
    """What all workers of all ranks read until each is beyond the first epochs."""
    found: Counter = Counter()
    for rank in range(world):
        batches = Batches(
            lambda shard, shards: Mixture([source], seed=5, shard=shard, shards=shards), Singles, rank=rank, world=world
        )
        for worker in range(max(1, workers)):
            info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
            monkeypatch.setattr(loader, "get_worker_info", lambda info=info: info)
            for text, epoch in batches:
                found[text] += 1
                if epoch >= EPOCHS:
                    break
    return found


@pytest.mark.parametrize(
    "length, bad", [(1, ()), (2, ()), (3, (1,)), (5, (0, 2, 3, 4)), (7, ()), (12, (3, 11)), (50, range(0, 50, 3))]
)
def test_every_document_comes_once_an_epoch_over_ranks_and_workers(length, bad, monkeypatch):
    source = Numbers(length, frozenset(bad))
    expected = source.epochs("5/numbers")
    for world, workers in itertools.product(range(1, 5), range(4)):
        found = dealt(source, world, workers, monkeypatch)
        assert not expected - found, f"{world} ranks with {workers} workers each miss some"
        assert max(found.values()) == 1, f"{world} ranks with {workers} workers each have some twice"


def test_two_images_are_enough_for_three_worker_processes(tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "text": "a"} for number in (0, 7, 1)]  # there is no 7.png
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ImageFolder(tmp_path)
    batches = PairBatches(lambda shard, shards: Mixture([source], shard=shard, shards=shards), 8, Pairing(rows=1))
    stream = Loader(batches, workers=3)
    taken = list(itertools.islice(stream, 30))
    stream.close()
    keys = Counter(key for batch in taken for key in batch.keys)
    assert set(keys) == {str(tmp_path / f"metadata.jsonl:{line}") for line in (1, 3)} and min(keys.values()) > 8
    assert {key for batch in taken for key, _ in batch.skipped} == {str(tmp_path / "metadata.jsonl:2")}
