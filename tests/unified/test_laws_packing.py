"""Laws 2 and 3: documents in a row do not meet, and a change is felt by those who see it and by nobody else."""

from dataclasses import replace

import pytest
import torch

from fusion.sequence.packed import layout
from fusion.testing.mixed_documents import (
    CASES,
    CONTROL,
    TOLERANCE,
    answer,
    assert_close,
    changed,
    drawing,
    packed_rows,
    patch_number,
    prose,
    routing_margins,
    story,
    tiny_fusion,
)
from fusion.testing.tiny_llms import FAMILIES, WINDOW
from tests.support.documents import rows_of, sees

cases = pytest.mark.parametrize("case", CASES, ids="-".join)
DOCUMENTS = [story, drawing, prose]
SIZES = [len(layout(make(), CONTROL)) for make in DOCUMENTS]


@cases
def test_packed_equals_unpacked(case):
    model = tiny_fusion(*case)
    with routing_margins(model) as margins:
        alone = [answer(model, packed_rows([[make()]])) for make in DOCUMENTS]
        packed = answer(model, packed_rows([[story(), drawing()], [prose()]], length=sum(SIZES)))
    found = [packed.hidden[0, : SIZES[0]], packed.hidden[0, SIZES[0] : sum(SIZES[:2])], packed.hidden[1, : SIZES[2]]]
    for together, one in zip(found, alone, strict=True):
        assert_close(together, one.hidden[0])
    assert_close(packed.prediction, torch.cat([one.prediction for one in alone]))
    assert not margins or min(margins) > TOLERANCE


@cases
def test_the_order_of_rows_does_not_matter(case):
    """Neither of the rows of a batch, nor of the tokens of a row: who sees whom is told by the mask alone. Only what
    looks at whole images needs the patches of each in their order."""
    model = tiny_fusion(*case)
    packed = packed_rows([[story(), drawing()], [prose()]])
    expected = answer(model, packed)
    turned, order = shuffled(packed, whole_images=model.config.embed != "linear")
    found = answer(model, turned)
    assert_close(found.hidden, expected.hidden.flip(0)[:, order])


def shuffled(packed, whole_images=False):
    """The batch with its rows turned round and the tokens of every row in another order, which is returned too."""
    image_index = packed.image_index
    joined = (image_index[:, 1:] == image_index[:, :-1]) & (image_index[:, 1:] >= 0) & whole_images
    unit = torch.cat([torch.zeros(1, dtype=torch.long), (~joined.any(0)).cumsum(0)])
    order = torch.randperm(int(unit[-1]) + 1, generator=torch.Generator().manual_seed(0))[unit].argsort(stable=True)
    assert not torch.equal(order, torch.arange(len(order)))
    columns = {
        name: getattr(packed, name).flip(0)[:, order]
        for name in ("ids", "labels", "doc", "order", "block", "noised", "image_index")
    }
    number = patch_number(packed).flip(0)[:, order]
    patches = packed.patches[number[columns["image_index"] >= 0]]
    return replace(packed, **columns, position=packed.position.flip(1)[:, :, order], patches=patches), order


@cases
def test_a_change_is_felt_by_those_who_see_it_and_by_nobody_else(case):
    """Text: only what comes later. A patch: every patch of its image, both ways. A noised block: itself alone. Another
    document: nothing."""
    model = tiny_fusion(*case)
    rows = rows_of(story())
    neighbour = len(layout(prose(), CONTROL))
    places = [neighbour + index for index in places_of(rows)] + [3]
    packed = packed_rows([[prose(), story()]] * (len(places) + 1))
    for row, place in enumerate(places, start=1):
        packed = changed(packed, row, place)
    with routing_margins(model) as margins:
        hidden = answer(model, packed).hidden
    difference = (hidden - hidden[0]).abs().amax(-1) / hidden.square().mean().sqrt()
    seen, reached = sight(model, rows)
    for row, place in enumerate(places[:-1], start=1):
        within = difference[row, neighbour:]
        assert (within[seen[:, place - neighbour]] > 0).all(), "what is seen is felt"
        assert (within[~reached[:, place - neighbour]] <= TOLERANCE).all(), "what is not seen is not felt"
        assert (difference[row, :neighbour] <= TOLERANCE).all(), "another document is not felt"
    assert (difference[-1, neighbour:] <= TOLERANCE).all() and difference[-1, 3] > 0
    assert not margins or min(margins) > TOLERANCE


def places_of(rows) -> list[int]:
    """Text at the beginning, between images and at the end; first and last patch of every image, clean and
    noised."""
    blocks: dict = {}
    for index, row in enumerate(rows):
        if row.image_index is not None:
            blocks.setdefault((row.image_index, row.noised), []).append(index)
    texts = [index for index, row in enumerate(rows) if row.image_index is None]
    return [texts[0], texts[20], texts[-1]] + [index for block in blocks.values() for index in (block[0], block[-1])]


def sight(model, rows):
    """(rows, rows) who sees whom in every layer, and whom a change reaches through all of them; from the design's own
    words."""
    config = model.llm.config
    if model.stream is not None:
        return sight_beside(config, rows)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * model.backbone.layers
    layers = [
        torch.tensor(
            [[sees(query, key, window if kind == "sliding_attention" else None) for key in rows] for query in rows]
        )
        for kind in kinds
    ]
    reached = torch.eye(len(rows))
    for layer in layers:
        reached = layer.float() @ reached
    return torch.stack(layers).all(0), reached > 0


def sight_beside(config, rows):
    """The same of an image stream: text sees text alone, as the LLM does, windows counted in text; images see all that
    the design says, at every layer of theirs, behind the text's."""
    image = torch.tensor([row.image_index is not None for row in rows])
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    distance = (~image).cumsum(0)[:, None] - (~image).cumsum(0)[None]
    text = ~image[:, None] & ~image[None] & (distance >= 0)
    near = text if window is None else text & (distance < window)
    read = [near if kind == "sliding_attention" else text for kind in kinds or ["sliding_attention"] * 2]
    drawn = torch.tensor([[sees(query, key) for key in rows] for query in rows]) & image[:, None]
    same, reached = torch.eye(len(rows)).bool(), torch.eye(len(rows))
    for layer in [*(one | same for one in read), drawn | same, drawn | same]:
        reached = layer.float() @ reached
    return torch.stack(read).all(0) & ~image[:, None] | drawn | same, reached > 0


def test_the_documents_are_longer_than_the_window():
    """The laws above would say nothing about sliding windows otherwise."""
    sliding = [family for family, special in FAMILIES.items() if "sliding_window" in special]
    assert len(sliding) >= 10 and max(p.grid[0] * p.grid[1] for p in story() if hasattr(p, "grid")) > WINDOW
    seen, _ = sight(tiny_fusion("mistral"), rows_of(story()))
    everything, _ = sight(tiny_fusion("llama"), rows_of(story()))
    assert seen.sum() < 0.7 * everything.sum()
