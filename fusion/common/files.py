"""Names of new files: the first free of numbered ones, so that nothing is ever overwritten; images without loss."""

import io
from pathlib import Path

from PIL import Image

from fusion.common.atomic import save

FORMATS = {
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tiff": "TIFF",
}  # without loss: what is read again is what was drawn


def image_path(out: str | Path, name: str = "image.png") -> Path:
    """Where an image is to go: `out` as a file's name, or `name` in the folder `out`. Raises ValueError for formats
    with loss."""
    out = Path(out)
    if out.is_dir() or not out.suffix:
        out = out / name
    if out.suffix.lower() not in FORMATS:
        raise ValueError(
            f"{out}: images are written without loss, as {', '.join(FORMATS)}: give such a name, or a folder"
        )
    return out


def claim(path: Path, folder: bool = False) -> Path:
    """Take the first free name of `cat.png`, `cat-2.png`, `cat-3.png`, ...: an empty file (or folder) stands there on
    return."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while True:
        try:
            free.mkdir() if folder else free.open("x").close()
            return free
        except FileExistsError:
            number += 1
            free = path.with_stem(f"{path.stem}-{number}")


def save_image(image: Image.Image, out: str | Path) -> Path:
    """Write an image under the first free name (see `image_path` and `claim`), and return that name."""
    path, data = image_path(out), io.BytesIO()
    image.save(data, FORMATS[path.suffix.lower()], lossless=True)  # WebP alone has a choice
    path = claim(path)
    save(data.getvalue(), path)
    return path
