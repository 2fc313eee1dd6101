"""Layout and packing: rows, positions, labels, copies, guidance drops."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fusion.sequence.packed import IGNORE, ImagePiece, Packed, Tokens, Writer, drop_all, drop_text, finish, layout, pack
from fusion.sequence.rows import Column
from tests.support.documents import CONTROL, image_piece, random_layout, random_pieces, rows_of

SEEDS = range(60)
TEMPLATE = Tokens((1, 2), template=True)
QUESTION = Tokens((3, 4, 5))
ANSWER = Tokens((6, 7), loss=True)
STOP = Tokens((8,), loss=True, template=True)


def shown(target: bool, rows: int = 1, columns: int = 2, size: tuple[int, ...] = (20, 21)) -> ImagePiece:
    return ImagePiece(torch.zeros(3, 2 * rows, 2 * columns), size, (rows, columns), target=target)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_positions_and_copies_are_those_of_the_design(seed):
    pieces = random_pieces(random.Random(seed))
    laid, rows = layout(pieces, CONTROL), rows_of(pieces)
    assert laid.rows.ids.tolist() == [row.token for row in rows]
    assert laid.rows.order.tolist() == [row.first for row in rows]
    assert laid.rows.noised.tolist() == [row.noised for row in rows]
    assert laid.rows.position.T.tolist() == [list(row.position) for row in rows]
    assert [number >= 0 for number in laid.rows.image_index] == [row.image_index is not None for row in rows]


@pytest.mark.parametrize("seed", SEEDS)
def test_each_learned_token_is_the_label_of_the_text_row_before_it(seed):
    pieces = random_pieces(random.Random(seed))
    rows = rows_of(pieces)
    clean = [row for row in rows if not row.noised]
    labels = [IGNORE] * len(rows)
    for before, row in pairwise(clean):
        if row.learned and before.image_index is None:
            labels[before.at] = row.token
    for row in rows:
        if row.noised:
            labels[row.first - 1] = CONTROL.image_patch  # the last size token opens the image
    assert layout(pieces, CONTROL).rows.labels.tolist() == labels


def test_labels_of_a_drawn_image_word_by_word():
    laid = layout([TEMPLATE, QUESTION, ANSWER, shown(target=True), STOP], CONTROL)
    #                1, 2,            3, 4, 5,          6, 7
    expected = [IGNORE] * 4 + [6, 7, CONTROL.image_start, 20, 21, CONTROL.image_patch]
    expected += [IGNORE, IGNORE] + [8] + [IGNORE] + [IGNORE, IGNORE]  # clean copy, image end, stop, noised block
    assert laid.rows.labels.tolist() == expected


def test_a_context_image_is_never_learned():
    laid = layout([TEMPLATE, shown(target=False), ANSWER], CONTROL)
    assert laid.rows.labels.tolist() == [IGNORE] * 2 + [IGNORE] * 3 + [IGNORE] * 2 + [6, 7, IGNORE]
    assert not laid.rows.noised.any() and laid.noised_image == (False,)


def test_nothing_predicts_the_first_token_and_no_label_is_the_end_of_an_image():
    laid = layout([shown(target=True), ANSWER, shown(target=True)], CONTROL)
    assert CONTROL.image_end in laid.rows.ids and CONTROL.image_end not in laid.rows.labels
    assert (laid.rows.labels == CONTROL.image_start).sum() == 1  # the document begins with the other


@pytest.mark.parametrize("noised", [False, True])
def test_a_patch_row_never_has_a_label_whatever_is_written_behind_it(noised):
    writer = Writer(CONTROL)
    writer.open_image((20, 21), learned=True)
    writer.patches(0, (2, 2), noised, writer.order, writer.position)
    writer.text(QUESTION.ids, learned=True)
    ids, labels, *_, images = writer.take()
    assert (labels[images >= 0] == IGNORE).all()
    assert labels[ids == 21].tolist() == [CONTROL.image_patch] and labels[-3:].tolist() == [4, 5, IGNORE]


def test_learn_text_false_leaves_no_label():
    assert (layout([QUESTION, ANSWER, shown(target=True)], CONTROL, learn_text=False).rows.labels == IGNORE).all()


def test_a_noised_block_shares_positions_with_its_clean_copy():
    laid = layout([QUESTION, shown(target=True, rows=2, columns=3), ANSWER], CONTROL)
    clean, noised = (laid.rows.position[:, laid.rows.image_index == number] for number in (0, 1))
    assert torch.equal(clean, noised)
    p = 3 + 3  # question, image start, two size tokens
    assert clean.T.tolist() == [[p, p + row, p + column] for row in range(2) for column in range(3)]
    end = int((laid.rows.ids == CONTROL.image_end).nonzero()[0])
    assert laid.rows.position[:, end].tolist() == [p + 1] * 3


def test_every_row_of_a_block_and_no_other_row_has_its_number():
    laid = layout([QUESTION, shown(True), ANSWER, shown(False), shown(True)], CONTROL)
    for number in set(laid.rows.block.tolist()):
        of_block = laid.rows.image_index[laid.rows.block == number]
        assert len(of_block) == 1 or ((of_block >= 0).all() and len(set(of_block.tolist())) == 1)
    assert len({int(laid.rows.block[laid.rows.image_index == number][0]) for number in range(5)}) == 5


def test_an_empty_run_of_text_leaves_no_rows():
    assert layout([QUESTION, Tokens(()), ANSWER], CONTROL).rows.ids.tolist() == [3, 4, 5, 6, 7]


# Copies of a last image


def test_a_document_ends_at_the_noised_block_of_its_last_target():
    finished = finish([QUESTION, shown(True), ANSWER, shown(True), STOP, TEMPLATE], keep_tail=False)
    assert finished[:3] == [QUESTION, finished[1], ANSWER] and len(finished) == 4
    assert finished[1].clean and finished[3].target and not finished[3].clean
    laid = layout(finished, CONTROL)
    assert (laid.rows.ids == CONTROL.image_end).sum() == 1 and laid.noised_image == (False, True, True)


@pytest.mark.parametrize(
    "pieces",
    [
        [QUESTION, shown(True), ANSWER, STOP],  # text is learned after the image
        [QUESTION, shown(True), shown(False)],  # the last image is context
        [QUESTION, ANSWER, STOP],
    ],
)
def test_finish_keeps_what_something_learned_depends_on(pieces):
    assert finish(pieces, keep_tail=False) == pieces


def test_finish_keeps_the_tail_when_told_to():
    pieces = [QUESTION, shown(True), STOP]
    assert finish(pieces, keep_tail=True) == pieces
    assert layout(pieces, CONTROL).rows.labels.tolist().count(8) == 1


# Guidance drops


def test_drop_text_keeps_template_and_images_and_learns_no_text():
    context, drawn = shown(False), shown(True)
    assert drop_text([TEMPLATE, QUESTION, context, ANSWER, drawn, STOP]) == [
        TEMPLATE,
        context,
        drawn,
        replace(STOP, loss=False),
    ]


def test_drop_all_keeps_template_and_the_last_target():
    first, last = shown(True), shown(True, columns=3)
    kept = drop_all([TEMPLATE, QUESTION, shown(False), ANSWER, first, STOP, TEMPLATE, last, STOP])
    silent = replace(STOP, loss=False)
    assert kept == [TEMPLATE, silent, TEMPLATE, last, silent]
    laid = layout(kept, CONTROL)
    assert (laid.rows.ids == CONTROL.image_start).sum() == 1, "dropped images leave no tokens"
    assert laid.rows.position[0, 2 + 1 + 2] == 5, "positions are counted anew"


# Packing


@pytest.mark.parametrize("seed", range(8))
def test_packing_lays_documents_side_by_side(seed):
    rng = random.Random(seed)
    rows = [[random_layout(rng) for _ in range(rng.randint(1, 4))] for _ in range(3)]
    packed = pack(rows, length=max(sum(map(len, row)) for row in rows) + 5, pad_id=77)
    assert packed.documents == sum(map(len, rows))
    for b, row in enumerate(rows):
        start = 0
        for index, doc in enumerate(row):
            here = slice(start, start + len(doc))
            assert packed.ids[b, here].tolist() == doc.rows.ids.tolist()
            assert packed.labels[b, here].tolist() == doc.rows.labels.tolist()
            assert packed.position[:, b, here].tolist() == doc.rows.position.tolist()
            assert set(packed.doc[b, here].tolist()) == {index}
            start += len(doc)
        assert (
            (packed.ids[b, start:] == 77).all()
            and (packed.labels[b, start:] == IGNORE).all()
            and (packed.doc[b, start:] == -1).all()
        )


@pytest.mark.parametrize("seed", range(8))
def test_patch_rows_name_their_image_and_images_their_pixels(seed):
    rng = random.Random(seed)
    documents = [random_layout(rng) for _ in range(6)]
    packed = pack([documents[:2], documents[2:]])
    assert len(packed.source) == len(packed.grid) == len(packed.noised_image) == sum(len(doc.grid) for doc in documents)
    shown_pixels = [doc.pixels[source] for doc in documents for source in doc.source]
    counts = torch.bincount(packed.image_of_patch, minlength=len(packed.grid))
    assert counts.tolist() == packed.grid.prod(dim=1).tolist()
    for number, pixels in enumerate(shown_pixels):
        assert packed.pixels[packed.source[number]] is pixels
        height, width = pixels.shape[1:]
        assert packed.grid[number].tolist() == [height // 2, width // 2]
        cells = packed.cell_of_patch[packed.image_of_patch == number].tolist()
        assert cells == [[r, c] for r in range(height // 2) for c in range(width // 2)]
    assert packed.image_of_patch.tolist() == sorted(packed.image_of_patch.tolist()), "patches come in image order"
    assert torch.equal(packed.noised_patch, packed.noised[packed.image_index >= 0])


@pytest.mark.parametrize("seed", range(8))
def test_a_noised_block_refers_to_the_last_clean_image_of_its_size_before_it(seed):
    rng = random.Random(seed)
    documents = [random_pieces(rng) for _ in range(6)]
    laid = [layout(pieces, CONTROL, noised_copies=2) for pieces in documents]
    packed = pack([laid[:2], laid[2:]])
    packed = packed.with_patches(torch.randn(len(packed.image_of_patch), 5), torch.zeros(len(packed.grid)))
    expected, first, references = [], 0, packed.references.split(packed.grid[packed.noised_image].prod(-1).tolist())
    for pieces, one in zip(documents, laid, strict=True):
        images = [piece for piece in pieces if isinstance(piece, ImagePiece)]
        clean = {one.source[i]: first + i for i in range(len(one.source)) if not one.noised_image[i]}
        for i, number in enumerate(one.source):
            before = [clean[k] for k in range(number) if k in clean and images[k].grid == images[number].grid]
            expected.append(before[-1] if one.noised_image[i] and before else -1)
        first += len(one.source)
    assert packed.reference.tolist() == expected
    for image_number, rows in zip(packed.noised_image.nonzero()[:, 0].tolist(), references, strict=True):
        reference = expected[image_number]
        there = packed.patches[packed.image_of_patch == reference] if reference >= 0 else torch.zeros_like(rows)
        assert torch.equal(rows, there)


def test_an_edit_refers_to_the_image_that_is_edited_and_a_first_image_to_none():
    edited = layout(
        [shown(False), QUESTION, shown(True), STOP, QUESTION, shown(True, 2, 2), STOP, QUESTION, shown(True)], CONTROL
    )
    assert edited.noised_image == (False, False, False, False, True, True, True)
    assert edited.reference == (-1, -1, -1, -1, 0, -1, 1)


def test_an_image_with_two_copies_is_held_once():
    packed = pack([[layout([QUESTION, shown(True), ANSWER], CONTROL)]])
    assert (
        len(packed.pixels) == 1 and packed.source.tolist() == [0, 0] and packed.noised_image.tolist() == [False, True]
    )


def test_a_row_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^a row of 10 tokens does not fit a length of 9: .+$"):
        pack([[layout([QUESTION, ANSWER], CONTROL)] * 2], length=9)


def test_to_moves_everything_and_with_patches_fills_the_patch_rows():
    packed = pack([[layout([QUESTION, image_piece(random.Random(0), target=True)], CONTROL)]])
    filled = packed.with_patches(torch.ones(len(packed.image_of_patch), 12), torch.rand(len(packed.grid)))
    moved = filled.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)] + list(moved.pixels)
    assert all(tensor.device.type == "meta" for tensor in tensors) and isinstance(moved, Packed)
    assert torch.equal(filled.ids, packed.ids) and packed.patches is None


@pytest.mark.parametrize("seed", range(20))
def test_written_step_by_step_as_a_sampler_does_equals_laid_out_at_once(seed):
    pieces = [p for p in random_pieces(random.Random(seed)) if not (isinstance(p, ImagePiece) and p.target)] or [
        QUESTION
    ]
    writer, taken, source = Writer(CONTROL), [], 0
    for piece in pieces:
        if isinstance(piece, Tokens):
            for token in piece.ids:
                writer.text((token,))
                taken.append(writer.take())
            continue
        writer.open_image(piece.size_ids)
        taken.append(writer.take())
        writer.clean_image(source, piece.grid)
        taken.append(writer.take())
        source += 1
    stepwise, laid = np.concatenate(taken, axis=1), layout(pieces, CONTROL).table
    assert (stepwise[Column.LABEL] == IGNORE).all(), "a sampler learns nothing"
    assert np.array_equal(np.delete(stepwise, Column.LABEL, axis=0), np.delete(laid, Column.LABEL, axis=0))
    assert writer.take().shape == (len(Column), 0)
