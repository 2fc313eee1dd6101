"""The row table: what is known of each token and patch of a sequence, in columns that have names, and how it is padded.

    ids      the token; `<|image_patch|>` on patches
    labels   the next token where it is learned, IGNORE elsewhere
    doc      which document of its sequence a row belongs to; -1 is padding
    order    its index in the clean stream; all patches of an image carry that of the first, in the noised block too
    block    what sees itself in full: a text token is a block of its own, so is each clean image and each noised block
    noised   whether it belongs to a noised block
    position on three axes, time, row and column of the image; equal on text
    image_index  which image a patch belongs to; -1 on text

Documents are written as numpy tables, (10, rows) int64 with a number of `Column` for each; the network reads `Rows`,
the same as tensors. doc, order, block and noised decide who sees whom (mask.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

IGNORE = -100
"""The label of rows where no next token is learned; torch's cross_entropy skips it."""


class Column(IntEnum):
    """The columns of a table; position takes three of them."""

    ID = 0
    LABEL = 1
    DOC = 2
    ORDER = 3
    BLOCK = 4
    NOISED = 5
    TIME = 6
    ROW = 7
    COLUMN = 8
    IMAGE_INDEX = 9


POSITION = slice(Column.TIME, Column.COLUMN + 1)


def padding(sequences: int, length: int, start: int = 0, pad_id: int = 0) -> Int64[np.ndarray, "10 b t"]:
    """Make a table of padding for documents to be written into. start: place of its first row in the sequences.

    Padding belongs to no document, so that no document sees it, and each row of it is a block of its own, so that it
    sees itself: a softmax over nothing would be NaN. Blocks are compared within a document, and padding counts as one:
    its blocks are numbered by place, which keeps them apart however often rows are added behind it.
    """
    table = np.zeros((len(Column), sequences, length), np.int64)
    table[Column.ID], table[Column.LABEL], table[Column.DOC], table[Column.IMAGE_INDEX] = pad_id, IGNORE, -1, -1
    table[Column.BLOCK] = np.arange(start, start + length)
    return table


def columns(table: Int64[Tensor, "10 *b t"]) -> dict[str, Tensor]:
    """Give each field of Rows its part of a table."""
    return {
        "ids": table[Column.ID],
        "labels": table[Column.LABEL],
        "doc": table[Column.DOC],
        "order": table[Column.ORDER],
        "block": table[Column.BLOCK],
        "noised": table[Column.NOISED].bool(),
        "position": table[POSITION],
        "image_index": table[Column.IMAGE_INDEX],
    }


@dataclass(frozen=True)
class Rows:
    """The columns of sequences side by side, (b, t), or of one, (t,), as the network reads them."""

    ids: Int[Tensor, "*b t"]
    labels: Int[Tensor, "*b t"]
    doc: Int[Tensor, "*b t"]
    order: Int[Tensor, "*b t"]
    block: Int[Tensor, "*b t"]
    noised: Bool[Tensor, "*b t"]
    position: Int[Tensor, "3 *b t"]
    image_index: Int[Tensor, "*b t"]

    def __len__(self) -> int:
        """Count the rows of each sequence."""
        return self.ids.shape[-1]

    @staticmethod
    def of(table: Int64[Tensor, "10 *b t"]) -> "Rows":
        """Name the columns of a table."""
        return Rows(**columns(table))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Rows":
        """Put each column through the same function, which may touch the last two axes, (b, t)."""
        return Rows(*(change(getattr(self, field.name)) for field in fields(Rows)))

    @staticmethod
    def cat(parts: "list[Rows]", dim: int = -1) -> "Rows":
        """Lay rows side by side (dim -1) or batches on top of each other (dim -2)."""
        return Rows(*(torch.cat([getattr(part, field.name) for part in parts], dim=dim) for field in fields(Rows)))

    @cached_property
    def patch_rows(self) -> Int[Tensor, " n"]:
        """Where the patches stand among all rows, sequence after sequence."""
        return self.image_index.flatten().ge(0).nonzero()[:, 0]

    @cached_property
    def image_of_patch(self) -> Int[Tensor, " n"]:
        """The image of each patch."""
        return self.image_index.flatten()[self.patch_rows]

    @cached_property
    def noised_patch(self) -> Bool[Tensor, " n"]:
        """Which of the patches belong to noised blocks."""
        return self.noised.flatten()[self.patch_rows]

    @cached_property
    def cell_of_patch(self) -> Int[Tensor, "n 2"]:
        """Row and column of each patch in its image."""
        time, row, column = self.position.flatten(1)[:, self.patch_rows]
        return torch.stack([row - time, column - time], dim=-1)
