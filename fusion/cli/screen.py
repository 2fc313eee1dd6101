"""Output of answers: text as it is generated, images to numbered files and, while denoised, to the terminal."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fusion.common.files import image_path, save_image
from fusion.generation.interleaved import Event, ImagePreview, TextPiece


def half_blocks(image: Image.Image, columns: int | None = None) -> str:
    """Render an image as text for a terminal of 24-bit colour: each character shows two pixels, one above the other.

    columns: greatest width in characters (default: the terminal's width, at most 64). Wider images are shrunk, smaller
    ones keep their size.
    """
    limit = columns or min(64, shutil.get_terminal_size().columns)
    image = image.convert("RGB")
    if image.width > limit:
        image = image.resize((limit, max(1, round(image.height * limit / image.width))), Image.Resampling.BOX)
    pixels = np.asarray(image)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2]):
        cells = (
            f"\x1b[38;2;{a};{b};{c};48;2;{d};{e};{f}m▀" for (a, b, c), (d, e, f) in zip(upper.tolist(), lower.tolist())
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


class Screen:
    """A display for the events of a stream: print text at once, and show and save images.

    An image is shown while it is denoised; then it is saved and its path printed. out: as in files.image_path. show:
    draw images in the terminal, in place while they become clear. stream: where to print, default stdout.
    """

    def __init__(self, out: str | Path, show: bool, stream: io.TextIOBase | None = None):
        self.out, self.show, self.stream = image_path(out), show, stream or sys.stdout
        self._mid_line = False
        self._drawn = 0  # height in lines of the unfinished image at the end of the screen

    def take(self, event: Event) -> dict | None:
        """Show an event; return the content block that it adds to the answer, None for a preview."""
        if isinstance(event, TextPiece):
            self._write(event.text)
            return {"type": "text", "text": event.text}
        if isinstance(event, ImagePreview):
            if self.show:
                self._draw(event.image, last=False)
            return None
        self.image(event.image)
        return {"type": "image", "image": event.image}

    def image(self, image: Image.Image) -> None:
        """Show a finished image if `show` is set, save it, and print its path."""
        if self.show:
            self._draw(image, last=True)
        self.line(str(save_image(image, self.out)))

    def line(self, words: str) -> None:
        """Print a message of the program on a line of its own."""
        self.end_line()
        self._write(f"{words}\n")

    def end_line(self) -> None:
        """End the current line if it is not empty, so that the next output begins a line."""
        if self._mid_line:
            self._write("\n")

    def _draw(self, image: Image.Image, last: bool) -> None:
        self.end_line()
        drawing = half_blocks(image)
        above = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        self._write(f"{above}{drawing}\n")
        self._drawn = 0 if last else drawing.count("\n") + 1

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
        self._mid_line = not text.endswith("\n")


def join(blocks: list[dict]) -> list[dict]:
    """Merge consecutive text blocks; drop text that is only whitespace."""
    joined: list[dict] = []
    for block in blocks:
        if block["type"] == "text" and joined and joined[-1]["type"] == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + block["text"]}
        else:
            joined.append(block)
    return [block for block in joined if block["type"] == "image" or block["text"].strip()]
