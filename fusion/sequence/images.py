"""Images in: open anything safely, fit it to a stride, and turn it into pixels and back.

Datasets, the Python interface and the command line all open images here, so a file that is refused is refused
everywhere, with one line that names it. Sizes are (width, height) as in PIL; pixels are float32 (3, h, w) in [-1, 1].
"""

import base64
import binascii
import io
import math
from itertools import product
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64_000_000

# Formats that PIL decodes on its own. EPS and WMF start other programs, others have no signature to know them by, and
# ICO is decoded as soon as it is opened: what is inside may be of any size, whatever the header says.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI")


class BadImage(ValueError):
    """An image that cannot be used; the message is one line: which image, what is wrong, what to do."""

    def __init__(self, name: str, problem: str):
        super().__init__(" ".join(f"{name[:200]}: {problem}".split()))


def open_image(
    source: object, name: str | None = None, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Open an image of any kind as 8-bit RGB, upright, carrying nothing but its pixels.

    `source` is a path, a data: URI, the bytes of a file, a PIL image, an array (h, w), (h, w, 1), (h, w, 3) or (h, w,
    4) of uint8, uint16, bool or floats in [0, 1], or a tensor (3, h, w) of floats in [-1, 1]. URLs are never fetched.
    `name` replaces the path in error messages.

    EXIF orientation is applied, transparency is laid over white, 16-bit values are scaled, CMYK and palettes are
    converted (colour profiles are ignored), and of an animated file the first frame is taken. The size is read from the
    header and checked against `max_pixels` before anything is decoded. Raises BadImage.
    """
    if isinstance(source, Tensor):
        return _from_tensor(source, name or "image tensor", max_pixels)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name or "image array"), name or "image array", max_pixels)
    if isinstance(source, Image.Image):
        path = source.filename if isinstance(source, ImageFile.ImageFile) else ""
        return _to_rgb(source, name or str(path) or "image", max_pixels)
    if isinstance(source, bytes):
        return _decode(source, name or "image bytes", max_bytes, max_pixels)
    if isinstance(source, str) and source.startswith("data:"):
        return _decode(
            _read_data_uri(source, name or "data: URI", max_bytes), name or "data: URI", max_bytes, max_pixels
        )
    if isinstance(source, (str, Path)):
        return _decode(_read_file(source, name or str(source), max_bytes), name or str(source), max_bytes, max_pixels)
    raise BadImage(
        name or "image", f"a {type(source).__name__} is not an image; pass a path, bytes, PIL image, array or tensor"
    )


def _read_file(source: str | Path, name: str, max_bytes: int) -> bytes:
    if "://" in str(source):
        raise BadImage(name, "URLs are not fetched; download the file and pass its path")
    path = Path(source)
    try:
        if path.is_file():  # neither a folder, nor a pipe or a device that never ends
            with path.open("rb") as file:
                return file.read(max_bytes + 1)
        problem = "is a folder; pass an image file" if path.is_dir() else "no such file; check the path"
    except OSError as error:
        problem = f"cannot be read ({error}); check the path and its permissions"
    raise BadImage(name, problem)


def _read_data_uri(uri: str, name: str, max_bytes: int) -> bytes:
    header, comma, payload = uri.partition(",")
    if not comma or not header.endswith(";base64"):
        raise BadImage(name, "only base64 data is understood; write data:image/png;base64,...")
    if len(payload) > (max_bytes + 3) * 4 / 3:
        raise BadImage(name, f"holds more than {max_bytes:,} bytes; make the image smaller")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise BadImage(name, f"is not valid base64 ({error}); encode the file again") from None


def _decode(data: bytes, name: str, max_bytes: int, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage(name, "is empty (0 bytes); replace or remove it")
    if len(data) > max_bytes:
        raise BadImage(name, f"is larger than {max_bytes:,} bytes; make the image smaller")
    try:
        header = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(header.size, name, max_pixels)
        header.verify()  # checks what the format can check, and leaves the file unusable: hence the second open
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(name, f"{error}; make the image smaller") from None
    except Image.UnidentifiedImageError:
        raise BadImage(name, f"is not an image that can be read ({', '.join(FORMATS)}); convert or remove it") from None
    except Exception as error:  # PIL's parsers raise nearly anything on broken data
        raise BadImage(name, f"is damaged ({error}); replace or remove it") from None
    return _to_rgb(image, name, max_pixels)


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(name, f"has no pixels ({width}x{height}); replace or remove it")
    if width * height > max_pixels:
        raise BadImage(name, f"is {width}x{height}, more than {max_pixels:,} pixels; make the image smaller")


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Any PIL image as upright RGB over white; this is where a lazily opened file is decoded."""
    _check_size(image.size, name, max_pixels)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            image = _eight_bits(image, name)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        if image.mode == "F":
            raise BadImage(name, "holds floating point values of unknown range; save it with 8 or 16 bits")
        image = image.convert("RGB")
    except BadImage:
        raise
    except Exception as error:  # as in _decode: a truncated file shows itself only here
        raise BadImage(name, f"cannot be decoded ({error}); replace or remove it") from None
    image.info.clear()
    return image


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey to 8 bits: 65535 -> 255. PIL's own convert() clips everything above 255 to white instead."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(name, "holds 32-bit values of unknown range; save it with 8 or 16 bits")
    return Image.fromarray(_from_16_bits(values))


def _from_16_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise BadImage(name, f"has shape {array.shape}; pass (h, w), (h, w, 3) or (h, w, 4)")
    if array.size == 0:
        raise BadImage(name, f"has no pixels (shape {array.shape}); replace or remove it")
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # false for NaN as well
            raise BadImage(name, "floats must be in [0, 1], without NaN; rescale them, or pass uint8")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = _from_16_bits(array)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise BadImage(name, f"has dtype {array.dtype}; pass uint8, uint16, bool, or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_tensor(pixels: Tensor, name: str, max_pixels: int) -> Image.Image:
    if pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.is_floating_point():
        raise BadImage(name, f"is {pixels.dtype} {tuple(pixels.shape)}; pass floats in [-1, 1] of shape (3, h, w)")
    _check_size((pixels.shape[2], pixels.shape[1]), name, max_pixels)
    try:
        return to_image(pixels)
    except ValueError as error:
        raise BadImage(name, str(error)) from None


def to_levels(pixels: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Pixels in [-1, 1] to the nearest of 256 levels; what lies outside is clamped."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_levels(levels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """256 levels to float32 pixels in [-1, 1]; the inverse of `to_levels` on what it returns."""
    return levels.float() / 127.5 - 1


def to_pixels(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """An RGB image as float32 pixels in [-1, 1]."""
    levels = torch.from_numpy(np.array(image.convert("RGB")))
    return from_levels(levels.permute(2, 0, 1).contiguous())


def to_image(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Pixels in [-1, 1] as an 8-bit RGB image, rounded and clamped. Raises ValueError on NaN."""
    if pixels.isnan().any():
        raise ValueError("pixels hold NaN; the model or the codec that made them diverged")
    return Image.fromarray(to_levels(pixels).permute(1, 2, 0).cpu().numpy())


def fit_size(
    width: int, height: int, stride: int, max_pixels: int | None = None, max_side: int | None = None
) -> tuple[int, int]:
    """The size nearest to width x height, within the limits, whose sides `stride` divides.

    Nearest in the logarithm of both sides, so the aspect ratio counts as much as the size; a side is at least `stride`.
    Raises ValueError if the limits leave no room for one stride.
    """
    area, side = max_pixels or math.inf, max_side or math.inf
    if side < stride or area < stride**2:
        raise ValueError(
            f"max_pixels={max_pixels}, max_side={max_side} leave no room for a {stride}x{stride} image; raise them"
        )
    scale = min(1.0, math.sqrt(area / (width * height)), side / max(width, height))
    w, h = max(width * scale, stride), max(height * scale, stride)
    w, h = min(w, area / h), min(h, area / w)  # a thin image grew to one stride: take that from its length
    choices = [
        (a * stride, b * stride)
        for a, b in product(*({math.floor(x / stride + 1e-9) or 1, math.ceil(x / stride - 1e-9)} for x in (w, h)))
        if a * stride * b * stride <= area and max(a, b) * stride <= side
    ]
    return min(choices, key=lambda size: (abs(math.log(size[0] / w)) + abs(math.log(size[1] / h)), size))


def fit(image: Image.Image, stride: int, max_pixels: int | None = None, max_side: int | None = None) -> Image.Image:
    """Resize and crop an image to `fit_size`: as little as possible, the aspect ratio kept, the centre kept.

    An image that fits already is returned as it is.
    """
    return cover(image, fit_size(*image.size, stride, max_pixels, max_side))


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to cover `size` (width, height) with its aspect ratio kept, and cut off what stands out, equally
    on both sides."""
    if image.size == size:
        return image
    scale = min(image.width / size[0], image.height / size[1])
    w, h = size[0] * scale, size[1] * scale
    left, top = (image.width - w) / 2, (image.height - h) / 2
    return image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))


def bucket_sizes(pixels: int, stride: int, max_aspect: float = 2.0) -> list[tuple[int, int]]:
    """Sizes (width, height) of about, and at most, `pixels` pixels, from upright to wide, one per width.

    Sides are multiples of `stride`, the aspect ratio at most `max_aspect` either way (aspect ratio bucketing, as
    NovelAI described it for Stable Diffusion: batches of one size without cropping everything square).
    """
    sizes = []
    for width in range(stride, math.isqrt(int(pixels * max_aspect)) + 1, stride):
        height = pixels // (width * stride) * stride
        if height and max(width / height, height / width) <= max_aspect:
            sizes.append((width, height))
    if not sizes:
        raise ValueError(f"{pixels} pixels leave no room for sides that {stride} divides; raise the number of pixels")
    return sizes


def nearest_bucket(size: tuple[int, int], buckets: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest to that of `size` (width, height): the one that crops least."""
    aspect = math.log(size[0] / size[1])
    return min(buckets, key=lambda bucket: (abs(math.log(bucket[0] / bucket[1]) - aspect), -bucket[0] * bucket[1]))
