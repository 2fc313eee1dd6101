"""Benchmark images on disk: grids of several, written atomically, and checks for completeness and size."""

import io
import math
import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fusion.common.atomic import save

START, END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # every PNG's first and last bytes; width and height follow at 16


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Arrange images of one size in a grid in reading order, as many across as down or one more: 2 x 2 for four."""
    columns = math.isqrt(len(images) - 1) + 1
    width, height = images[0].size
    page = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for number, image in enumerate(images):
        page.paste(image, (number % columns * width, number // columns * height))
    return page


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder by name, without hidden ones and temporary ones of an interrupted run."""
    return sorted(path for path in folder.glob("*") if path.suffix != ".tmp" and not path.name.startswith("."))


def save_png(image: Image.Image, path: Path) -> None:
    """Write an image as PNG, atomically."""
    data = io.BytesIO()
    image.save(data, "PNG")
    save(data.getvalue(), path)


def complete(path: Path, size: tuple[int, int]) -> bool:
    """Return whether a complete PNG is at the path.

    size: (width, height) in pixels; ValueError if the PNG has another size, and so is not of this run.
    """
    data = path.read_bytes() if path.is_file() else b""
    if not (data.startswith(START) and data.endswith(END)):
        return False
    found = struct.unpack(">2I", data[16:24])
    if found != size:
        raise ValueError(
            f"{path} is {found[0]}x{found[1]}, not {size[0]}x{size[1]}: give another folder with -o, or the --size it "
            "was drawn with"
        )
    return True
