"""Random documents, and the laws of their layout by row, written independently of fusion.sequence.packed."""

import random
from dataclasses import dataclass

import torch

from fusion.sequence.packed import Control, ImagePiece, Layout, Piece, Tokens, finish, layout

CONTROL = Control(image_start=900, image_patch=901, image_end=902)
STRIDE = 2


def image_piece(rng: random.Random, target: bool | None = None) -> ImagePiece:
    """An image of one to three rows and columns, its size text of two or three tokens."""
    rows, columns = rng.randint(1, 3), rng.randint(1, 3)
    pixels = torch.full((3, rows * STRIDE, columns * STRIDE), rng.uniform(-1, 1))
    size = tuple(rng.randrange(800, 810) for _ in range(rng.randint(2, 3)))
    return ImagePiece(pixels, size, (rows, columns), target=rng.random() < 0.5 if target is None else target)


def tokens(rng: random.Random) -> Tokens:
    """One to four tokens: template or text, learned or not."""
    return Tokens(
        tuple(rng.randrange(800) for _ in range(rng.randint(1, 4))),
        loss=rng.random() < 0.5,
        template=rng.random() < 0.3,
    )


def random_pieces(rng: random.Random, length: int | None = None) -> list[Piece]:
    """A document of text and images in any order; a last target may have lost its clean copy."""
    pieces = [image_piece(rng) if rng.random() < 0.4 else tokens(rng) for _ in range(length or rng.randint(1, 7))]
    return finish(pieces, keep_tail=rng.random() < 0.5)


def random_layout(rng: random.Random) -> Layout:
    """A random document, laid out."""
    return layout(random_pieces(rng), CONTROL)


@dataclass(frozen=True)
class Row:
    """One row as the design describes it. at: its own index in the clean stream (for noised rows: their image's
    first)."""

    token: int
    at: int
    first: int  # at of its image's first patch; its own on text
    position: tuple[int, int, int]
    image_index: int | None = None  # which piece of the document, on patches
    noised: bool = False
    learned: bool = False


def rows_of(pieces: list[Piece]) -> list[Row]:
    """The rows of a document: its clean stream, then its noised blocks."""
    clean: list[Row] = []
    noised: list[Row] = []
    position = 0

    def text(token: int, learned: bool) -> None:
        nonlocal position
        clean.append(Row(token, len(clean), len(clean), (position,) * 3, learned=learned))
        position += 1

    def patches(piece: ImagePiece, number: int, into: list[Row], is_noised: bool) -> None:
        first = len(clean)
        for row in range(piece.grid[0]):
            for column in range(piece.grid[1]):
                at = first if is_noised else len(clean)
                where = (position, position + row, position + column)
                into.append(Row(CONTROL.image_patch, at, first, where, number, is_noised))

    for number, piece in enumerate(pieces):
        if isinstance(piece, Tokens):
            for token in piece.ids:
                text(token, piece.loss)
            continue
        for token in (CONTROL.image_start, *piece.size_ids):
            text(token, piece.target)
        if piece.target:
            patches(piece, number, noised, True)
        if piece.clean:
            patches(piece, number, clean, False)
            position += 1
            text(CONTROL.image_end, False)
    return clean + noised


def sees(query: Row, key: Row, window: int | None = None) -> bool:
    """Whether the query sees the key, both rows of one document."""
    if query.image_index is not None and (query.image_index, query.noised) == (key.image_index, key.noised):
        return True
    if key.noised:
        return False
    if query is key:
        return True
    before = key.at < query.first
    return before and (window is None or query.first - key.first < window)
