"""Law 1: on text, a fresh fusion model is its LLM bit for bit; in a mixed document, so is text before an image."""

import copy

import pytest
import torch

from fusion.sequence.packed import Tokens, layout, pack
from fusion.testing.mixed_documents import (
    CONTROL,
    TOLERANCE,
    answer,
    assert_close,
    fresh_fusion,
    image_piece,
    packed_rows,
    routing_margins,
    stirred,
    text,
)
from fusion.testing.tiny_llms import FAMILIES, VOCAB, WINDOW, tiny_llm

LENGTH = 3 * WINDOW
SHORT = 2 * WINDOW - 3


def ids(count: int = LENGTH) -> torch.Tensor:
    return torch.randint(1, VOCAB, (2, count), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def fresh(family):
    """The extended model, hooks in place."""
    return fresh_fusion(family)


@pytest.fixture(scope="module")
def plain(family):
    """The LLM as it was."""
    return tiny_llm(family)


@torch.no_grad()
def test_text_is_read_as_the_llm_reads_it_bit_for_bit(fresh, plain):
    assert torch.equal(fresh(input_ids=ids()).logits, plain(input_ids=ids()).logits)


@torch.no_grad()
def test_a_packed_row_of_text_too(fresh, plain):
    rows = [[layout([Tokens(tuple(row))], CONTROL)] for row in ids().tolist()]
    packed = pack(rows).with_patches(torch.zeros(0, fresh.config.patch_width), torch.zeros(0))
    mask = fresh.backbone.mask(packed, packed)
    logits = answer(fresh, packed).logits[..., :VOCAB]
    assert torch.equal(logits, plain(input_ids=ids(), attention_mask=mask, position_ids=packed.position[0]).logits)


@torch.no_grad()
def test_neither_weights_nor_vocabulary_of_the_llm_change(fresh, plain):
    ours, theirs = fresh.llm.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert fresh(input_ids=ids()).logits.shape[-1] == VOCAB


@torch.no_grad()
def test_text_before_an_image_is_read_as_if_none_followed(fresh, plain):
    model = stirred(copy.deepcopy(fresh))
    before = text(SHORT, 5)
    packed = packed_rows([[[before, image_piece(5, 4, 6), text(4, 7)]], [[text(3, 8), image_piece(2, 2, 9)]]])
    with routing_margins(model) as margins:
        expected = plain(input_ids=torch.tensor([before.ids])).logits[0]
        assert_close(answer(model, packed).logits[0, :SHORT, :VOCAB], expected)
    assert not margins or min(margins) > TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(fresh, side):
    alone, pad = fresh(input_ids=ids()).logits, torch.zeros(2, 5, dtype=torch.long)
    parts = [pad, ids()] if side == "left" else [ids(), pad]
    real = torch.cat([torch.full_like(part, int(part is not pad)) for part in parts], dim=1)
    padded = fresh(input_ids=torch.cat(parts, dim=1), attention_mask=real).logits
    assert_close(padded[real.bool()], alone.flatten(0, 1))


@torch.no_grad()
def test_text_read_with_a_cache_is_text_read_at_once(fresh):
    whole = fresh(input_ids=ids()).logits
    first = fresh(input_ids=ids()[:, :SHORT], use_cache=True)
    rest = fresh(input_ids=ids()[:, SHORT:], past_key_values=first.past_key_values)
    assert_close(torch.cat([first.logits, rest.logits], dim=1), whole)


def test_a_copy_is_independent(fresh):
    twin = stirred(copy.deepcopy(fresh))
    packed = packed_rows([[[text(4, 1), image_piece(2, 2, 3)]]])
    before = answer(fresh, packed)
    changed = answer(twin, packed)
    assert not torch.equal(changed.hidden, before.hidden), "the copy has hooks of its own"
    assert torch.equal(answer(fresh, packed).hidden, before.hidden), "and leaves the original alone"
