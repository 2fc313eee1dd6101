"""Contact sheets: small images with captions in reading order, framed in red where something is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

Colour = tuple[int, int, int]

PAPER, INK, QUIET = (255, 255, 255), (28, 29, 33), (116, 118, 127)
RIGHT, WRONG = (224, 226, 230), (214, 40, 40)
SIDE, GAP, FRAME, LINE, FONT = (
    128,
    12,
    4,
    15,
    12,
)  # pixels: longer side of an image, space, frame, height of a line and of letters


@dataclass(frozen=True)
class Cell:
    """Images that belong together, with words under them.

    images: for example one drawing, or those before and after an edit. captions: lines of text. labels: what each image
    is. notes: captions in a quieter colour. right: whether the last image is; None where nothing is judged, and nothing
    framed.
    """

    images: Sequence[Image.Image]
    captions: Sequence[str] = ()
    right: bool | None = None
    labels: Sequence[str] = ()
    notes: Sequence[str] = ()


def contact_sheet(cells: Sequence[Cell], width: int = 1200) -> Image.Image:
    """All cells in reading order on one image, which is at most `width` pixels wide unless a single cell is wider."""
    rows: list[list[Image.Image]] = [[]]
    for cell in map(_draw, cells):
        if rows[-1] and GAP + sum(one.width + GAP for one in [*rows[-1], cell]) > width:
            rows.append([])
        rows[-1].append(cell)
    heights = [max(cell.height for cell in row) for row in rows]
    across = max(GAP + sum(cell.width + GAP for cell in row) for row in rows)
    page = Image.new("RGB", (across, GAP + sum(height + GAP for height in heights)), PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell in row:
            page.paste(cell, (left, top))
            left += cell.width + GAP
        top += height + GAP
    return page


def cell_width(images: int, framed: bool) -> int:
    """The width of a cell of so many images, in pixels."""
    return max(1, images) * (SIDE + 2 * FRAME * framed + GAP) - GAP


def _draw(cell: Cell) -> Image.Image:
    framed = cell.right is not None
    colours = [RIGHT] * (len(cell.images) - 1) + [RIGHT if cell.right else WRONG]
    shown = [enlarged(image) for image in cell.images]
    if framed:
        shown = [ImageOps.expand(image, FRAME, colour) for image, colour in zip(shown, colours, strict=True)]
    width, side = cell_width(len(shown), framed), SIDE + 2 * FRAME * framed
    lines = [(line, INK) for text in cell.captions for line in wrapped(text, width)]
    lines += [(line, QUIET) for text in cell.notes for line in wrapped(text, width)]
    top = (side + FRAME + LINE * bool(cell.labels)) if shown else 0
    page = Image.new("RGB", (width, top + LINE * len(lines)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, image in enumerate(shown):
        page.paste(image, (number * (side + GAP), side - image.height))
    for number, label in enumerate(cell.labels):
        draw.text((number * (side + GAP), side + FRAME // 2), label, fill=QUIET, font=_font())
    for number, (line, colour) in enumerate(lines):
        draw.text((0, top + number * LINE), line, fill=colour, font=_font())
    return page


def enlarged(image: Image.Image) -> Image.Image:
    """A small image enlarged by a whole number with hard edges, a large one reduced, so that its longer side is about
    SIDE."""
    image, longest = image.convert("RGB"), max(image.size)
    if factor := SIDE // longest:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return image.resize([max(1, round(side * SIDE / longest)) for side in image.size], Image.Resampling.LANCZOS)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, and inside a word that is wider than a line."""
    font, lines = _font(), [""]
    for character in text.replace("\n", " "):
        if font.getlength(lines[-1] + character) > width:
            line, space, word = lines[-1].rpartition(" ")
            lines[-1:] = [line, word] if space else [lines[-1], ""]
        lines[-1] += character
    return [line.strip() for line in lines]


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT)
