"""The mask as data: who sees whom, against the design's sentences written out row by row."""

import random

import pytest
import torch

from fusion.sequence.mask import additive, block_mask, visible
from fusion.sequence.packed import layout, pack
from fusion.sequence.rows import Rows
from tests.support.documents import CONTROL, random_layout, random_pieces, rows_of, sees

SEEDS = range(40)


def mask_of(*layouts, window=None, length=None) -> torch.Tensor:
    rows = pack([list(layouts)], length=length)
    return visible(rows, rows, window)[0]


def expected(pieces, window=None) -> torch.Tensor:
    rows = rows_of(pieces)
    return torch.tensor([[sees(query, key, window) for key in rows] for query in rows])


@pytest.mark.parametrize("window", [None, 1, 3, 6])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_document_is_seen_as_the_design_says(seed, window):
    pieces = random_pieces(random.Random(seed))
    assert torch.equal(mask_of(layout(pieces, CONTROL), window=window), expected(pieces, window))


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_packed_equals_unpacked_and_no_token_sees_another_document(seed, window):
    rng = random.Random(seed)
    documents = [random_layout(rng) for _ in range(rng.randint(2, 5))]
    alone = [mask_of(doc, window=window) for doc in documents]
    length = sum(map(len, documents)) + 7
    together = torch.block_diag(*alone, torch.eye(7)).bool()  # padding sees itself alone
    assert torch.equal(mask_of(*documents, window=window, length=length), together)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_rows_does_not_matter(seed):
    rng = random.Random(seed)
    rows = pack([[random_layout(rng), random_layout(rng)]])
    shuffle = torch.randperm(len(rows))
    shuffled = rows.map(lambda column: column[..., shuffle])
    assert torch.equal(visible(shuffled, shuffled), visible(rows, rows)[:, shuffle][:, :, shuffle])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_clean_stream_is_causal_but_for_its_images(seed):
    packed = pack([[random_layout(random.Random(seed))]])
    seen, clean = visible(packed, packed)[0], ~packed.noised[0]
    image_index = packed.image_index[0]
    same_image = (image_index[:, None] == image_index[None, :]) & (image_index[:, None] >= 0)
    lower = torch.ones_like(seen).tril()
    assert torch.equal(seen[clean][:, clean], (lower.bool() | same_image)[clean][:, clean])


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_outside_a_noised_block_sees_it(seed):
    packed = pack([[random_layout(random.Random(seed)) for _ in range(3)]])
    seen, image_index = visible(packed, packed)[0], packed.image_index[0]
    for number in packed.noised_image.nonzero().flatten():
        own = image_index == number
        assert seen[own][:, own].all() and not seen[~own][:, own].any()


@pytest.mark.parametrize("seed", range(10))
def test_noised_blocks_use_up_nothing_of_a_window(seed):
    pieces = random_pieces(random.Random(seed), length=8)
    with_blocks = layout(pieces, CONTROL)
    clean = int((~with_blocks.rows.noised).sum())
    one = mask_of(with_blocks, window=5)[:clean, :clean]
    rows = pack([[with_blocks]]).map(lambda column: column[..., :clean])
    assert torch.equal(one, visible(rows, rows, 5)[0])
    text = with_blocks.rows.image_index[:clean] < 0
    for query in range(clean):
        reach = [key for key in range(clean) if one[query, key] and text[key]]
        assert not reach or not text[query] or query - min(reach) < 5


def test_queries_may_be_the_last_rows_alone():
    rows = pack([[random_layout(random.Random(3))], [random_layout(random.Random(4))]])
    last = rows.map(lambda column: column[..., -4:])
    assert torch.equal(visible(last, rows), visible(rows, rows)[:, -4:])
    first = rows.map(lambda column: column[..., :-4])
    joined = Rows.cat([first, last])
    assert torch.equal(visible(joined, joined), visible(rows, rows))
    doubled = Rows.cat([rows, rows], dim=-2)
    assert doubled.doc.shape[0] == 4 and torch.equal(visible(doubled, doubled)[2:], visible(rows, rows))


def test_additive_is_zero_where_seen_and_the_lowest_number_elsewhere():
    rows = pack([[random_layout(random.Random(0))]])
    seen = visible(rows, rows)
    for dtype in (torch.float32, torch.bfloat16):
        added = additive(seen, dtype)
        assert added.shape == (1, 1, len(rows), len(rows)) and added.dtype == dtype
        assert torch.equal(added[:, 0] == 0, seen) and (added[:, 0][~seen] == torch.finfo(dtype).min).all()


@pytest.mark.parametrize("window", [None, 5])
def test_the_block_mask_is_the_same_mask(window):
    rng = random.Random(1)
    rows = pack([[random_layout(rng) for _ in range(12)] for _ in range(2)], length=384)
    seen, blocks = visible(rows, rows, window), block_mask(rows, rows, window)
    b, q, k = torch.meshgrid(torch.arange(2), torch.arange(384), torch.arange(384), indexing="ij")
    assert torch.equal(blocks.mask_mod(b, torch.zeros_like(b), q, k), seen)
    coarse = seen.view(2, 3, 128, 3, 128).any(dim=4).any(dim=2)
    assert torch.equal(blocks.to_dense()[:, 0].bool(), coarse), "a tile is skipped only where nothing is seen"
