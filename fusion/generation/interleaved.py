"""Interleaved generation: rows of a batch write text, open images, draw them, read what they drew, and write on.

A row is a small state machine: `text` until it opens an image or stops; `size` while the size text is spelled (only
valid sizes can be); `draw` until all rows that write have come to an image or an end, so that images are drawn as one
batch; then the finished image is committed to the cache as the clean image that reloading its PNG would give.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from fusion.codecs.codec import Codec
from fusion.generation.drawing import Canvas, draw
from fusion.generation.prefix import Prefix
from fusion.generation.sampling import Sampling, choose
from fusion.sequence.document import Document
from fusion.sequence.images import to_image, to_pixels
from fusion.sequence.packed import ImagePiece, Piece, Tokens, drop_all, drop_text
from fusion.sequence.patches import patchify, unpatchify
from fusion.sequence.processor import FusionProcessor
from fusion.unified.model import FusionModel


@dataclass(frozen=True)
class TextPiece:
    """Text that row `row` has just written."""

    row: int
    text: str


@dataclass(frozen=True)
class ImagePreview:
    """The image of row `row` as solver step `step` of `steps` sees it."""

    row: int
    image: PILImage.Image
    step: int
    steps: int


@dataclass(frozen=True)
class ImageDone:
    """An image that row `row` has finished."""

    row: int
    image: PILImage.Image


SIDE = 256
"""Pixels of an image's sides where neither prompt nor model says them."""
Event = TextPiece | ImagePreview | ImageDone


@dataclass
class _Row:
    """One document being written. pieces: what it holds; run: ids of the text at its end; size: ids of the size text
    being spelled."""

    pieces: list[Piece]
    generator: torch.Generator
    state: str = "text"
    run: list[int] = field(default_factory=list)
    said: str = ""
    size: tuple[int, ...] = ()
    grid: tuple[int, int] = (0, 0)
    tokens: int = 0
    images: int = 0


class Generator:
    """Generation over a model, its processor and its codec.

    force_image: every row begins with an image, whatever the model would do. only_image: a row ends with its first
    image. previews: yield an ImagePreview after every solver step.
    """

    def __init__(
        self,
        model: FusionModel,
        processor: FusionProcessor,
        codec: Codec,
        settings: Sampling,
        force_image: bool = False,
        only_image: bool = False,
        previews: bool = False,
    ):
        self.model, self.processor, self.codec, self.settings = model, processor, codec, settings
        self.force_image, self.only_image, self.previews = force_image, only_image, previews

    @torch.inference_mode()
    def events(self, documents: list[Document], seeds: list[int]) -> Iterator[Event]:
        """Continue each document with its own seed; rows do not influence each other."""
        limit = self.model.config.context
        pieces = [self.processor.pieces(document, limit=limit) for document in documents]
        rows = [_Row(held, torch.Generator().manual_seed(seed)) for held, seed in zip(pieces, seeds, strict=True)]
        prefix = Prefix(self.model, self.processor.control, len(rows))
        images = []
        for index, row in enumerate(rows):
            prefix.write(index, row.pieces)
            images += [self._patches(piece.pixels) for piece in row.pieces if isinstance(piece, ImagePiece)]
            if self.force_image:
                self._open_image(index, row, prefix)
        prefix.read(images)
        while any(row.state != "done" for row in rows):
            yield from self._write(rows, prefix)
            yield from self._draw(rows, prefix)

    # ---- text ----

    def _write(self, rows: list[_Row], prefix: Prefix) -> Iterator[TextPiece]:
        """Every row writes until it draws or ends."""
        while writing := [i for i, row in enumerate(rows) if row.state in ("text", "size")]:
            logits = self.model.all_logits(prefix.last[writing])
            for index, scores in zip(writing, logits, strict=True):
                yield from self._step(index, rows[index], scores, prefix)
            if any(writer.tables for writer in prefix.writers):
                prefix.read([])

    def _step(self, index: int, row: _Row, logits: Float[Tensor, " v"], prefix: Prefix) -> Iterator[TextPiece]:
        spelling = row.state == "size"
        token = self._id(
            choose(
                logits, self._allowed_size(row) if spelling else self._allowed_text(row), self.settings, row.generator
            )
        )
        if spelling:
            if token == self.processor.control.image_patch:
                self._begin_drawing(row, prefix.writers[index].order)
            else:
                row.size += (token,)
                prefix.writers[index].text((token,))
        elif token == self.processor.control.image_start:
            yield from self._say(index, row, last=True)
            self._open_image(index, row, prefix)
        elif token in self.processor.stop_ids:
            yield from self._say(index, row, last=True)
            row.state = "done"
        else:
            row.run.append(token)
            row.tokens += 1
            prefix.writers[index].text((token,))
            ends = row.tokens >= self.settings.max_new_tokens or self._room(prefix.writers[index].order) < 1
            yield from self._say(index, row, last=ends)
            row.state = "done" if ends else "text"

    def _say(self, index: int, row: _Row, last: bool) -> Iterator[TextPiece]:
        """The text that is new; a character whose bytes are not all there yet waits."""
        text = self.processor.decode(row.run)
        if not last:
            text = text.rstrip("\ufffd")
        if text[len(row.said) :]:
            yield TextPiece(index, text[len(row.said) :])
        row.said = text
        if last and row.run:
            row.pieces.append(Tokens(tuple(row.run)))
            row.run, row.said = [], ""

    def _open_image(self, index: int, row: _Row, prefix: Prefix) -> None:
        size = self.settings.image_size or self._size_of_model
        row.size = () if size is None else self.processor.size_ids(*size)
        prefix.writers[index].open_image(row.size)
        row.state = "size"
        if size is not None:
            self._begin_drawing(row, prefix.writers[index].order)

    @cached_property
    def _size_of_model(self) -> tuple[int, int] | None:
        """The size of images of a model whose frozen LLM cannot learn to say one; None where it can."""
        config, processor = self.model.config, self.processor
        if config.see != "none":
            return None
        side = min(SIDE, processor.max_side) // processor.stride * processor.stride
        width, height = config.image_size or (side, side)
        return width, height

    def _begin_drawing(self, row: _Row, order: int) -> None:
        """The size is known: wait for the other rows, or end where the image would not fit in the context."""
        width, height = self.processor.sizes.parse(row.size)
        row.grid = (height // self.processor.stride, width // self.processor.stride)
        row.state = "draw" if self._room(order) > row.grid[0] * row.grid[1] else "done"

    def _room(self, order: int) -> float:
        return float("inf") if self.model.config.context is None else self.model.config.context - order

    def _id(self, column: int) -> int:
        return column if column < self.model.llm_vocab else column - self.model.llm_vocab + self.model.config.vocab_base

    @cached_property
    def _text_columns(self) -> Bool[Tensor, " v"]:
        """Columns that text may take: the tokenizer's tokens but its special ones, the stops, and `<|image_start|>` as
        the last choice."""
        allowed = torch.zeros(
            self.model.llm_vocab + self.model.config.control_tokens, dtype=torch.bool, device=self.model.device
        )
        allowed[: min(len(self.processor.tokenizer), self.model.llm_vocab)] = True
        special = torch.tensor(sorted(self.processor.text.special), device=self.model.device)
        allowed[self.model.column(special)] = False
        allowed[self.model.column(torch.tensor(self.processor.stop_ids, device=self.model.device))] = True
        return allowed

    def _allowed_text(self, row: _Row) -> Bool[Tensor, " v"]:
        allowed = self._text_columns.clone()
        start = self.model.column(torch.tensor(self.processor.control.image_start))
        allowed[start] = row.images < self.settings.max_images
        return allowed

    def _allowed_size(self, row: _Row) -> Bool[Tensor, " v"]:
        following = self.processor.sizes.next_tokens(row.size)
        ids = [*following.tokens, *([self.processor.control.image_patch] if following.complete else [])]
        allowed = torch.zeros_like(self._text_columns)
        allowed[self.model.column(torch.tensor(ids, device=allowed.device))] = True
        return allowed

    # ---- images ----

    def _draw(self, rows: list[_Row], prefix: Prefix) -> Iterator[Event]:
        """Draw the images of all rows that wait for one, and let the rows read them."""
        waiting = [i for i, row in enumerate(rows) if row.state == "draw"]
        if not waiting:
            return
        canvases = self._canvases(waiting, rows, prefix)
        for drawn in draw(self.model, canvases, self.settings):
            images = None
            if drawn.step == drawn.steps or self.previews:
                images = [self._image(x_hat, rows[i].grid) for i, x_hat in zip(waiting, drawn.x_hat, strict=True)]
            if images and drawn.step < drawn.steps:
                yield from (
                    ImagePreview(i, image, drawn.step, drawn.steps) for i, image in zip(waiting, images, strict=True)
                )
        patches = []
        for index, image in zip(waiting, images, strict=True):
            yield ImageDone(index, image)
            patches += self._commit(rows[index], prefix, index, image)
        if patches:
            prefix.read(patches)

    def _commit(self, row: _Row, prefix: Prefix, index: int, image: PILImage.Image) -> list[Tensor]:
        """The finished image becomes a clean image of the document, as its PNG would be read."""
        row.images += 1
        row.state = "done" if self.only_image else "text"
        if self.only_image:
            return []
        pixels = to_pixels(image)
        row.pieces.append(ImagePiece(pixels, row.size, row.grid))
        prefix.writers[index].clean_image(0, row.grid)
        return [self._patches(pixels)]

    def _canvases(self, waiting: list[int], rows: list[_Row], prefix: Prefix) -> list[Canvas]:
        """Where to draw: behind each document itself and, for guidance, behind what is left of it without text (and
        images)."""
        prefixes = {"full": {index: (prefix, index) for index in waiting}}
        for name in list(self.settings.flow_guidance.weights)[1:]:
            branch = self._branch(name, [rows[i] for i in waiting])
            prefixes[name] = {index: (branch, place) for place, index in enumerate(waiting)}
        return [
            Canvas({name: where[index] for name, where in prefixes.items()}, rows[index].grid, self._noise(rows[index]))
            for index in waiting
        ]

    def _noise(self, row: _Row) -> Float[Tensor, "n p"]:
        """Drawn as an image and then cut, so that a seed is the same noise for models of all patch sizes, and for a
        TextToImage."""
        side = self.model.config.patch_size
        shape = self.codec.channels, *(count * side for count in row.grid)
        return patchify(torch.randn(shape, generator=row.generator), side)

    def _branch(self, name: str, rows: list[_Row]) -> Prefix:
        """The documents as a guidance branch reads them, up to the size of the image to draw."""
        prefix = Prefix(self.model, self.processor.control, len(rows))
        images = []
        for index, row in enumerate(rows):
            pieces = self._negative(row.pieces) if self.settings.negative_prompt else drop_text(row.pieces)
            if name == "none":
                pieces = drop_all(row.pieces)
            prefix.write(index, pieces)
            prefix.writers[index].open_image(row.size)
            images += [self._patches(piece.pixels) for piece in pieces if isinstance(piece, ImagePiece)]
        prefix.read(images)
        return prefix

    def _negative(self, pieces: list[Piece]) -> list[Piece]:
        """The document with the negative prompt where its first own text stood, and no other text."""
        ids = self.processor.text.plain(self.settings.negative_prompt)
        first = next((i for i, piece in enumerate(pieces) if isinstance(piece, Tokens) and not piece.template), 0)
        return [*drop_text(pieces[:first]), Tokens(ids), *drop_text(pieces[first:])]

    def _patches(self, pixels: Float[Tensor, "3 h w"]) -> Float[Tensor, "n p"]:
        return patchify(self.codec.encode(pixels[None].to(self.model.device))[0], self.model.config.patch_size).float()

    def _image(self, x_hat: Float[Tensor, "n p"], grid: tuple[int, int]) -> PILImage.Image:
        latent = unpatchify(x_hat, grid, self.model.config.patch_size, self.model.config.channels)
        return to_image(self.codec.decode(latent[None])[0])
