"""What a batch of documents has read so far: a cache, the columns of every cached row, and a writer per document.

Documents of a batch grow at different speeds. Rows that have nothing to read are padded, and the mask, being data,
knows: where a row lies in the cache means nothing.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.nn.kv_cache import PrefixCache
from fusion.sequence.packed import Control, ImagePiece, Piece, Tokens, Writer
from fusion.sequence.rows import Rows, padding
from fusion.unified.model import FusionModel
from fusion.unified.step import Images


def arranged(tables: list[Int64[np.ndarray, "10 _"]], start: int, device: torch.device) -> Rows:
    """Lay the tables of several documents out as a batch, padded at the end. start: rows that stand before them.

    All images are told apart from text only, `image_index` 0, for those of one call share one time.
    """
    table = padding(len(tables), max(part.shape[1] for part in tables), start)
    for row, part in enumerate(tables):
        table[:, row, : part.shape[1]] = part
    rows = Rows.of(torch.from_numpy(table).to(device))
    return replace(rows, image_index=rows.image_index.clamp(max=0))


class Prefix:
    """Documents being read by a model, one per row of the batch. `last` is the hidden state of the last row of each,
    (b, d)."""

    def __init__(self, model: FusionModel, control: Control, documents: int):
        self.model = model
        self.writers = [Writer(control) for _ in range(documents)]
        self.cache = PrefixCache()
        self.rows: Rows | None = None
        self.last: Float[Tensor, "b d"] | None = None
        self.images: list[list[Float[Tensor, "_ p"]]] = [
            [] for _ in range(documents)
        ]  # the clean images of each, as writers count them
        self.encoded = 0  # rows that went through the decoder, padding not counted

    def write(self, row: int, pieces: list[Piece]) -> None:
        """Put pieces behind a document, images as clean ones; `read` then needs their patches."""
        writer = self.writers[row]
        for piece in pieces:
            if isinstance(piece, ImagePiece):
                writer.open_image(piece.size_ids)
                writer.clean_image(0, piece.grid)
            elif isinstance(piece, Tokens) and piece.ids:
                writer.text(piece.ids)

    def read(self, patches: list[Float[Tensor, "_ p"]]) -> None:
        """Run everything written since the last call through the decoder. patches: of the clean images in it, in row
        order."""
        new = [writer.take() for writer in self.writers]
        waiting = iter(patches)
        for held, writer in zip(self.images, self.writers, strict=True):
            held += [next(waiting) for _ in writer.images[len(held) :]]
        seen = 0 if self.rows is None else len(self.rows)
        batch, lengths = arranged(new, seen, self.model.device), [part.shape[1] for part in new]
        self.encoded += sum(lengths)
        self.rows = batch if self.rows is None else Rows.cat([self.rows, batch])
        images = Images(self._together(patches), torch.zeros(1, device=self.model.device))
        hidden = self.model.step(batch, self.model.backbone.mask(batch, self.rows), images, self.cache).hidden
        ends = torch.tensor(lengths, device=hidden.device)
        last = hidden[torch.arange(len(ends), device=hidden.device), (ends - 1).clamp(min=0)]
        self.last = last if self.last is None else torch.where((ends > 0)[:, None], last, self.last)

    def _together(self, patches: list[Float[Tensor, "_ p"]]) -> Float[Tensor, "n p"]:
        """Lay the patches of images one after the other, where the model is."""
        width, device = self.model.config.patch_width, self.model.device
        return torch.cat(patches).to(device) if patches else torch.zeros(0, width, device=device)

    def reference(self, row: int, grid: tuple[int, int]) -> Float[Tensor, "n p"] | None:
        """The last clean image of this size in a document: what an image to be drawn there may be an edit of."""
        index = self.writers[row].reference(grid)
        return self.images[row][index] if index >= 0 else None
