"""Documents -> packed rows of tokens and patches.

Axis legend, used in every signature of the project:

    b rows of a batch    t tokens of a row    d width    v vocabulary    h, w, c height, width and channels
    n patches (of all pictures of a batch, in row order)    p numbers in a patch    m pictures of a batch (clean copies and noised blocks)

Layout of a document (BAGEL and SenseNova-U1 isolate noise this way). Its *clean stream* comes first: text and clean pictures, each
`<|image_start|>` size `<|image_patch|>`... `<|image_end|>`. Then come its *noised blocks*, one per target picture. Every row carries

    doc    which document of its row it belongs to; -1 is padding
    order  its index in the clean stream; all patches of a picture carry the index of the first, in the noised block too
    block  what sees itself in full: a text token is a block of its own, so is each clean picture and each noised block
    noised whether it belongs to a noised block

and these four decide who sees whom (mask.py). Targets that nothing follows need no clean copy.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORE = -100  # torch's cross_entropy skips this label


@dataclass(frozen=True)
class Control:
    """Ids of the three tokens around a picture; they start beyond the LLM's own vocabulary."""

    image_start: int
    image_patch: int
    image_end: int


@dataclass(frozen=True)
class Tokens:
    """A run of text tokens; see document.Text for the flags."""

    ids: tuple[int, ...]
    loss: bool = False
    template: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture to be read or drawn.

    pixels: (3, h, w) in [-1, 1]. size_ids: the tokens of its size text (`64x48`, width x height in pixels). grid: rows and columns of
    patches. clean: a clean copy stands in the clean stream (later tokens can see it). target: it has a noised block.
    """

    pixels: Float[Tensor, "3 h w"]
    size_ids: tuple[int, ...]
    grid: tuple[int, int]
    target: bool = False
    clean: bool = True


Piece = Tokens | Picture


def finish(pieces: list[Piece], keep_tail: bool) -> list[Piece]:
    """Decide on clean copies: a document whose last learned thing is a target picture ends at its noised block.

    keep_tail: keep the clean copy, the end of the image and what follows all the same, so that stopping is learned too.
    """
    last = max((i for i, piece in enumerate(pieces) if isinstance(piece, Picture)), default=None)
    if last is None or not pieces[last].target or keep_tail:
        return pieces
    if any(isinstance(piece, Tokens) and piece.loss and not piece.template for piece in pieces[last + 1 :]):
        return pieces
    return [*pieces[:last], replace(pieces[last], clean=False)]


def drop_text(pieces: list[Piece]) -> list[Piece]:
    """The document without its text, for guidance: template and pictures stay, no text is learned."""
    return [replace(p, loss=False) if isinstance(p, Tokens) else p for p in pieces if isinstance(p, Picture) or p.template]


def drop_all(pieces: list[Piece]) -> list[Piece]:
    """The document without its text and without every picture but the last target, for guidance: dropped pictures leave no tokens."""
    last = max((i for i, p in enumerate(pieces) if isinstance(p, Picture) and p.target), default=None)
    kept = [p for i, p in enumerate(pieces) if isinstance(p, Tokens) or i == last]
    return drop_text(kept)


@dataclass(frozen=True)
class Layout:
    """One document laid out, as numpy columns of equal length (its rows); the fields are those of Packed."""

    ids: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    block: np.ndarray
    noised: np.ndarray
    position: np.ndarray  # (3, rows)
    picture: np.ndarray
    pixels: tuple[Tensor, ...]
    source: tuple[int, ...]  # for each picture of the layout, which of `pixels`
    noised_picture: tuple[bool, ...]
    grid: tuple[tuple[int, int], ...]
    reference: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def picture_rows(
    control: Control, grid: tuple[int, int], noised: bool, order: int, position: int, block: int, picture: int = 0
) -> np.ndarray:
    """The patch rows of one picture, (9, rows) as Writer has them."""
    cell = np.arange(grid[0] * grid[1])
    rows = np.zeros((9, len(cell)), np.int64)
    rows[0], rows[1], rows[2], rows[3], rows[4] = control.image_patch, IGNORE, order, block, noised
    rows[5], rows[6], rows[7], rows[8] = position, position + cell // grid[1], position + cell % grid[1], picture
    return rows


class Writer:
    """Writes the rows of one document, all at once (`layout`) or as a sampler goes (`take`).

    A row is nine numbers: id, label, order, block, noised, time, row, column, picture. order, position and blocks are the counters of
    the clean stream; labels of its last row wait until the next token is known.
    """

    def __init__(self, control: Control, learn_text: bool = True):
        self.control, self.learn_text = control, learn_text
        self.columns: list[np.ndarray] = []
        self.order = self.position = self.blocks = 0
        self.pictures: list[tuple[int, bool, tuple[int, int], int]] = []  # source, noised, grid, reference

    def text(self, ids: tuple[int, ...], learned: bool = False) -> None:
        """Text tokens; where they are learned, the row before each gets it as its label."""
        steps = np.arange(len(ids))
        rows = np.zeros((9, len(ids)), np.int64)
        rows[0], rows[1], rows[2], rows[3] = ids, IGNORE, self.order + steps, self.blocks + steps
        rows[5:8], rows[8] = self.position + steps, -1
        if learned and self.learn_text:
            rows[1, :-1] = ids[1:]
            self._label_last(ids[0])
        self.columns.append(rows)
        self.order, self.position, self.blocks = self.order + len(ids), self.position + len(ids), self.blocks + len(ids)

    def _label_last(self, token: int) -> None:
        if self.columns and self.columns[-1][8, -1] < 0:
            self.columns[-1][1, -1] = token

    def open_picture(self, size_ids: tuple[int, ...], learned: bool = False) -> None:
        """`<|image_start|>` and the size text; learned, the last size token predicts `<|image_patch|>`."""
        self.text((self.control.image_start, *size_ids), learned)
        if learned and self.learn_text:
            self._label_last(self.control.image_patch)

    def clean_picture(self, source: int, grid: tuple[int, int]) -> None:
        """A clean picture and `<|image_end|>`; the clean stream counts all its patches in order, and one position."""
        self.patches(source, grid, False, self.order, self.position)
        self.order, self.position = self.order + grid[0] * grid[1], self.position + 1
        self.text((self.control.image_end,))

    def reference(self, grid: tuple[int, int]) -> int:
        """The last clean picture of this size so far, as an index of `pictures`; -1 where there is none."""
        return max((i for i, (_, noised, other, _) in enumerate(self.pictures) if not noised and other == grid), default=-1)

    def patches(self, source: int, grid: tuple[int, int], noised: bool, order: int, position: int, reference: int = -1) -> None:
        """The patch rows of a picture: one block, one order, axial positions."""
        self.columns.append(picture_rows(self.control, grid, noised, order, position, self.blocks, len(self.pictures)))
        self.blocks += 1
        self.pictures.append((source, noised, grid, reference))

    def take(self) -> np.ndarray:
        """The rows written since the last call, (9, rows)."""
        rows = np.concatenate(self.columns, axis=1) if self.columns else np.zeros((9, 0), np.int64)
        self.columns = []
        return rows


def layout(pieces: list[Piece], control: Control, learn_text: bool = True, noised_copies: int = 1) -> Layout:
    """Lay one document out: clean stream, then noised blocks.

    learn_text: False leaves all next-token labels out (documents whose text was dropped for guidance). noised_copies: blocks of each
    target, which get noise and time of their own: blocks do not see each other, so the prefix is paid for once.
    """
    writer = Writer(control, learn_text)
    pixels, noised_blocks = [], []
    for piece in pieces:
        if isinstance(piece, Tokens):
            if piece.ids:
                writer.text(piece.ids, piece.loss)
            continue
        writer.open_picture(piece.size_ids, piece.target)
        if piece.target:
            noised_blocks.append((len(pixels), piece.grid, True, writer.order, writer.position, writer.reference(piece.grid)))
        if piece.clean:
            writer.clean_picture(len(pixels), piece.grid)
        pixels.append(piece.pixels)
    for block in noised_blocks * noised_copies:
        writer.patches(*block)
    rows = writer.take()
    source, noised, grid, reference = zip(*writer.pictures, strict=True) if writer.pictures else ((), (), (), ())
    return Layout(
        ids=rows[0], labels=rows[1], order=rows[2], block=rows[3], noised=rows[4].astype(bool), position=rows[5:8],
        picture=rows[8], pixels=tuple(pixels), source=source, noised_picture=noised, grid=grid, reference=reference,
    )  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """A batch: rows of documents side by side. See the module's docstring for the axes and the four columns of the mask.

    ids, labels: token ids and next-token labels (IGNORE where nothing is learned). position: (3, b, t) time, row and column; equal on
    text. picture: which of the batch's m pictures a patch row belongs to, -1 on text. pixels: the images, each once; source: which of
    them a picture shows. grid: rows and columns of patches of each picture. reference: for a noised block, the last clean picture of
    its size that stood before it in its document (the one that is edited, if any is), else -1. patches, time: filled by
    `with_patches`; time is 0 for clean copies.
    """

    ids: Int[Tensor, "b t"]
    labels: Int[Tensor, "b t"]
    doc: Int[Tensor, "b t"]
    order: Int[Tensor, "b t"]
    block: Int[Tensor, "b t"]
    noised: Bool[Tensor, "b t"]
    position: Int[Tensor, "3 b t"]
    picture: Int[Tensor, "b t"]
    pixels: tuple[Float[Tensor, "3 _ _"], ...]
    source: Int[Tensor, " m"]
    noised_picture: Bool[Tensor, " m"]
    grid: Int[Tensor, "m 2"]
    reference: Int[Tensor, " m"]
    patches: Float[Tensor, "n p"] | None = None
    time: Float[Tensor, " m"] | None = None

    @cached_property
    def picture_of_patch(self) -> Int[Tensor, " n"]:
        """The picture of each patch row, in the order of `patches`."""
        return self.picture[self.picture >= 0]

    @cached_property
    def noised_patch(self) -> Bool[Tensor, " n"]:
        """Which of the patches belong to noised blocks."""
        return self.noised_picture[self.picture_of_patch]

    @cached_property
    def cell_of_patch(self) -> Int[Tensor, "n 2"]:
        """Row and column of each patch in its picture."""
        time, row, column = self.position[:, self.picture >= 0]
        return torch.stack([row - time, column - time], dim=-1)

    @cached_property
    def references(self) -> Float[Tensor, "k p"]:
        """The patch of the reference at the place of each noised patch; zeros where its picture has none. Patches of a picture lie together."""
        place = torch.arange(len(self.patches), device=self.patches.device)
        start = torch.zeros_like(self.reference).scatter_reduce(0, self.picture_of_patch, place, "amin", include_self=False)
        picture = self.picture_of_patch[self.noised_patch]
        reference = self.reference[picture]
        inside = self.noised_patch.nonzero()[:, 0] - start[picture]
        there = reference >= 0
        return self.patches[torch.where(there, start[reference] + inside, 0)] * there[:, None]

    @property
    def documents(self) -> int:
        """Documents in the batch."""
        return int((self.doc.amax(dim=1) + 1).sum())

    def with_patches(self, patches: Float[Tensor, "n p"], time: Float[Tensor, " m"]) -> "Packed":
        """The same batch with what stands in the patch rows."""
        return replace(self, patches=patches, time=time)

    def to(self, device: torch.device | str) -> "Packed":
        """Every tensor on the device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Packed":
        """Every tensor where a GPU fetches it while the processor goes on."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Packed":
        tensors = {f.name: move(value) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, pixels=_together(self.pixels, move), **tensors)


def _together(images: tuple[Tensor, ...], move: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """The images, moved as one: a batch may hold a thousand, and each journey costs as much as a kernel."""
    if not images:
        return ()
    sizes = [image.numel() for image in images]
    return tuple(part.view(image.shape) for part, image in zip(move(_whole(images, sizes)).split(sizes), images, strict=True))


def _whole(images: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
    """All numbers of the images one after the other: the tensor that they are parts of, as those from another process are, or a new one."""
    base = images[0]._base
    if base is not None and base.shape == (sum(sizes),):
        places = accumulate(sizes, initial=0)
        if all(i._base is base and i.is_contiguous() and i.storage_offset() == place for i, place in zip(images, places, strict=False)):
            return base
    return torch.cat([image.flatten() for image in images])


def pack(rows: list[list[Layout]], length: int | None = None, pad_id: int = 0) -> Packed:
    """Lay documents side by side in rows and rows in a batch.

    rows: the documents of each row. length: tokens per row (default: the longest row). Raises ValueError when a row does not fit.
    """
    longest = max(sum(map(len, row)) for row in rows)
    length = length or longest
    if longest > length:
        raise ValueError(f"a row of {longest} tokens does not fit a length of {length}: raise the length or shorten the documents")
    table = np.zeros((10, len(rows), length), np.int64)  # ids, labels, doc, order, block, noised, t, h, w, picture
    table[0], table[1], table[2], table[9] = pad_id, IGNORE, -1, -1
    table[4] = np.arange(length) + length  # padding: each row its own block, beyond those of documents, so that it sees itself alone
    pixels, source, noised, grid, reference = [], [], [], [], []
    for b, row in enumerate(rows):
        start = 0
        for index, doc in enumerate(row):
            here = slice(start, start + len(doc))
            columns = (doc.ids, doc.labels, index, doc.order, doc.block, doc.noised, *doc.position)
            for column, values in zip(table, columns, strict=False):
                column[b, here] = values
            table[9, b, here] = np.where(doc.picture >= 0, doc.picture + len(source), -1)
            reference.extend(r + len(source) if r >= 0 else -1 for r in doc.reference)
            source.extend(s + len(pixels) for s in doc.source)
            pixels.extend(doc.pixels)
            noised.extend(doc.noised_picture)
            grid.extend(doc.grid)
            start += len(doc)
    columns = torch.from_numpy(table)
    return Packed(
        ids=columns[0], labels=columns[1], doc=columns[2], order=columns[3], block=columns[4], noised=columns[5].bool(),
        position=columns[6:9], picture=columns[9], pixels=tuple(pixels), source=torch.tensor(source, dtype=torch.long),
        noised_picture=torch.tensor(noised, dtype=torch.bool), grid=torch.tensor(grid, dtype=torch.long).view(-1, 2),
        reference=torch.tensor(reference, dtype=torch.long),
    )  # fmt: skip
