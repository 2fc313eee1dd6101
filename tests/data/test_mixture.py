"""Streams and mixtures: each sample once an epoch, disjoint shards, exact resume, weights, bad samples skipped."""

import itertools
import json
from collections import Counter

import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fusion.data.formats import (
    BadSample,
    Captions,
    DataConfig,
    Hub,
    ImageFolder,
    Mixture,
    PlainText,
    Sample,
    SourceConfig,
    Split,
    WorldSource,
    open_mixture,
)
from fusion.data.formats.stream import Stream, shuffled
from fusion.worlds.shapes.world import World


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def take(stream, count):
    return list(itertools.islice(stream, count))


def as_values(sample):
    """A sample as comparable values, images by their pixels."""
    turns = sample.messages or [{"role": None, "content": sample.content}]
    blocks = [
        (m["role"], b["text"] if b["type"] == "text" else b["image"].tobytes()) for m in turns for b in m["content"]
    ]
    return sample.key, blocks


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": f"{n}.png", "text": f"thing {n}"} for n in range(7)])
    (tmp_path / "book.txt").write_text("".join(f"line {n} of a long book\n" for n in range(40)))
    return tmp_path


@pytest.fixture
def sources(folder):
    captions = Captions(prompts=("draw {text}", "paint {text}", "{text}"), describe=0.4)
    return [ImageFolder(folder, captions=captions, name="things"), PlainText(folder / "book.txt", max_chars=60)]


# ---- one source
# -----------------------------------------------------------------------------------------------------------------


def test_shuffled_is_a_permutation_of_any_length():
    for length in [*range(1, 40), 1000]:
        assert sorted(shuffled(position, length, "key") for position in range(length)) == list(range(length))


def test_shuffled_is_even():
    # Where number 0 of 10 lands under 2,000 keys: chi-squared with 9 degrees of freedom is above 27.9 once in a
    # thousand.
    counts = Counter(shuffled(0, 10, str(key)) for key in range(2000))
    assert sum((counts[place] - 200) ** 2 / 200 for place in range(10)) < 27.9


class Numbers:
    """A source whose samples are their numbers."""

    name = "numbers"

    def __init__(self, length, bad=()):
        self.length, self.bad = length, set(bad)

    def __len__(self):
        return self.length

    def sample(self, index, rng):
        if index in self.bad:
            raise BadSample(f"n{index}", "is unlucky")
        return Sample(None, [{"type": "text", "text": f"{index} {rng.random()}"}], "numbers", str(index))

    def stream(self, seed=0, shard=0, shards=1):
        return Stream(self, seed, shard, shards)


def keys(stream, count):
    return [int(sample.key) for sample in take(stream, count)]


def test_an_epoch_has_every_sample_once_and_the_next_another_order():
    order = keys(Stream(Numbers(20)), 60)
    epochs = [order[:20], order[20:40], order[40:]]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(20))
    assert order == keys(Stream(Numbers(20)), 60)
    assert order[:20] != keys(Stream(Numbers(20), seed=1), 20)


def test_shards_deal_an_epoch_among_themselves():
    shards = [keys(Stream(Numbers(21), shard=n, shards=3), 7) for n in range(3)]
    assert sorted(itertools.chain(*shards)) == list(range(21))


def test_fewer_samples_than_shards_leave_none_without():
    shards = [keys(Stream(Numbers(2), shard=n, shards=5), 10) for n in range(5)]
    assert all(set(shard) == {0, 1} for shard in shards)
    with pytest.raises(ValueError, match="number the shards from 0"):
        Stream(Numbers(2), shard=5, shards=5)


def test_the_state_of_a_stream_is_its_epoch_and_position():
    stream = Stream(Numbers(5))
    take(stream, 7)
    assert stream.state_dict() == {"epoch": 1, "position": 2}
    again = Stream(Numbers(5))
    again.load_state_dict({"epoch": 1, "position": 2})
    assert take(again, 9) == take(stream, 9)


# ---- mixtures
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shard", "shards"), [(0, 1), (1, 2), (9, 12)])
def test_resuming_is_never_having_stopped(sources, shard, shards):
    mixture = Mixture(sources, [2.0, 1.0], seed=3, shard=shard, shards=shards)
    take(mixture, 23)
    state = json.loads(json.dumps(mixture.state_dict()))
    onwards = list(map(as_values, take(mixture, 40)))
    again = Mixture(sources, [2.0, 1.0], seed=3, shard=shard, shards=shards)
    again.load_state_dict(state)
    assert list(map(as_values, take(again, 40))) == onwards
    assert again.state_dict() == mixture.state_dict()
    assert len({repr(values) for values in onwards}) > 20


def test_weights_are_kept(sources):
    counts = Counter(sample.source for sample in take(Mixture(sources, [3.0, 1.0]), 1200))
    assert counts["things"] / 1200 == pytest.approx(0.75, abs=0.05)
    assert {sample.source for sample in take(Mixture(sources, [0.0, 1.0]), 100)} == {"book"}


def test_shards_of_a_mixture_differ(sources):
    streams = [[as_values(sample) for sample in take(Mixture(sources, shard=n, shards=2), 20)] for n in (0, 1)]
    assert streams[0] != streams[1]


def test_a_mixture_that_makes_no_sense_is_refused(sources):
    with pytest.raises(ValueError, match="one weight per source"):
        Mixture(sources, [1.0])
    with pytest.raises(ValueError, match="none may be negative"):
        Mixture(sources, [1.0, -1.0])
    with pytest.raises(ValueError, match="not all zero"):
        Mixture(sources, [0.0, 0.0])
    with pytest.raises(ValueError, match="called the same"):
        Mixture([sources[0], sources[0]])
    with pytest.raises(ValueError, match="the saved state is of a mixture of things"):
        Mixture(sources[1:]).load_state_dict(Mixture(sources[:1]).state_dict())


def test_bad_samples_are_left_out_counted_and_listed_once(folder):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    (folder / "4.png").unlink()
    mixture = Mixture([ImageFolder(folder, name="things")])
    samples = take(mixture, 50)
    assert {sample.key for sample in samples} == {str(folder / f"metadata.jsonl:{line}") for line in (1, 2, 4, 6, 7)}
    found = dict(mixture.skipped)
    assert (
        set(found) == {str(folder / "metadata.jsonl:3"), str(folder / "metadata.jsonl:5")} and len(mixture.skipped) == 2
    )
    assert str(folder / "2.png") in found[str(folder / "metadata.jsonl:3")]
    assert "no such file" in found[str(folder / "metadata.jsonl:5")]
    assert 18 <= mixture.skipped_count <= 22  # ten epochs of five good and two bad ones


def test_skipping_resumes_exactly():
    mixture = Mixture([Numbers(30, bad=range(0, 30, 3))])
    take(mixture, 17)
    state = mixture.state_dict()
    again = Mixture([Numbers(30, bad=range(0, 30, 3))])
    again.load_state_dict(state)
    assert take(again, 50) == take(mixture, 50)


def test_one_good_sample_is_enough_and_none_is_an_error():
    assert set(keys(Mixture([Numbers(30, bad=range(1, 30))], shard=1, shards=4), 3)) == {0}
    with pytest.raises(ValueError, match=r"^numbers: all of its first 30 samples are bad, as n\d+: is unlucky$"):
        next(Mixture([Numbers(30, bad=range(30))]))


def test_a_bad_sample_survives_the_way_between_processes():
    copy = BadSample.__reduce__(BadSample("key", "two\nlines"))
    assert str(copy[0](*copy[1])) == "key: two lines"


# ---- the world, the hub, configs
# ------------------------------------------------------------------------------------------------


def test_the_world_is_a_source_like_the_others(sources):
    mixture = Mixture([*sources, WorldSource(World())], [1.0, 1.0, 2.0], seed=5)
    take(mixture, 10)
    state = mixture.state_dict()
    onwards = list(map(as_values, take(mixture, 20)))
    again = Mixture([*sources, WorldSource(World())], [1.0, 1.0, 2.0], seed=5)
    again.load_state_dict(state)
    assert list(map(as_values, take(again, 20))) == onwards
    assert {key.partition(":")[0] for key, _ in onwards} >= {"world"}


def test_worlds_of_two_seeds_share_nothing():
    first, second = ([as_values(WorldSource(World(), seed)[n])[1] for n in range(20)] for seed in (0, 1))
    assert first != second
    assert first == [as_values(WorldSource(World(), 0)[n])[1] for n in range(20)]


@pytest.fixture(autouse=True)
def _no_pause_between_epochs(monkeypatch):
    """`datasets` sleeps for five seconds whenever it has read a Parquet file, against a hang in pyarrow when the
    process ends."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def hub(folder, files=1, **options):
    """A dataset of 12 captioned images in Parquet files, one of them broken, streamed as from the hub."""
    import datasets

    rows = []
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / "one.png")
        encoded = (folder / "one.png").read_bytes() if number != 5 else b"broken"
        rows.append({"picture": {"bytes": encoded, "path": f"{number}.png"}, "words": f"thing {number}"})
    features = datasets.Features({"picture": datasets.Image(), "words": datasets.Value("string")})
    whole = datasets.Dataset.from_list(rows, features=features)
    names = [str(folder / f"part{n}.parquet") for n in range(files)]
    for number, name in enumerate(names):
        whole.shard(files, number).to_parquet(name)
    columns = {"file_name": "picture", "text": "words"}
    return Hub("parquet", Captions(describe=0.5), columns=columns, data_files=names, name="hub", **options)


GOOD = {f"hub:{n}.png" for n in range(12) if n != 5}


@pytest.mark.parametrize("files", [1, 2])
def test_a_hub_dataset_streams_all_its_rows_but_the_broken_one(tmp_path, files):
    mixture = Mixture([hub(tmp_path, files)])
    samples = take(mixture, 22)
    assert {sample.key for sample in samples[:11]} == {sample.key for sample in samples[11:]} == GOOD
    assert [s.key for s in samples[:11]] != [s.key for s in samples[11:]]
    assert [key for key, _ in mixture.skipped] == ["hub:5.png"]


@pytest.mark.parametrize("files", [1, 2])
def test_a_hub_dataset_is_dealt_among_shards_and_resumes(tmp_path, files):
    source = hub(tmp_path, files)
    shards = [[sample.key for sample in take(Mixture([source], shard=n, shards=2), 5)] for n in (0, 1)]
    assert not set(shards[0]) & set(shards[1])
    mixture = Mixture([source], shard=1, shards=2)
    take(mixture, 8)
    state = mixture.state_dict()
    again = Mixture([source], shard=1, shards=2)
    again.load_state_dict(state)
    assert list(map(as_values, take(again, 9))) == list(map(as_values, take(mixture, 9)))


def test_a_hub_dataset_with_fewer_rows_than_shards_leaves_no_shard_without(tmp_path):
    source = hub(tmp_path)
    for shard in (0, 12, 13):
        assert len(take(Mixture([source], shard=shard, shards=14), 3)) == 3


def test_a_hub_dataset_splits(tmp_path):
    sides = [
        {s.key for s in take(Mixture([hub(tmp_path, split=Split(side, held_out=0.4))]), 30)}
        for side in ("train", "validation")
    ]
    assert sides[0] | sides[1] == GOOD and not sides[0] & sides[1]


class InWorkers(IterableDataset):
    def __init__(self, source):
        self.source = source

    def __iter__(self):
        worker = get_worker_info()
        mixture = Mixture([self.source], shard=worker.id, shards=worker.num_workers)
        yield from (sample.key for sample in take(mixture, 5))


def test_a_hub_dataset_is_not_dealt_twice_in_worker_processes(tmp_path):
    found = list(DataLoader(InWorkers(hub(tmp_path)), batch_size=None, num_workers=2))
    assert len(found) == 10 and len(set(found)) == 10


def test_a_hub_dataset_that_is_wrong_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="cannot be opened by load_dataset") as caught:
        Hub("parquet", "images", data_files=[str(tmp_path / "none.parquet")])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown form 'pictures'; choose one of images, edits"):
        Hub("parquet", "pictures")


def test_a_config_opens_its_mixture(folder):
    config = DataConfig(
        path=str(folder),
        sources=[
            SourceConfig("images", weight=2.0, describe=1.0, questions=["what?"], name="things"),
            SourceConfig("text", path="book.txt", max_chars=50),
        ],
        held_out=0.3,
        size=[16, 24],
    )
    train = open_mixture(config, "train", stride=8, seed=1)
    samples = take(train, 60)
    assert Counter(sample.source for sample in samples)["things"] > 30
    block = next(sample for sample in samples if sample.source == "things").messages[0]["content"]
    assert block[0]["image"].size == (16, 24) and block[1]["text"] == "what?"
    held = {sample.key for sample in take(open_mixture(config, "validation", stride=8), 60)}
    assert held and not held & {sample.key for sample in samples}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pictures"}, "unknown kind of source 'pictures'"),
        ({"kind": "edits", "describe": 0.5}, "kind edits has no option 'describe'"),
        ({"kind": "hub", "path": "x"}, "needs form"),
        ({"kind": "hub", "form": "edits", "describe": 0.5}, "no option 'describe'"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig(**options)
    with pytest.raises(ValueError, match=r"data\.sources is empty"):
        open_mixture(DataConfig(), "train", stride=8)
