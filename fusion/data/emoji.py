"""Build the emoji data set from clones of two public repositories: `python -m train.prepare_emoji NOTO FLUENT OUT`.

NOTO: https://github.com/googlefonts/noto-emoji (its images are Apache-2.0). FLUENT:
https://github.com/shuding/fluentui-emoji-unicode (Microsoft's Fluent Emoji by code point, MIT). OUT gets 128x128 RGB
images on white, `metadata.jsonl` with a caption each (the Unicode name of the character, its skin tone, its style) and
`edits.jsonl` with pairs that differ in style or skin tone alone.
"""

import argparse
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageOps

from fusion.common.atomic import new_folder
from fusion.sequence.images import BadImage, open_image

SIDE = 128
TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
ORDER = ("", *TONES)


@dataclass(frozen=True)
class Style:
    """One of the two drawing styles of the emoji.

    folder: its folder in the data set. name: its name in captions. source: its folder in a clone of its repository.
    file: pattern of its file names there, with the code point and the optional skin tone (both hexadecimal) as groups.
    """

    folder: str
    name: str
    source: str
    file: re.Pattern


NOTO = Style("noto", "flat", "png/128", re.compile(r"emoji_u([0-9a-f]+)(?:_([0-9a-f]+))?\.png"))
FLUENT = Style("fluent", "3d", "assets", re.compile(r"([0-9a-f]+)(?:-([0-9a-f]+))?_3d\.png"))


@dataclass(frozen=True)
class Emoji:
    """An image of one character in one style.

    code: the character's code point. tone: the code point of its skin tone as hexadecimal digits, or "".
    """

    code: int
    tone: str
    style: Style

    @property
    def file_name(self) -> str:
        """The image's path relative to the data set's folder."""
        return f"images/{self.style.folder}/{self.code:x}{self.tone and '_' + self.tone}.png"

    @property
    def subject(self) -> str:
        """The Unicode name of the character, in lower case."""
        return unicodedata.name(chr(self.code)).lower()

    @property
    def caption(self) -> str:
        """The caption: the name of the character, its skin tone if any, and its style."""
        tone = [f"{TONES[self.tone]} skin tone"] if self.tone else []
        return ", ".join([self.subject, *tone, f"{self.style.name} style"])


def find(clone: Path, style: Style) -> dict[Emoji, Path]:
    """Return the images in a clone that show one named character, with or without a skin tone: emoji -> file.

    Sorted by code point and skin tone. ASCII is left out (those images are plain digits), and so are flags, families
    and professions: sequences have no Unicode name. Raises ValueError if the folder or all images are missing.
    """
    folder = clone / style.source
    if not folder.is_dir():
        raise ValueError(f"{clone}: has no folder {style.source}; give a clone of the repository that --help names")
    found = {}
    for path in folder.iterdir():
        match = style.file.fullmatch(path.name)
        if match and (match[2] is None or match[2] in TONES):
            code = int(match[1], 16)
            if 0x80 <= code <= sys.maxunicode and unicodedata.name(chr(code), ""):
                found[Emoji(code, match[2] or "", style)] = path
    if not found:
        raise ValueError(
            f"{folder}: no image is named as expected ({style.file.pattern}); the repository may have changed"
        )
    return dict(sorted(found.items(), key=lambda item: (item[0].code, ORDER.index(item[0].tone))))


def edits(emoji: Sequence[Emoji]) -> Iterator[dict[str, str]]:
    """Yield pairs of images that differ in one thing, in both directions, as rows of edits.jsonl.

    Every image is paired with the other style. An image without a skin tone is paired with all five tones; one with a
    tone with those an odd number of steps away, half of them, so that the edits of tone do not outnumber those of
    style.
    """
    there = set(emoji)
    for before in emoji:
        other = Emoji(before.code, before.tone, FLUENT if before.style is NOTO else NOTO)
        if other in there:
            yield _edit(before, other, "style", f"redraw it in {other.style.name} style")
        for tone, words in TONES.items():
            after = Emoji(before.code, tone, before.style)
            far = not before.tone or (ORDER.index(tone) - ORDER.index(before.tone)) % 2
            if far and after in there:
                yield _edit(before, after, "skin tone", f"make the skin tone {words}")


def _edit(before: Emoji, after: Emoji, kind: str, instruction: str) -> dict[str, str]:
    return {
        "input_file_name": before.file_name,
        "instruction": instruction,
        "edited_file_name": after.file_name,
        "kind": kind,
        "subject": before.subject,
    }


def build(noto: Path, fluent: Path, out: Path) -> tuple[int, int]:
    """Write the data set to the folder `out`, which must not exist, and return its numbers of images and edit pairs.

    noto, fluent: clones of the two repositories. The data set is built beside `out` and moved there when complete. An
    image that cannot be read is named on stderr and left out. Raises ValueError if `out` exists or a clone lacks its
    images.
    """
    if out.exists():
        raise ValueError(f"{out}: is there already; remove it, or choose another folder")
    files = find(noto, NOTO) | find(fluent, FLUENT)
    with new_folder(out) as partial:
        for style in (NOTO, FLUENT):
            (partial / "images" / style.folder).mkdir(parents=True)
        emoji = [item for item, path in files.items() if _draw(path, partial / item.file_name)]
        _write(partial / "metadata.jsonl", [{"file_name": item.file_name, "text": item.caption} for item in emoji])
        pairs = list(edits(emoji))
        _write(partial / "edits.jsonl", pairs)
    return len(emoji), len(pairs)


def _draw(source: Path, target: Path) -> bool:
    try:
        image = open_image(source)
    except BadImage as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    ImageOps.pad(image, (SIDE, SIDE), color="white").save(target)
    return True


def _write(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Run the command line with the arguments `argv`; return the exit status, 2 if the folders are unusable."""
    parser = argparse.ArgumentParser(
        prog="python -m train.prepare_emoji", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("noto", type=Path, help="clone of googlefonts/noto-emoji")
    parser.add_argument("fluent", type=Path, help="clone of shuding/fluentui-emoji-unicode")
    parser.add_argument("out", type=Path, help="the folder to write")
    arguments = parser.parse_args(argv)
    try:
        images, pairs = build(arguments.noto, arguments.fluent, arguments.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {images:,} images, {pairs:,} edit pairs")
    return 0
