"""Opening images of every kind, fitting them to a stride, pixels and back."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.sequence.images import (
    BadImage,
    bucket_sizes,
    cover,
    fit,
    fit_size,
    from_levels,
    nearest_bucket,
    open_image,
    to_image,
    to_levels,
    to_pixels,
)


def noise(width=60, height=40, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width, height, depth=8, colour=2, rows=b""):
    """A PNG file written by hand: header, compressed rows, end."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(source, **options):
    with pytest.raises(BadImage) as error:
        open_image(source, **options)
    line = str(error.value)
    assert "\n" not in line and ";" in line, "one line, with a remedy"
    return line


def test_every_kind_of_source_gives_the_same_image(tmp_path):
    array = noise()
    image = Image.fromarray(array)
    data = encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (
        path,
        str(path),
        data,
        uri,
        image,
        Image.open(path),
        array,
        array.astype(np.float32) / 255,
        to_pixels(image),
    ):
        opened = open_image(source)
        assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), array)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI"])
def test_formats_and_their_truncated_files(format):
    data = encoded(Image.fromarray(noise()), format)
    assert open_image(data).size == (60, 40)
    assert refusal(data[: len(data) * 2 // 3], name="cat.file").startswith("cat.file: ")


def test_a_damaged_png_is_refused():
    data = bytearray(encoded(Image.fromarray(noise())))
    data[len(data) // 2] ^= 255
    assert "a.png" in refusal(bytes(data), name="a.png")


def test_files_that_are_not_images(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    assert "empty.png: is empty" in refusal(tmp_path / "empty.png")
    assert "text.png: is not an image" in refusal(tmp_path / "text.png")
    assert "no such file" in refusal(tmp_path / "none.png")
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal("x" * 5000)
    assert "no such file" in refusal("a\0b\n.png")
    assert "is not an image" in refusal(encoded(Image.fromarray(noise()), "EPS")), "PIL would start ghostscript"
    assert "NoneType" in refusal(None)


def test_urls_are_not_fetched():
    for url in ("https://example.com/a.png", "file:///etc/passwd"):
        assert "not fetched" in refusal(url)


def test_data_uris_that_are_wrong():
    assert "base64" in refusal("data:image/png,abc")
    assert "base64" in refusal("data:image/png;base64,a?b=")
    assert "1,000 bytes" in refusal("data:image/png;base64," + "A" * 2000, max_bytes=1000)


def test_too_many_bytes(tmp_path):
    path = tmp_path / "a.bmp"
    path.write_bytes(encoded(Image.fromarray(noise()), "BMP"))
    assert "1,000 bytes" in refusal(path, max_bytes=1000)
    assert "1,000 bytes" in refusal(path.read_bytes(), max_bytes=1000)


def test_a_decompression_bomb_is_refused_by_its_header():
    """The file holds no pixels at all, so an answer about its size can only come from the header."""
    assert "9000x9000" in refusal(png(9000, 9000))
    assert "pixels" in refusal(png(60_000, 60_000)), "beyond PIL's own limit"
    assert "60x40" in refusal(Image.fromarray(noise()), max_pixels=2000)
    assert "60x40" in refusal(torch.zeros(3, 40, 60), max_pixels=2000)
    assert open_image(encoded(Image.fromarray(noise())), max_pixels=2400).size == (60, 40)


def test_zero_sized_images():
    assert "x.png" in refusal(png(0, 5), name="x.png")
    assert "no pixels" in refusal(Image.new("RGB", (0, 5)))
    assert "no pixels" in refusal(np.zeros((0, 5, 3), np.uint8))
    assert "no pixels" in refusal(torch.zeros(3, 0, 5))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    image = Image.fromarray(values)
    for source in (encoded(image), encoded(image, "TIFF"), encoded(image, "PPM"), values, image):
        assert np.array_equal(np.asarray(open_image(source))[..., 1], expected)


def test_sixteen_bit_colour():
    levels = np.array([[0, 0x7F7F, 0xFFFF]], dtype=">u2")
    assert open_image(png(1, 1, depth=16, rows=b"\0" + levels.tobytes())).getpixel((0, 0)) == (0, 127, 255)


def test_values_of_unknown_range_are_refused():
    assert "32-bit" in refusal(encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"))
    assert "floating point" in refusal(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = 0, 128, 255
    expected = [(255, 255, 255), (227, 127, 127), (200, 0, 0)]
    for source in (
        rgba,
        encoded(Image.fromarray(rgba)),
        encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
    ):
        opened = open_image(source)
        assert [opened.getpixel((x, 0)) for x in range(3)] == expected
    palette = Image.fromarray(noise(channels=1)).convert("P")
    transparent = open_image(encoded(palette, transparency=palette.getpixel((0, 0))))
    assert transparent.getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("LA", (2, 2), (90, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_palette_cmyk_and_bilevel():
    colours = Image.fromarray(noise())
    palette = colours.quantize(256)
    assert np.array_equal(np.asarray(open_image(encoded(palette))), np.asarray(palette.convert("RGB")))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert open_image(encoded(cmyk, "TIFF")).getpixel((0, 0)) == (255, 0, 0)
    red, green, blue = open_image(encoded(cmyk, "JPEG", quality=100)).getpixel((4, 4))
    assert red > 245 and green < 10 and blue < 10
    assert open_image(np.array([[True, False]])).getpixel((0, 0)) == (255, 255, 255)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_applied_once_and_forgotten():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by a quarter, clockwise
    image = Image.fromarray(noise())
    opened = open_image(encoded(image, exif=exif.tobytes(), icc_profile=b"profile"))
    assert np.array_equal(np.asarray(opened), np.rot90(noise(), -1))
    assert opened.info == {} and np.array_equal(np.asarray(open_image(opened)), np.asarray(opened))


def test_the_callers_image_is_left_alone():
    image = Image.fromarray(noise())
    image.info["comment"] = "mine"
    open_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.info == {"comment": "mine"} and np.array_equal(np.asarray(image), noise())


def test_arrays_and_tensors_that_are_no_images():
    for shape in ((4, 4, 2), (2, 3, 4, 4), (4,)):
        assert "shape" in refusal(np.zeros(shape, np.uint8))
    for value in (255.0, -0.1, np.nan):
        assert "[0, 1]" in refusal(np.full((4, 4), value))
    assert "int64" in refusal(np.zeros((4, 4), np.int64))
    for pixels in (torch.zeros(1, 3, 4, 4), torch.zeros(4, 4, 3), torch.zeros(3, 4, 4, dtype=torch.uint8)):
        assert "(3, h, w)" in refusal(pixels)
    assert "NaN" in refusal(torch.full((3, 4, 4), torch.nan))


def test_pixels_and_back():
    array = noise()
    pixels = to_pixels(Image.fromarray(array))
    assert pixels.shape == (3, 40, 60) and pixels.dtype == torch.float32
    assert pixels[0, 3, 5] == pytest.approx(array[3, 5, 0] / 127.5 - 1)
    assert np.array_equal(np.asarray(to_image(pixels)), array)
    assert np.array_equal(np.asarray(to_image(pixels.bfloat16().clamp(-1, 1)).size), (60, 40))


def test_levels_round_clamp_and_invert():
    assert to_levels(torch.tensor([-3.0, -1.0, 0.003, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_levels(from_levels(levels)), levels)
    assert from_levels(levels).min() == -1 and from_levels(levels).max() == 1


def test_fit_leaves_what_fits_alone():
    image = Image.fromarray(noise(64, 48))
    assert fit(image, 16) is image
    assert fit(image, 16, max_pixels=64 * 48, max_side=64) is image


@pytest.mark.parametrize(
    ("size", "stride", "limits", "expected"),
    [
        ((65, 47), 16, {}, (64, 48)),
        ((100, 100), 8, {}, (104, 104)),  # 100/104 is nearer to 1 than 96/100
        ((5, 3), 8, {}, (8, 8)),
        ((1024, 512), 16, {"max_side": 256}, (256, 128)),
        ((1024, 512), 16, {"max_pixels": 128 * 128}, (176, 80)),
        ((100_000, 1), 8, {"max_pixels": 4096}, (512, 8)),
        ((1, 100_000), 8, {"max_side": 64}, (8, 64)),
    ],
)
def test_fit_size(size, stride, limits, expected):
    assert fit_size(*size, stride, **limits) == expected


def test_fit_size_keeps_every_promise_on_random_sizes():
    rng = np.random.default_rng(0)
    for width, height, stride, side in rng.integers([1, 1, 1, 33], [400, 400, 33, 200], (300, 4)).tolist():
        area = side**2 // 2 + stride**2
        w, h = fit_size(width, height, stride, max_pixels=area, max_side=side)
        assert w % stride == h % stride == 0 and max(w, h) <= side and w * h <= area and min(w, h) >= stride


def test_fit_without_room_says_so():
    with pytest.raises(ValueError, match="no room"):
        fit_size(100, 100, 16, max_side=8)


def test_cover_keeps_aspect_and_centre():
    """A square target of a wide image is its middle: left and right bands are gone, the middle is not squeezed."""
    array = np.zeros((40, 80, 3), np.uint8)
    array[:, :20, 0] = array[:, 60:, 2] = 255
    array[:, 20:60, 1] = 255
    square = np.asarray(cover(Image.fromarray(array), (20, 20)))
    assert square.shape == (20, 20, 3)
    assert (abs(square[:, 5:-5] - np.array((0, 255, 0))) <= 2).all()  # the filter rings a little at the edges
    assert (square[:, :, 1] > 200).all()


def test_buckets():
    buckets = bucket_sizes(256 * 256, 32, max_aspect=2.0)
    assert (256, 256) in buckets and len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % 32 == height % 32 == 0 and 0.75 * 256**2 < width * height <= 256**2
        assert max(width / height, height / width) <= 2
    assert nearest_bucket((100, 100), buckets) == (256, 256)
    assert nearest_bucket((1920, 1080), buckets) in [(320, 192), (352, 160), (352, 192)]
    assert nearest_bucket((1080, 1920), buckets)[0] < 256
    with pytest.raises(ValueError, match="no room"):
        bucket_sizes(100, 32)


def test_emoji_open_and_fit(shared_data):
    paths = sorted((shared_data / "emoji/images").glob("*/*.png"))[::100]
    for path in paths:
        image = fit(open_image(path), 8, max_side=64)
        assert image.size == (64, 64) and to_pixels(image).std() > 0.01
    assert len(paths) > 30
