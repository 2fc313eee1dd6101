"""Documents -> packed rows of tokens and patches.

Axis legend, used in every signature of the project:

    b rows of a batch    t tokens of a row    d width    v vocabulary    h, w, c height, width and channels
    n patches (of all images of a batch, in row order)    p numbers in a patch
    m images of a batch (clean copies and noised blocks)

Layout of a document (BAGEL and SenseNova-U1 isolate noise this way). Its *clean stream* comes first: text and clean
images, each `<|image_start|>` size `<|image_patch|>`... `<|image_end|>`. Then come its *noised blocks*, one per
target image. Targets that nothing follows need no clean copy. What each row carries is said in rows.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from fusion.sequence.rows import IGNORE, POSITION, Column, Rows, columns, padding


@dataclass(frozen=True)
class Control:
    """Ids of the three tokens around an image; they start beyond the LLM's own vocabulary."""

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
class ImagePiece:
    """An image to be read or drawn.

    pixels: (3, h, w) in [-1, 1]. size_ids: the tokens of its size text (`64x48`, width x height in pixels). grid: rows
    and columns of patches. clean: a clean copy stands in the clean stream (later tokens can see it). target: it has a
    noised block.
    """

    pixels: Float[Tensor, "3 h w"]
    size_ids: tuple[int, ...]
    grid: tuple[int, int]
    target: bool = False
    clean: bool = True


Piece = Tokens | ImagePiece


def finish(pieces: list[Piece], keep_tail: bool) -> list[Piece]:
    """Decide on clean copies: a document whose last learned thing is a target image ends at its noised block.

    keep_tail: keep the clean copy, the end of the image and what follows all the same, so that stopping is learned too.
    """
    last = max((i for i, piece in enumerate(pieces) if isinstance(piece, ImagePiece)), default=None)
    if last is None or not pieces[last].target or keep_tail:
        return pieces
    if any(isinstance(piece, Tokens) and piece.loss and not piece.template for piece in pieces[last + 1 :]):
        return pieces
    return [*pieces[:last], replace(pieces[last], clean=False)]


def drop_text(pieces: list[Piece]) -> list[Piece]:
    """The document without its text, for guidance: template and images stay, no text is learned."""
    return [
        replace(p, loss=False) if isinstance(p, Tokens) else p
        for p in pieces
        if isinstance(p, ImagePiece) or p.template
    ]


def drop_all(pieces: list[Piece]) -> list[Piece]:
    """The document without its text and without every image but the last target, for guidance: dropped images leave
    no tokens."""
    last = max((i for i, p in enumerate(pieces) if isinstance(p, ImagePiece) and p.target), default=None)
    kept = [p for i, p in enumerate(pieces) if isinstance(p, Tokens) or i == last]
    return drop_text(kept)


@dataclass(frozen=True)
class Layout:
    """One document laid out: its table (rows.py) and, beside it, its images.

    pixels: the images, each once. Of each image in the table, clean copies and noised blocks in order: source, which of
    `pixels` it shows; noised_image; grid, its rows and columns of patches; reference, see Packed.
    """

    table: Int64[np.ndarray, "10 t"]
    pixels: tuple[Tensor, ...]
    source: tuple[int, ...]
    noised_image: tuple[bool, ...]
    grid: tuple[tuple[int, int], ...]
    reference: tuple[int, ...]

    def __len__(self) -> int:
        """Count the rows."""
        return self.table.shape[1]

    @cached_property
    def rows(self) -> Rows:
        """The columns of the table by name."""
        return Rows.of(torch.from_numpy(self.table))

    @property
    def learned(self) -> bool:
        """Whether anything is learned of it, a next token or a flow."""
        return bool(self.table[Column.NOISED].any() or (self.table[Column.LABEL] != IGNORE).any())


def _patch_table(
    control: Control, grid: tuple[int, int], noised: bool, order: int, position: int, block: int, image_index: int = 0
) -> Int64[np.ndarray, "10 t"]:
    """The patch rows of one image."""
    cell = np.arange(grid[0] * grid[1])
    table = np.zeros((len(Column), len(cell)), np.int64)
    table[Column.ID], table[Column.LABEL], table[Column.IMAGE_INDEX] = control.image_patch, IGNORE, image_index
    table[Column.ORDER], table[Column.BLOCK], table[Column.NOISED] = order, block, noised
    table[Column.TIME], table[Column.ROW], table[Column.COLUMN] = (
        position,
        position + cell // grid[1],
        position + cell % grid[1],
    )
    return table


class Writer:
    """Writes the table of one document, all at once (`layout`) or as a sampler goes (`take`).

    order, position and blocks are the counters of the clean stream; labels of its last row wait until the next token is
    known.
    """

    def __init__(self, control: Control, learn_text: bool = True):
        self.control, self.learn_text = control, learn_text
        self.tables: list[Int64[np.ndarray, "10 _"]] = []
        self.order = self.position = self.blocks = 0
        self.images: list[tuple[int, bool, tuple[int, int], int]] = []  # source, noised, grid, reference

    def text(self, ids: tuple[int, ...], learned: bool = False) -> None:
        """Text tokens; where they are learned, the row before each gets it as its label."""
        steps = np.arange(len(ids))
        table = np.zeros((len(Column), len(ids)), np.int64)
        table[Column.ID], table[Column.LABEL], table[Column.IMAGE_INDEX] = ids, IGNORE, -1
        table[Column.ORDER], table[Column.BLOCK], table[POSITION] = (
            self.order + steps,
            self.blocks + steps,
            self.position + steps,
        )
        if learned and self.learn_text:
            table[Column.LABEL, :-1] = ids[1:]
            self._label_last(ids[0])
        self.tables.append(table)
        self.order, self.position, self.blocks = self.order + len(ids), self.position + len(ids), self.blocks + len(ids)

    def _label_last(self, token: int) -> None:
        if self.tables and self.tables[-1][Column.IMAGE_INDEX, -1] < 0:
            self.tables[-1][Column.LABEL, -1] = token

    def open_image(self, size_ids: tuple[int, ...], learned: bool = False) -> None:
        """`<|image_start|>` and the size text; learned, the last size token predicts `<|image_patch|>`."""
        self.text((self.control.image_start, *size_ids), learned)
        if learned and self.learn_text:
            self._label_last(self.control.image_patch)

    def clean_image(self, source: int, grid: tuple[int, int]) -> None:
        """A clean image and `<|image_end|>`; the clean stream counts all its patches in order, and one position."""
        self.patches(source, grid, False, self.order, self.position)
        self.order, self.position = self.order + grid[0] * grid[1], self.position + 1
        self.text((self.control.image_end,))

    def reference(self, grid: tuple[int, int]) -> int:
        """The last clean image of this size so far, as an index of `images`; -1 where there is none."""
        return max(
            (i for i, (_, noised, other, _) in enumerate(self.images) if not noised and other == grid), default=-1
        )

    def patches(
        self, source: int, grid: tuple[int, int], noised: bool, order: int, position: int, reference: int = -1
    ) -> None:
        """The patch rows of an image: one block, one order, axial positions."""
        self.tables.append(_patch_table(self.control, grid, noised, order, position, self.blocks, len(self.images)))
        self.blocks += 1
        self.images.append((source, noised, grid, reference))

    def noised_block(self, grid: tuple[int, int]) -> Int64[np.ndarray, "10 t"]:
        """Make the table of an image to be drawn behind what is written, without writing it."""
        return _patch_table(self.control, grid, True, self.order, self.position, self.blocks)

    def take(self) -> Int64[np.ndarray, "10 t"]:
        """Take the table written since the last call."""
        table = np.concatenate([np.zeros((len(Column), 0), np.int64), *self.tables], axis=1)
        self.tables = []
        return table


def layout(pieces: list[Piece], control: Control, learn_text: bool = True, noised_copies: int = 1) -> Layout:
    """Lay one document out: clean stream, then noised blocks.

    learn_text: False leaves all next-token labels out (documents whose text was dropped for guidance). noised_copies:
    blocks of each target, which get noise and time of their own: blocks do not see each other, so the prefix is paid
    for once.
    """
    writer = Writer(control, learn_text)
    pixels, noised_blocks = [], []
    for piece in pieces:
        if isinstance(piece, Tokens):
            if piece.ids:
                writer.text(piece.ids, piece.loss)
            continue
        writer.open_image(piece.size_ids, piece.target)
        if piece.target:
            noised_blocks.append(
                (len(pixels), piece.grid, True, writer.order, writer.position, writer.reference(piece.grid))
            )
        if piece.clean:
            writer.clean_image(len(pixels), piece.grid)
        pixels.append(piece.pixels)
    for block in noised_blocks * noised_copies:
        writer.patches(*block)
    source, noised, grid, reference = zip(*writer.images, strict=True) if writer.images else ((), (), (), ())
    return Layout(writer.take(), tuple(pixels), source, noised, grid, reference)


@dataclass(frozen=True)
class Packed(Rows):
    """A batch: rows of documents side by side, (b, t), and their images.

    pixels: the images, each once; source: which of them an image shows. grid: rows and columns of patches of each
    image. reference: for a noised block, the last clean image of its size that stood before it in its document (the
    one that is edited, if any is), else -1. patches, time: filled by `with_patches`; time is 0 for clean copies.
    """

    pixels: tuple[Float[Tensor, "3 _ _"], ...]
    source: Int[Tensor, " m"]
    noised_image: Bool[Tensor, " m"]
    grid: Int[Tensor, "m 2"]
    reference: Int[Tensor, " m"]
    patches: Float[Tensor, "n p"] | None = None
    time: Float[Tensor, " m"] | None = None

    @cached_property
    def references(self) -> Float[Tensor, "k p"]:
        """The patch of the reference at the place of each noised patch; zeros where its image has none. Patches of a
        image lie together."""
        place = torch.arange(len(self.patches), device=self.patches.device)
        start = torch.zeros_like(self.reference).scatter_reduce(
            0, self.image_of_patch, place, "amin", include_self=False
        )
        image_index = self.image_of_patch[self.noised_patch]
        reference = self.reference[image_index]
        inside = self.noised_patch.nonzero()[:, 0] - start[image_index]
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
    return tuple(
        part.view(image.shape) for part, image in zip(move(_whole(images, sizes)).split(sizes), images, strict=True)
    )


def _whole(images: tuple[Tensor, ...], sizes: list[int]) -> Tensor:
    """All numbers of the images one after the other: the tensor that they are parts of, as those from another process
    are, or a new one."""
    base = images[0]._base
    if base is not None and base.shape == (sum(sizes),):
        places = accumulate(sizes, initial=0)
        if all(
            i._base is base and i.is_contiguous() and i.storage_offset() == place
            for i, place in zip(images, places, strict=False)
        ):
            return base
    return torch.cat([image.flatten() for image in images])


def pack(rows: list[list[Layout]], length: int | None = None, pad_id: int = 0) -> Packed:
    """Lay documents side by side in rows and rows in a batch.

    rows: the documents of each row. length: tokens per row (default: the longest row). Raises ValueError when a row
    does not fit.
    """
    longest = max(sum(map(len, row)) for row in rows)
    length = length or longest
    if longest > length:
        raise ValueError(
            f"a row of {longest} tokens does not fit a length of {length}: raise the length or shorten the documents"
        )
    table = padding(len(rows), length, pad_id=pad_id)
    pixels, source, noised, grid, reference = [], [], [], [], []
    for b, row in enumerate(rows):
        start = 0
        for index, doc in enumerate(row):
            here = table[:, b, start : start + len(doc)]
            here[:] = doc.table
            here[Column.DOC] = index
            here[Column.IMAGE_INDEX] += len(source) * (doc.table[Column.IMAGE_INDEX] >= 0)
            reference.extend(r + len(source) if r >= 0 else -1 for r in doc.reference)
            source.extend(s + len(pixels) for s in doc.source)
            pixels.extend(doc.pixels)
            noised.extend(doc.noised_image)
            grid.extend(doc.grid)
            start += len(doc)
    return Packed(
        **columns(torch.from_numpy(table)),
        pixels=tuple(pixels),
        source=torch.tensor(source, dtype=torch.long),
        noised_image=torch.tensor(noised, dtype=torch.bool),
        grid=torch.tensor(grid, dtype=torch.long).view(-1, 2),
        reference=torch.tensor(reference, dtype=torch.long),
    )
