"""The row table: columns have one layout, and padding one rule."""

import random

import numpy as np
import torch

from fusion.generation.prefix import arranged
from fusion.sequence.mask import visible
from fusion.sequence.packed import layout, pack
from fusion.sequence.rows import IGNORE, Column, Rows, padding
from tests.support.documents import CONTROL, random_layout, random_pieces


def test_columns_have_the_names_that_rows_have():
    table = torch.arange(10)[:, None, None].expand(10, 2, 3)
    rows = Rows.of(table)
    named = {"ids": 0, "labels": 1, "doc": 2, "order": 3, "block": 4, "image_index": 9}
    assert all(torch.equal(getattr(rows, name), table[number]) for name, number in named.items())
    assert rows.noised.all() and rows.position[:, 0, 0].tolist() == [Column.TIME, Column.ROW, Column.COLUMN]
    assert len(rows) == 3


def test_padding_is_of_no_document_and_learns_nothing():
    rows = Rows.of(torch.from_numpy(padding(2, 5, start=7, pad_id=3)))
    for column, value in ((rows.ids, 3), (rows.labels, IGNORE), (rows.doc, -1), (rows.image_index, -1)):
        assert (column == value).all()
    assert not rows.noised.any() and not rows.position.any() and not rows.order.any()


def test_padding_of_several_reads_sees_itself_alone():
    """Behind padding come more rows, and more padding, as when documents of a batch grow at different speeds."""
    rng = random.Random(0)
    reads = [[random_layout(rng).table, np.zeros((len(Column), 0), np.int64)] for _ in range(3)]
    parts: list[Rows] = []
    for tables in reads:
        parts.append(arranged(tables, sum(map(len, parts)), torch.device("cpu")))
    rows = Rows.cat(parts)
    seen = visible(rows, rows)
    assert torch.equal(seen[1], torch.eye(len(rows)).bool()), "the second document is padding throughout"
    assert seen[0].any(dim=-1).all()


def test_a_packed_batch_and_a_prefix_lay_a_document_out_alike():
    laid = [layout(random_pieces(random.Random(seed)), CONTROL) for seed in (1, 2)]
    packed, read = pack([[one] for one in laid]), arranged([one.table for one in laid], 0, torch.device("cpu"))
    for name in ("ids", "labels", "doc", "order", "block", "noised", "position"):
        assert torch.equal(getattr(packed, name), getattr(read, name)), name
    assert torch.equal(packed.image_index >= 0, read.image_index == 0)
    assert torch.equal(packed.cell_of_patch, read.cell_of_patch)
