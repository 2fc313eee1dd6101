"""The stream of batches: nothing lost, little padding, guidance drops, long pages, workers, and resuming to the bit."""

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import PIL.Image
import pytest
import torch

from fusion.data.formats import BadSample, Mixture, Sample, Stream
from fusion.data.loader import Loader
from fusion.data.packing import PackedBatches, Packing, documents, fill_row, fixed_batches
from fusion.sequence.packed import IGNORE
from fusion.sequence.processor import FusionProcessor
from fusion.testing import tiny_llms as families

PACKING = Packing(length=128, rows=4, lookahead=24)


def photo(rng: random.Random, width: int, height: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (width, height), tuple(rng.randrange(256) for _ in range(3)))


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def image(value: PIL.Image.Image) -> dict:
    return {"type": "image", "image": value}


@dataclass
class Tasks:
    """Drawing, editing, describing and plain text, by index; every `bad`th sample cannot be read."""

    name: str = "tasks"
    bad: int = 10**9
    pages: bool = True

    def __len__(self) -> int:
        return 10_000

    def stream(self, seed=0, shard=0, shards=1):
        return Stream(self, seed, shard, shards)

    def sample(self, index: int, rng: random.Random) -> Sample:
        key = f"tasks:{index}"
        if index % self.bad == self.bad - 1:
            raise BadSample(key, "cannot be read")
        words = " ".join(rng.choice(("red", "circle", "left of", "square")) for _ in range(rng.randint(1, 12)))
        made = photo(rng, 8 * rng.randint(1, 4), 8 * rng.randint(1, 4))
        turns = {
            0: [[text(words)], [image(made)]],
            1: [[image(made), text(words)], [image(photo(rng, *made.size))]],
            2: [[image(made)], [text(words)]],
        }
        if index % 4 == 3 and self.pages:
            return Sample(None, [text(words)], self.name, key)
        roles = ("user", "assistant")
        return Sample(
            [{"role": r, "content": c} for r, c in zip(roles, turns[index % 4 % 3], strict=True)], None, self.name, key
        )


@pytest.fixture(scope="module")
def processor() -> FusionProcessor:
    return FusionProcessor.from_tokenizer(families.tiny_tokenizer(), families.VOCAB, stride=8)


def loader(processor, packing=PACKING, workers=0, rank=0, world=1, bad=10**9) -> Loader:
    def open_samples(shard: int, shards: int) -> Mixture:
        return Mixture([Tasks(bad=bad)], seed=3, shard=shard, shards=shards)

    return Loader(PackedBatches(open_samples, processor, packing, seed=5, rank=rank, world=world), workers)


def fingerprint(batch) -> tuple:
    packed = batch.packed
    columns = (
        packed.ids,
        packed.labels,
        packed.doc,
        packed.order,
        packed.block,
        packed.image_index,
        packed.position,
        packed.source,
    )
    return (
        batch.keys,
        *(column.numpy().tobytes() for column in columns),
        *(p.numpy().tobytes() for p in packed.pixels),
    )


def test_every_document_comes_exactly_once(processor):
    stream = loader(processor)
    keys = Counter(key for _ in range(40) for key in next(stream).keys)
    assert max(keys.values()) == 1
    order = Mixture([Tasks()], seed=3)
    drawn = [next(order).key for _ in range(len(keys) + PACKING.lookahead)]
    waiting = set(drawn) - set(keys)
    assert set(keys) <= set(drawn) and len(waiting) == PACKING.lookahead
    # None waits long: the oldest opens the next row, so what is still waiting was drawn not long ago.
    assert min(drawn.index(key) for key in waiting) > len(drawn) - PACKING.lookahead * 20


def test_padding_is_below_five_percent(processor):
    stream = loader(processor, Packing(length=256, rows=8))
    batches = [next(stream) for _ in range(10)]
    assert np.mean([batch.padding for batch in batches]) < 0.05
    assert all(batch.packed.ids.shape == (8, 256) for batch in batches)
    assert all(batch.packed.documents == len(batch.keys) == len(batch.sources) for batch in batches)


def test_short_documents_get_short_rows_and_nothing_is_lost(processor):
    packing = Packing(length=128, rows=4, lookahead=96, short=64)
    batches = [next(stream) for stream in [loader(processor, packing)] for _ in range(60)]
    shapes = Counter(tuple(batch.packed.ids.shape) for batch in batches)
    assert set(shapes) == {(4, 128), (8, 64)}
    assert np.mean([batch.padding for batch in batches]) < 0.05
    keys = Counter(key for batch in batches for key in batch.keys)
    drawn = [
        sample.key for sample in (next(order) for order in [Mixture([Tasks()], seed=3)] for _ in range(len(keys) + 96))
    ]
    assert max(keys.values()) == 1 and set(keys) <= set(drawn) and len(set(drawn) - set(keys)) == 96


def test_fill_row_takes_the_oldest_and_never_too_much():
    rng = random.Random(0)
    for _ in range(200):
        waiting = [range(rng.randint(1, 60)) for _ in range(rng.randint(1, 30))]
        before = list(waiting)
        row = fill_row(waiting, 60)
        assert row[0] is before[0] and sum(map(len, row)) <= 60
        assert Counter(map(id, row)) + Counter(map(id, waiting)) == Counter(map(id, before))
        assert all(len(left) > 60 - sum(map(len, row)) for left in waiting)  # whatever is left would not have fitted


def drops(processor, packing: Packing, index: int):
    """The one document of a sample as laid out, with what guidance does to it."""
    (document,) = documents(Tasks().sample(index, random.Random(0)), processor, packing, random.Random(1))
    return document


def test_guidance_drops_text_then_context_images(processor):
    whole = Packing(drop_text=0, drop_all=0, tail=0)
    no_text = Packing(drop_text=1, drop_all=0, tail=0)
    nothing = Packing(drop_text=0, drop_all=1, tail=0)
    edit = [drops(processor, packing, index=1) for packing in (whole, no_text, nothing)]
    assert [len(document.grid) for document in edit] == [2, 2, 1]
    assert len(edit[0]) > len(edit[1]) > len(edit[2])
    assert (edit[0].rows.labels != IGNORE).any() and not any(
        (document.rows.labels != IGNORE).any() for document in edit[1:]
    )
    assert all(document.noised_image[-1] for document in edit)
    draw = [drops(processor, packing, index=0) for packing in (whole, no_text, nothing)]
    assert len(draw[1]) < len(draw[0]) == len(draw[2])  # without a context image there is no second kind of drop
    for index in (2, 3):  # nothing is drawn, so nothing is dropped
        assert (
            len(drops(processor, whole, index))
            == len(drops(processor, no_text, index))
            == len(drops(processor, nothing, index))
        )


def test_drops_and_tails_come_as_often_as_asked(processor):
    stream = loader(processor, Packing(length=256, rows=8, drop_text=0.3, drop_all=0.2, tail=0.25, lookahead=64))
    learned = dropped = clean = 0
    for batch in (next(stream) for _ in range(25)):
        packed = batch.packed
        for row, index in ((b, d) for b in range(8) for d in range(int(packed.doc[b].max()) + 1)):
            here = packed.doc[row] == index
            if not packed.noised[row][here].any():
                continue
            silent = not (packed.labels[row][here] != IGNORE).any()
            dropped, learned = dropped + silent, learned + (not silent)
            images = packed.image_index[row][here & (packed.image_index[row] >= 0)].unique().tolist()
            shown = Counter(int(packed.source[m]) for m in images)
            clean += not silent and max(shown.values()) == 2
    total = learned + dropped
    assert total > 300
    assert abs(dropped / total - 0.4) < 0.08  # 0.3 of drawings, 0.3 + 0.2 of edits
    assert abs(clean / learned - 0.25) < 0.08


def test_a_page_longer_than_a_row_is_cut_between_its_parts(processor):
    rng = random.Random(0)
    content = [block for i in range(8) for block in (text(f"image {i} is a red circle. "), image(photo(rng, 32, 32)))]
    page = Sample(None, content, "pages", "page:1")
    cuts = documents(page, processor, Packing(length=128, tail=0), rng, guidance=False)
    assert len(cuts) > 1 and all(len(cut) <= PACKING.length for cut in cuts)
    assert sum(sum(cut.noised_image) for cut in cuts) == 8
    (whole,) = documents(page, processor, Packing(length=1024, tail=0), rng, guidance=False)
    words = [int(i) for cut in cuts for i in cut.rows.ids[cut.rows.image_index < 0] if i < families.VOCAB]
    assert words == [int(i) for i in whole.rows.ids[whole.rows.image_index < 0] if i < families.VOCAB]


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_a_page_is_cut_so_that_every_noised_copy_fits(processor, copies):
    """Rows filled to the brim: four images of 16 patches, whose noised copies take most of the room."""
    rng = random.Random(0)
    page = Sample(
        None,
        [block for _ in range(4) for block in (text("a red circle"), image(photo(rng, 32, 32)))],
        "pages",
        "page:1",
    )
    cuts = documents(page, processor, Packing(length=128, tail=0, noised_copies=copies), rng, guidance=False)
    assert all(len(cut) <= 128 for cut in cuts) and sum(sum(cut.noised_image) for cut in cuts) == 4 * copies


def test_a_long_text_is_cut_inside(processor):
    words = "a red circle left of a blue square. " * 60
    cuts = documents(Sample(None, [text(words)], "text", "text:1"), processor, PACKING, random.Random(0))
    ids = [int(i) for cut in cuts for i in cut.rows.ids]
    assert processor.decode(ids, skip_special_tokens=True) == words


def test_a_conversation_that_does_not_fit_is_named(processor):
    messages = [
        {"role": "user", "content": [text("draw")]},
        {"role": "assistant", "content": [image(photo(random.Random(0), 512, 64))]},
    ]
    with pytest.raises(BadSample, match=r"^chat:7: \d+ tokens do not fit a row of 128: raise length"):
        documents(Sample(messages, None, "chat", "chat:7"), processor, PACKING, random.Random(0))


def test_bad_samples_are_left_out_and_told_once(processor):
    stream = loader(processor, bad=5)
    batches = [next(stream) for _ in range(20)]
    told = [pair for batch in batches for pair in batch.skipped]
    bad = {key for key, _ in told}
    assert told and len(bad) == len(told)
    assert all(key.startswith("tasks:") and reason == "cannot be read" for key, reason in told)
    assert not bad & {key for batch in batches for key in batch.keys}


def test_when_nothing_fits_it_says_so_instead_of_searching_for_ever(processor):
    stream = PackedBatches(
        lambda shard, shards: Mixture([Tasks(pages=False)]), processor, Packing(length=2, rows=1, lookahead=4)
    )
    with pytest.raises(ValueError, match="none of the last 1000 samples could be used, as tasks:"):
        next(Loader(stream))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_gives_the_same_batches(processor, workers):
    straight = loader(processor, workers=workers)
    for _ in range(5):
        next(straight)
    state = straight.state_dict()
    expected = [fingerprint(next(straight)) for _ in range(6)]
    straight.close()
    resumed = loader(processor, workers=workers)
    resumed.load_state_dict(state)
    assert [fingerprint(next(resumed)) for _ in range(6)] == expected
    assert resumed.state_dict() == straight.state_dict()
    resumed.close()


def test_shards_share_nothing_and_depend_on_nothing_else(processor):
    keys = []
    for rank in (0, 1):
        stream = loader(processor, rank=rank, world=2)
        keys.append({key for _ in range(6) for key in next(stream).keys})
    assert not keys[0] & keys[1]
    two = loader(processor, workers=2)
    first, second = next(two), next(two)
    two.close()
    assert [fingerprint(next(loader(processor, rank=rank, world=2))) for rank in (0, 1)] == [
        fingerprint(first),
        fingerprint(second),
    ]


def test_another_number_of_workers_is_refused(processor):
    stream = loader(processor)
    next(stream)
    with pytest.raises(ValueError, match="saved with workers=0 and cannot go on with workers=1"):
        loader(processor, workers=1).load_state_dict(stream.state_dict())


def test_held_out_batches_hold_every_sample_whole(processor):
    rng = random.Random(0)
    samples = [Tasks().sample(index, rng) for index in range(40)]
    batches = fixed_batches(samples, processor, PACKING)
    assert sorted(key for batch in batches for key in batch.keys) == sorted(sample.key for sample in samples)
    assert all((row != IGNORE).any() for batch in batches for row in batch.packed.labels)
    again = fixed_batches(samples, processor, PACKING)
    assert all(torch.equal(a.packed.ids, b.packed.ids) for a, b in zip(batches, again, strict=True))


def test_held_out_documents_keep_their_tails_each_by_a_draw_of_its_own(processor):
    """Of many documents that draw, about as many as `tail` says keep the clean copy of their last image; the seed says
    which."""

    def kept(seed: int) -> list[bool]:
        samples = [Tasks().sample(4 * number, random.Random(number)) for number in range(60)]
        batches = fixed_batches(samples, processor, Packing(length=128, rows=4, tail=0.5), seed)
        keys = [key for batch in batches for key in batch.keys]
        tails = [bool(clean) for batch in batches for clean in _clean_copies(batch.packed)]
        return [tail for _, tail in sorted(zip(keys, tails, strict=True))]

    first, again, other = kept(1), kept(1), kept(2)
    assert len(first) == 60 and 15 < sum(first) < 45 and again == first != other


def _clean_copies(packed) -> list[int]:
    """Clean images of each document, in row order."""
    counts = []
    for row, doc in zip(packed.image_index, packed.doc, strict=True):
        for index in range(int(doc.max()) + 1):
            images = row[(doc == index) & (row >= 0)].unique()
            counts.append(int((~packed.noised_image[images]).sum()))
    return counts


def test_bad_settings_are_one_line():
    with pytest.raises(ValueError, match="rows=0"):
        Packing(rows=0)
    with pytest.raises(ValueError, match=r"drop_all=0\.6"):
        Packing(drop_text=0.6, drop_all=0.6)
