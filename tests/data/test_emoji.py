"""The emoji set: built from small fakes of the two clones, and row for row what the real set holds."""

import json

import pytest
from PIL import Image

from fusion.data.emoji import FLUENT, NOTO, Emoji, build, edits, main
from fusion.data.formats import EditPairs, ImageFolder

TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


def draw(path, size, colour):
    """A coloured square in the middle of a transparent image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", size)
    image.paste(colour, (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4))
    image.save(path)


@pytest.fixture
def clones(tmp_path):
    """A haircut in all tones and both styles, a toilet in both styles, a copyright sign in one; and what must be left
    out."""
    noto, fluent = tmp_path / "noto", tmp_path / "fluent"
    for tone in ("", *TONES):
        draw(noto / f"png/128/emoji_u1f487{tone and '_' + tone}.png", (128, 128), "red")
        draw(fluent / f"assets/1f487{tone and '-' + tone}_3d.png", (256, 256), "blue")
    draw(noto / "png/128/emoji_u1f6bd.png", (136, 128), "red")
    draw(fluent / "assets/1f6bd_3d.png", (256, 256), "blue")
    draw(noto / "png/128/emoji_u00a9.png", (128, 128), "red")
    for name in ("emoji_u0030", "emoji_u1f1e9_1f1ea", "emoji_u1f468_200d_1f9b0", "emoji_ufffff", "unknown"):
        draw(noto / f"png/128/{name}.png", (128, 128), "green")
    for name in ("1f487_flat", "1f487_color", "1f468-200d-1f9b0_3d", "fe0f"):
        draw(fluent / f"assets/{name}.png", (256, 256), "green")
    return noto, fluent


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_and_files(clones, tmp_path):
    assert build(*clones, tmp_path / "emoji") == (15, 6 * 2 + 2 * (5 + 12) + 2)
    captions = {row["file_name"]: row["text"] for row in rows(tmp_path / "emoji/metadata.jsonl")}
    assert captions["images/noto/1f487.png"] == "haircut, flat style"
    assert captions["images/fluent/1f487_1f3fc.png"] == "haircut, medium-light skin tone, 3d style"
    assert captions["images/noto/a9.png"] == "copyright sign, flat style"
    assert len(captions) == 15
    files = {path.relative_to(tmp_path / "emoji").as_posix() for path in (tmp_path / "emoji").rglob("*.png")}
    assert files == set(captions)


def test_images_are_small_square_and_over_white(clones, tmp_path):
    build(*clones, tmp_path / "emoji")
    for name, colour in (("noto/1f487", (255, 0, 0)), ("fluent/1f487", (0, 0, 255)), ("noto/1f6bd", (255, 0, 0))):
        image = Image.open(tmp_path / f"emoji/images/{name}.png")
        assert (image.mode, image.size) == ("RGB", (128, 128))
        assert image.getpixel((64, 64)) == colour and image.getpixel((2, 2)) == (255, 255, 255)


def test_edits_change_one_thing(clones, tmp_path):
    build(*clones, tmp_path / "emoji")
    pairs = rows(tmp_path / "emoji/edits.jsonl")
    assert len({(pair["input_file_name"], pair["edited_file_name"]) for pair in pairs}) == len(pairs)
    for pair in pairs:
        (style, base), (to_style, to_base) = (
            pair[k].removesuffix(".png").split("/")[1:] for k in ("input_file_name", "edited_file_name")
        )
        if pair["kind"] == "style":
            assert base == to_base and style != to_style
            assert (
                pair["instruction"] == {"noto": "redraw it in flat style", "fluent": "redraw it in 3d style"}[to_style]
            )
        else:
            assert pair["kind"] == "skin tone" and style == to_style and base != to_base
    tone = next(
        pair
        for pair in pairs
        if pair["edited_file_name"] == "images/noto/1f487_1f3fe.png" and pair["kind"] == "skin tone"
    )
    assert tone["instruction"] == "make the skin tone medium-dark" and tone["subject"] == "haircut"


def test_the_loaders_read_it(clones, tmp_path):
    build(*clones, tmp_path / "emoji")
    sources = ImageFolder(tmp_path / "emoji"), EditPairs(tmp_path / "emoji")
    assert [len(source) for source in sources] == [15, 48]
    assert sources[0].subjects == sources[1].subjects == {"1f487", "1f6bd", "a9"}
    assert all(sample.messages for source in sources for sample in (source[0], source[14]))


def test_the_same_input_gives_the_same_bytes(clones, tmp_path):
    for name in ("first", "second"):
        build(*clones, tmp_path / name)
    files = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "first", tmp_path / "second")
    ]
    assert files[0] == files[1] and len(files[0]) == 17


def test_nothing_half_built_is_left_in_place(clones, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion.data.emoji.edits", lambda emoji: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(*clones, tmp_path / "emoji")
    assert not (tmp_path / "emoji").exists() and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    build(*clones, tmp_path / "emoji")
    assert (tmp_path / "emoji").is_dir()


def test_a_broken_image_is_named_and_left_out(clones, tmp_path, capsys):
    broken = clones[1] / "assets/1f6bd_3d.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert build(*clones, tmp_path / "emoji") == (14, 46)
    assert f"left out: {broken}" in capsys.readouterr().err
    assert "1f6bd" not in "".join(row["edited_file_name"] for row in rows(tmp_path / "emoji/edits.jsonl"))


def test_the_command(clones, tmp_path, capsys):
    arguments = [str(clones[0]), str(clones[1]), str(tmp_path / "emoji")]
    assert main(arguments) == 0
    assert "15 images, 48 edit pairs" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([arguments[1], arguments[0], str(tmp_path / "other")]) == 2
    assert "has no folder png/128" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_row_for_row_the_real_set(shared_data):
    captions = rows(shared_data / "emoji/metadata.jsonl")
    emoji = []
    for row in captions:
        style, name = row["file_name"].removeprefix("images/").removesuffix(".png").split("/")
        code, _, tone = name.partition("_")
        emoji.append(Emoji(int(code, 16), tone, {"noto": NOTO, "fluent": FLUENT}[style]))
    assert [{"file_name": item.file_name, "text": item.caption} for item in emoji] == captions
    assert list(edits(emoji)) == rows(shared_data / "emoji/edits.jsonl")
