"""A contact sheet: small pictures with their captions under them, framed in red where something is wrong."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

PAPER, INK, RIGHT, WRONG = (255, 255, 255), (28, 29, 33), (224, 226, 230), (214, 40, 40)
CELL, GAP, FRAME, LINE, FONT, LETTERS = 104, 12, 4, 14, 11, 18  # pixels; and how many letters fit under a picture
WORDS = 4  # lines of a caption at most


@dataclass(frozen=True)
class Cell:
    """Pictures that belong together (one drawing; or before and after an edit), what they are, and whether the last is right."""

    pictures: tuple[Image.Image, ...]
    caption: str
    right: bool


def contact_sheet(cells: Sequence[Cell], width: int = 1200) -> Image.Image:
    """All cells in reading order on one picture that is `width` pixels wide."""
    drawn = [_draw(cell) for cell in cells]
    columns = max(1, (width - GAP) // (max(cell.width for cell in drawn) + GAP))
    across, down = max(cell.width for cell in drawn) + GAP, max(cell.height for cell in drawn) + GAP
    page = Image.new("RGB", (width, -(-len(drawn) // columns) * down + GAP), PAPER)
    for number, cell in enumerate(drawn):
        page.paste(cell, (GAP + number % columns * across, GAP + number // columns * down))
    return page


def _draw(cell: Cell) -> Image.Image:
    shown = [_framed(picture, RIGHT) for picture in cell.pictures[:-1]]
    shown.append(_framed(cell.pictures[-1], RIGHT if cell.right else WRONG))
    step = CELL + 2 * FRAME
    page = Image.new("RGB", (step * len(shown) + GAP * (len(shown) - 1), step + 4 + WORDS * LINE), PAPER)
    for number, picture in enumerate(shown):
        page.paste(picture, (number * (step + GAP), step - picture.height))
    lines = textwrap.wrap(cell.caption, LETTERS * len(shown), max_lines=WORDS, placeholder=" …")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT)
    for number, line in enumerate(lines):
        draw.text((0, step + 4 + number * LINE), line, fill=INK, font=font)
    return page


def _framed(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Enlarged by a whole number with hard edges, or reduced, so that it fits a cell."""
    factor = CELL // max(picture.size)
    if factor:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        picture = ImageOps.contain(picture, (CELL, CELL))
    return ImageOps.expand(picture.convert("RGB"), FRAME, colour)
