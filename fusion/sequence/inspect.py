"""What the model reads, as an image: the packed sequence token by token, and its attention mask.

Above stands the sequence in reading order: text tokens as chips, images as thumbnails in the grid of their patches, a
bar under whatever is learned. Below stands the mask: a row sees the columns that are coloured, each in the colour of
what is seen.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from fusion.sequence.images import to_image
from fusion.sequence.mask import visible
from fusion.sequence.packed import IGNORE, Packed

Colour = tuple[int, int, int]

PAPER, INK, QUIET, HAIR, WHITE = (252, 252, 250), (28, 29, 33), (116, 118, 127), (226, 225, 220), (255, 255, 255)
# What a row is: the colour of its cells in the mask, and of its chip.
KINDS: dict[str, tuple[Colour, Colour]] = {
    "text": ((122, 132, 152), (236, 238, 242)),
    "control token": ((180, 186, 197), (250, 250, 249)),
    "clean image": ((58, 118, 220), (214, 227, 250)),
    "noised block": ((222, 122, 44), (250, 226, 204)),
    "padding": ((216, 215, 210), (245, 244, 241)),
}
LEARNS_TEXT, LEARNS_IMAGE = (42, 157, 111), (222, 122, 44)

ZOOM = 2  # drawn at twice the size, for sharp letters
MARGIN, GAP, CHIP = 28 * ZOOM, 5 * ZOOM, 24 * ZOOM
MASK = 760 * ZOOM  # side of the mask, about
MOST = 4096  # rows, a pixel each
LABELLED = 10 * ZOOM  # cells of at least this height have their token written beside them


@dataclass(frozen=True)
class Span:
    """A run of rows that is drawn as one thing: a token, an image's patches, or padding.

    kind: a key of KINDS. learned: a next token is learned at this row, or the flow at these patches. image_index: index
    in the batch.
    """

    kind: str
    start: int
    stop: int
    doc: int
    label: str
    learned: bool = False
    image_index: int = -1


def spans(packed: Packed, processor, row: int = 0) -> list[Span]:
    """The rows of one batch row as spans, in order."""
    doc, image_index, ids, labels = (
        column[row].tolist() for column in (packed.doc, packed.image_index, packed.ids, packed.labels)
    )
    result: list[Span] = []
    start = 0
    while start < len(ids):
        stop = start + 1
        if doc[start] < 0 or image_index[start] >= 0:
            while stop < len(ids) and (doc[stop], image_index[stop]) == (doc[start], image_index[start]):
                stop += 1
        if doc[start] < 0:
            result.append(Span("padding", start, stop, -1, f"{stop - start} padding"))
        elif image_index[start] >= 0:
            result.append(_image_span(packed, image_index[start], start, stop, doc[start]))
        else:
            kind = "control token" if ids[start] in processor.text.special else "text"
            result.append(
                Span(kind, start, stop, doc[start], readable(processor.decode([ids[start]])), labels[start] != IGNORE)
            )
        start = stop
    return result


def _image_span(packed: Packed, index: int, start: int, stop: int, doc: int) -> Span:
    noised = bool(packed.noised_image[index])
    rows, columns = packed.grid[index].tolist()
    label = f"{columns} x {rows} patches" + (
        f", t = {packed.time[index]:.2f}" if noised and packed.time is not None else ""
    )
    return Span("noised block" if noised else "clean image", start, stop, doc, label, noised, index)


def summary(packed: Packed, processor, row: int = 0) -> str:
    """What one row of a batch holds, in one line."""
    all_spans = spans(packed, processor, row)
    rows = {kind: sum(span.stop - span.start for span in all_spans if span.kind == kind) for kind in KINDS}
    learned = sum(span.learned for span in all_spans if span.image_index < 0)
    images = sum(span.image_index >= 0 and span.kind == "clean image" for span in all_spans)
    noised = sum(span.kind == "noised block" for span in all_spans)
    return (
        f"{sum(rows.values())} rows: {rows['text']} text tokens, {rows['control token']} control tokens, "
        f"{rows['clean image']} patches of {images} clean images, {rows['noised block']} of {noised} noised "
        "blocks, "
        f"{rows['padding']} padding; a next token is learned at {learned}"
    )


def readable(text: str) -> str:
    """A token's text on one line in Latin letters: spaces as middle dots, line ends and other scripts as escapes."""
    shown = "".join(
        "·" if c == " " else c if c.isprintable() and ord(c) < 0x180 else c.encode("unicode_escape").decode()
        for c in text
    )
    return shown if len(shown) <= 24 else shown[:23] + "…"


def draw_packed(packed: Packed, processor, row: int = 0) -> Image.Image:
    """The sequence and the mask of one row of a packed batch, as an RGB image (times and noise are shown where they are
    set).

    Raises ValueError where the batch has no such row, or one too long to be drawn.
    """
    if not 0 <= row < len(packed.ids):
        raise ValueError(
            f"row {row} is not in a batch of {len(packed.ids)} rows: ask for one from 0 to {len(packed.ids) - 1}"
        )
    count = packed.ids.shape[1]
    if count > MOST:
        raise ValueError(
            f"{count} rows are too many to draw, {MOST} are the most: shorten the document or take smaller images"
        )
    all_spans = spans(packed, processor, row)
    width = max(MASK, count) + 2 * MARGIN + _rail(all_spans, count)
    parts = [_legend(width), _sequence(all_spans, packed, width), _mask(all_spans, packed, row, width)]
    page = Image.new("RGB", (width, sum(part.height for part in parts) + MARGIN), PAPER)
    top = MARGIN // 2
    for part in parts:
        page.paste(part, (0, top))
        top += part.height
    return page


def draw_sequence(packed: Packed, processor, row: int = 0, most: int = 200) -> Image.Image:
    """The sequence alone, without the mask, as an RGB image: the first `most` tokens and images of a row of a packed
    batch."""
    width = MASK + 2 * MARGIN
    return _sequence(spans(packed, processor, row)[:most], packed, width)


def draw_legend() -> Image.Image:
    """What the colours and bars of `draw_sequence` mean, as wide as its images."""
    return _legend(MASK + 2 * MARGIN)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * ZOOM)


def _legend(width: int) -> Image.Image:
    strip = Image.new("RGB", (width, 44 * ZOOM), PAPER)
    draw, font = ImageDraw.Draw(strip), _font(12)
    x, middle = MARGIN, strip.height // 2
    for name, (colour, _) in KINDS.items():
        draw.rounded_rectangle((x, middle - 5 * ZOOM, x + 10 * ZOOM, middle + 5 * ZOOM), 3 * ZOOM, fill=colour)
        draw.text((x + 16 * ZOOM, middle), name, fill=QUIET, font=font, anchor="lm")
        x += 38 * ZOOM + int(font.getlength(name))
    for name, colour in (("next token learned here", LEARNS_TEXT), ("flow learned here", LEARNS_IMAGE)):
        draw.rounded_rectangle((x, middle + 1 * ZOOM, x + 14 * ZOOM, middle + 4 * ZOOM), ZOOM, fill=colour)
        draw.text((x + 20 * ZOOM, middle), name, fill=QUIET, font=font, anchor="lm")
        x += 42 * ZOOM + int(font.getlength(name))
    return strip


# The sequence


def _sequence(all_spans: list[Span], packed: Packed, width: int) -> Image.Image:
    """Lines of chips and thumbnails; every document begins a line."""
    chips: list[tuple[Span, Image.Image]] = [(span, _chip(span, packed)) for span in all_spans]
    lines: list[list[tuple[Span, Image.Image]]] = []
    x = width
    for span, chip in chips:
        new_document = not lines or lines[-1][-1][0].doc != span.doc
        if new_document or x + chip.width > width - MARGIN:
            lines.append([])
            x = MARGIN
        lines[-1].append((span, chip))
        x += chip.width + GAP
    page = Image.new(
        "RGB", (width, sum(max(chip.height for _, chip in line) + 2 * GAP for line in lines) + MARGIN), PAPER
    )
    top = 0
    for line in lines:
        height, x = max(chip.height for _, chip in line), MARGIN
        for _, chip in line:
            page.paste(chip, (x, top + height - chip.height))
            x += chip.width + GAP
        top += height + 2 * GAP
    return page


def _chip(span: Span, packed: Packed) -> Image.Image:
    chip = _token(span) if span.image_index < 0 else _thumbnail(span, packed)
    if span.learned:
        colour = LEARNS_IMAGE if span.image_index >= 0 else LEARNS_TEXT
        ImageDraw.Draw(chip).rounded_rectangle(
            (0, chip.height - 3 * ZOOM, chip.width - 1, chip.height - 1), ZOOM, fill=colour
        )
    return chip


def _token(span: Span) -> Image.Image:
    font = _font(13)
    chip = Image.new("RGB", (int(font.getlength(span.label)) + 12 * ZOOM, CHIP + 5 * ZOOM), PAPER)
    draw = ImageDraw.Draw(chip)
    quiet = span.kind != "text"
    draw.rounded_rectangle(
        (0, 0, chip.width - 1, CHIP - 1),
        4 * ZOOM,
        fill=KINDS[span.kind][1],
        outline=HAIR if quiet else None,
        width=ZOOM,
    )
    draw.text((chip.width // 2, CHIP // 2), span.label, fill=QUIET if quiet else INK, font=font, anchor="mm")
    return chip


def _thumbnail(span: Span, packed: Packed) -> Image.Image:
    """The image with hard edges, the lines between its patches, and its size and time under it."""
    rows, columns = packed.grid[span.image_index].tolist()
    cell = max(4, min(24, 112 // max(rows, columns))) * ZOOM
    width, height, border = columns * cell, rows * cell, 2 * ZOOM
    font = _font(11)
    chip = Image.new(
        "RGB", (max(width + 2 * border, int(font.getlength(span.label))), height + 2 * border + 21 * ZOOM), PAPER
    )
    draw = ImageDraw.Draw(chip)
    draw.rectangle((0, 0, width + 2 * border - 1, height + 2 * border - 1), fill=KINDS[span.kind][0])
    chip.paste(_shown(span, packed).resize((width, height), Image.Resampling.NEAREST), (border, border))
    for i in range(1, columns):
        draw.line((border + i * cell, border, border + i * cell, border + height - 1), fill=WHITE)
    for i in range(1, rows):
        draw.line((border, border + i * cell, border + width - 1, border + i * cell), fill=WHITE)
    draw.text((0, height + 2 * border + 9 * ZOOM), span.label, fill=QUIET, font=font, anchor="lm")
    return chip


def _shown(span: Span, packed: Packed) -> Image.Image:
    """The pixels of an image; those of a noised block with noise of their time, or of half of it where none is drawn
    yet."""
    pixels = packed.pixels[packed.source[span.image_index]].cpu().float()
    if span.kind == "noised block":
        t = 0.5 if packed.time is None else float(packed.time[span.image_index])
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(span.image_index))
        pixels = (1 - t) * pixels + t * noise
    return to_image(pixels)


# The mask


def _cell(rows: int) -> int:
    return max(1, min(20 * ZOOM, MASK // rows))


def _rail(all_spans: list[Span], rows: int) -> int:
    """Room beside the mask: for the tokens' names where cells are large enough to have them, else for a strip of
    colour."""
    if _cell(rows) < LABELLED:
        return 20 * ZOOM
    return min(150 * ZOOM, max(int(_font(10).getlength(span.label)) for span in all_spans) + 24 * ZOOM)


def _mask(all_spans: list[Span], packed: Packed, row: int, width: int) -> Image.Image:
    """Who sees whom: rows ask, columns are seen."""
    count = packed.ids.shape[1]
    cell, rail = _cell(count), _rail(all_spans, count)
    rows = packed.map(lambda column: column[..., row : row + 1, :].cpu())
    seen = visible(rows, rows)[0].numpy()
    colour = np.repeat(
        [KINDS[span.kind][0] for span in all_spans], [span.stop - span.start for span in all_spans], axis=0
    )
    cells = np.where(seen[..., None], colour[None], np.array(WHITE)).astype(np.uint8)
    matrix = Image.fromarray(cells).resize((count * cell, count * cell), Image.Resampling.NEAREST)
    page = Image.new("RGB", (width, matrix.height + rail + MARGIN), PAPER)
    page.paste(matrix, (MARGIN + rail, rail))
    _hairlines(page, all_spans, cell, rail)
    page.paste(_rail_image(all_spans, cell, rail, matrix.height, bar_left=False), (MARGIN, rail))
    # Turned by a quarter to the left, a strip with its bar at the left stands on it.
    above = _rail_image(all_spans, cell, rail, matrix.height, bar_left=True).transpose(Image.Transpose.ROTATE_90)
    page.paste(above, (MARGIN + rail, 0))
    return page


def _hairlines(page: Image.Image, all_spans: list[Span], cell: int, rail: int) -> None:
    """A line where one thing ends and the next begins; where cells are too small for that, where a document does."""
    draw, left = ImageDraw.Draw(page), MARGIN + rail
    end = all_spans[-1].stop * cell
    for span, following in zip(all_spans, [*all_spans[1:], None]):
        if cell >= 4 * ZOOM or following is None or span.doc != following.doc:
            at = span.stop * cell
            draw.line((left, rail + at, left + end, rail + at), fill=HAIR)
            draw.line((left + at, rail, left + at, rail + end), fill=HAIR)
    draw.rectangle((left, rail, left + end, rail + end), outline=HAIR)


def _rail_image(all_spans: list[Span], cell: int, rail: int, height: int, bar_left: bool) -> Image.Image:
    """The strip beside the mask: a bar in the colour of each span, and its name where there is room."""
    strip = Image.new("RGB", (rail, height), PAPER)
    draw, font = ImageDraw.Draw(strip), _font(10)
    bar, gap = 5 * ZOOM, 4 * ZOOM

    def stripe(near: int, far: int, top: int, bottom: int, colour: Colour) -> None:
        left, right = (near, far) if bar_left else (rail - far, rail - near)
        draw.rectangle((left, top, right - 1, bottom), fill=colour)

    for span in all_spans:
        top, bottom = span.start * cell, span.stop * cell - 1
        stripe(gap, gap + bar, top, bottom, KINDS[span.kind][0])
        if span.learned:
            colour = LEARNS_IMAGE if span.image_index >= 0 else LEARNS_TEXT
            stripe(gap + bar + ZOOM, gap + bar + 4 * ZOOM, top, bottom, colour)
        if cell >= LABELLED:
            beyond = gap + bar + 9 * ZOOM
            place = (beyond if bar_left else rail - beyond, (top + bottom) // 2)
            draw.text(place, span.label, fill=INK, font=font, anchor="lm" if bar_left else "rm")
    return strip
