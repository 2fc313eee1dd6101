"""Pairs of texts and images: what is one, batches of one size, nothing lost, and exact resume."""

import itertools
from collections import Counter

import pytest
import torch
from PIL import Image

from fusion.data.formats import BadSample, Mixture, Sample, WorldSource
from fusion.data.formats.row_parsers import turn
from fusion.data.loader import Loader
from fusion.data.pairs import PairBatches, Pairing, fixed_pairs, pair
from fusion.worlds.shapes import Options, World

PAINTED = WorldSource(World(Options(tasks={"text_to_image": 1.0})))
RED = Image.new("RGB", (16, 8), (255, 0, 0))


def open_samples(shard: int, shards: int) -> Mixture:
    return Mixture([PAINTED], seed=1, shard=shard, shards=shards)


def taken(loader: Loader, count: int) -> list:
    return list(itertools.islice(loader, count))


def test_a_request_and_its_image_are_a_pair():
    found = pair(Sample([turn("user", "draw red"), turn("assistant", RED)], None, "s", "k"))
    assert found.text == "draw red" and found.pixels.shape == (3, 8, 16)
    assert found.pixels[:, 0, 0].tolist() == [1, -1, -1]
    assert pair(
        Sample([turn("user", "a"), turn("assistant", RED.resize((17, 9)))], None, "s", "k"), stride=8
    ).pixels.shape == (3, 8, 16)


@pytest.mark.parametrize(
    "sample",
    [
        Sample([turn("user", RED, "what is it?"), turn("assistant", "red")], None, "s", "k7"),
        Sample([turn("user", RED, "make it blue"), turn("assistant", RED)], None, "s", "k7"),
        Sample([turn("user", "draw two"), turn("assistant", RED, RED)], None, "s", "k7"),
        Sample(None, [{"type": "image", "image": RED}], "s", "k7"),
    ],
)
def test_anything_else_is_left_out_by_name(sample):
    with pytest.raises(BadSample, match=r"^k7: is not a text with the one image it asks for"):
        pair(sample)
    batches = fixed_pairs([sample, Sample([turn("user", "red"), turn("assistant", RED)], None, "s", "good")], 1, 4)
    assert [batch.keys for batch in batches] == [("good",)] and batches[0].skipped[0][0] == "k7"


def test_a_batch_has_one_size_and_no_image_comes_twice_or_never():
    batches = taken(Loader(PairBatches(open_samples, 8, Pairing(rows=6, drop_text=0.0))), 40)
    assert all(len(batch.texts) == len(batch.keys) == len(batch.pixels) <= 6 for batch in batches)
    assert len({batch.pixels.shape[1:] for batch in batches}) > 2, "the world has several sizes"
    keys = [key for batch in batches for key in batch.keys]
    assert max(Counter(keys).values()) == 1
    source = open_samples(0, 1)
    first = [next(source).key for _ in range(60)]
    assert set(first) <= set(keys), "what came early is not left waiting"


def test_texts_are_dropped_as_often_as_asked():
    batches = taken(Loader(PairBatches(open_samples, 8, Pairing(rows=50, drop_text=0.3))), 12)
    texts = [text for batch in batches for text in batch.texts]
    assert 0.22 < sum(not text for text in texts) / len(texts) < 0.38


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was_left(workers):
    def loader() -> Loader:
        return Loader(PairBatches(open_samples, 8, Pairing(rows=5), seed=3), workers)

    whole = loader()
    before = taken(whole, 7)
    state = whole.state_dict()
    after = taken(whole, 6)
    again = loader()
    again.load_state_dict(state)
    for one, other in zip(taken(again, 6), after, strict=True):
        assert one.keys == other.keys and one.texts == other.texts and torch.equal(one.pixels, other.pixels)
    assert before[0].keys != after[0].keys
    whole.close(), again.close()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="rows is at least 1"):
        Pairing(rows=0)
    with pytest.raises(ValueError, match="a probability"):
        Pairing(drop_text=1.5)
