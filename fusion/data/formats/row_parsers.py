"""From a row to a sample: captions, edits, chats, pages and plain text, wherever the row comes from."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import PIL.Image

from fusion.sequence.document import blocks, check_unicode
from fusion.sequence.images import cover, fit, fit_size, open_image

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Fit:
    """The sizes that images are brought to: multiples of `stride`, within the limits; or exactly `size` (width,
    height)."""

    stride: int = 1
    max_pixels: int | None = None
    max_side: int | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self):
        fit_size(
            self.stride, self.stride, self.stride, self.max_pixels, self.max_side
        )  # raises if the limits leave no room
        if self.size and any(side < 1 or side % self.stride for side in self.size):
            raise ValueError(
                f"size={tuple(self.size)} is not divided by stride={self.stride}; choose multiples of the stride"
            )

    def __call__(self, image: PIL.Image.Image) -> PIL.Image.Image:
        return cover(image, tuple(self.size)) if self.size else fit(image, self.stride, self.max_pixels, self.max_side)


NATIVE = Fit()


@dataclass(frozen=True)
class Pictures:
    """Opens the images that rows name: a path relative to `root`, encoded bytes, `{"bytes": ..., "path": ...}`, or a
    PIL image."""

    root: Path = Path()
    fit: Fit = NATIVE

    def __call__(self, value: Any) -> PIL.Image.Image:
        """An RGB image of a fitting size; raises fusion.sequence.images.BadImage."""
        if isinstance(value, dict) and value.get("bytes"):
            if not isinstance(value["bytes"], bytes):
                raise ValueError(
                    f"the bytes of an image are a {type(value['bytes']).__name__}; give them as bytes, or a "
                    "path instead"
                )
            return self.fit(open_image(value["bytes"], name=str(value.get("path") or "image bytes")))
        if isinstance(value, dict) and value.get("path"):
            value = value["path"]
        if isinstance(value, str) and not value.startswith("data:") and "://" not in value:
            value = self.root / value
        return self.fit(open_image(value))


def cell(values: dict[str, Any], column: str) -> Any:
    """What a row holds in a column; raises ValueError if that is nothing."""
    if values.get(column) in (None, ""):
        raise ValueError(f"column {column!r} is empty" if column in values else f"has no column {column!r}")
    return values[column]


def sentence(values: dict[str, Any], column: str) -> str:
    """A cell that must be text; raises ValueError if it is empty or not a string."""
    value = cell(values, column)
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} holds a {type(value).__name__}, not a string")
    if not value.strip():
        raise ValueError(f"column {column!r} holds nothing but spaces")
    check_unicode(value)
    return value.strip()


def listed_images(values: dict[str, Any]) -> list:
    """The column `images`, for blocks that name none; raises ValueError if it is no list."""
    images = values.get("images")
    if not isinstance(images, list | None):
        raise ValueError(f"column 'images' holds a {type(images).__name__}, not a list")
    return list(images or [])


def turn(role: str, *parts: str | PIL.Image.Image) -> dict:
    """A message of text and images."""
    kinds = ("text" if isinstance(part, str) else "image" for part in parts)
    return {"role": role, "content": [{"type": kind, kind: part} for kind, part in zip(kinds, parts, strict=True)]}


@dataclass(frozen=True)
class Captions:
    """An image and its caption: a request and the picture drawn, or (with probability `describe`) a picture and its
    description.

    `{text}` in a prompt stands for the caption; prompts and questions are drawn at random.
    """

    names: ClassVar = {"file_name": ("file_name", "image"), "text": ("text", "caption")}
    prompts: tuple[str, ...] = ("draw {text}",)
    questions: tuple[str, ...] = ("describe the image",)
    describe: float = 0.0

    def __post_init__(self):
        if not 0 <= self.describe <= 1:
            raise ValueError(f"describe={self.describe} is a probability; choose it in [0, 1]")
        if not self.prompts or any("{text}" not in prompt for prompt in self.prompts):
            raise ValueError(f"prompts={list(self.prompts)}: each needs {{text}} where the caption goes")
        if not self.questions:
            raise ValueError("questions is empty; give at least one question that a caption answers")

    def __call__(
        self, values: dict, columns: dict[str, str], pictures: Pictures, rng: random.Random
    ) -> dict[str, list]:
        text = sentence(values, columns["text"])
        image = pictures(cell(values, columns["file_name"]))
        if rng.random() < self.describe:
            return {"messages": [turn("user", image, rng.choice(self.questions)), turn("assistant", text)]}
        return {"messages": [turn("user", rng.choice(self.prompts).replace("{text}", text)), turn("assistant", image)]}


DRAW = Captions()


@dataclass(frozen=True)
class Edits:
    """An image, an instruction, and the image edited as it says."""

    names: ClassVar = {
        "input_file_name": ("input_file_name", "input_image"),
        "instruction": ("instruction", "edit_prompt"),
        "edited_file_name": ("edited_file_name", "edited_image"),
    }

    def __call__(
        self, values: dict, columns: dict[str, str], pictures: Pictures, rng: random.Random
    ) -> dict[str, list]:
        instruction = sentence(values, columns["instruction"])
        before, after = (pictures(cell(values, columns[name])) for name in ("input_file_name", "edited_file_name"))
        return {"messages": [turn("user", before, instruction), turn("assistant", after)]}


@dataclass(frozen=True)
class Chats:
    """Chat messages; a block `{"type": "image"}` without an image takes the next of the column `images`."""

    names: ClassVar = {"messages": ("messages",)}

    def __call__(
        self, values: dict, columns: dict[str, str], pictures: Pictures, rng: random.Random
    ) -> dict[str, list]:
        messages = cell(values, columns["messages"])
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"column {columns['messages']!r} is not a list of messages")
        if unknown := [m.get("role") for m in messages if m.get("role") not in ROLES]:
            raise ValueError(f"a message has the role {unknown[0]!r}; write one of {', '.join(ROLES)}")
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError("no message is the assistant's, so there is nothing to learn")
        images = listed_images(values)
        chat = [{"role": m["role"], "content": _open_blocks(m.get("content"), pictures, images)} for m in messages]
        if images:
            raise ValueError(f"column 'images' has {len(images)} more than the messages use")
        return {"messages": chat}


@dataclass(frozen=True)
class Pages:
    """Interleaved text and images without roles."""

    names: ClassVar = {"content": ("content",)}

    def __call__(
        self, values: dict, columns: dict[str, str], pictures: Pictures, rng: random.Random
    ) -> dict[str, list]:
        content = _open_blocks(cell(values, columns["content"]), pictures, listed_images(values))
        if not content:
            raise ValueError(f"column {columns['content']!r} is empty")
        return {"content": content}


@dataclass(frozen=True)
class Texts:
    """Plain text, all of it learned."""

    names: ClassVar = {"text": ("text",)}

    def __call__(
        self, values: dict, columns: dict[str, str], pictures: Pictures, rng: random.Random
    ) -> dict[str, list]:
        return {"content": [{"type": "text", "text": sentence(values, columns["text"])}]}


Form = Captions | Edits | Chats | Pages | Texts


def _open_blocks(content: Any, pictures: Pictures, images: list) -> list[dict]:
    """The blocks of a message or page with their images opened; image blocks that hold none take theirs from `images`,
    in order."""
    if isinstance(content, list):
        content = [_filled(block, images) for block in content]
    return [
        {"type": "text", "text": block["text"]}
        if block["type"] == "text"
        else {"type": "image", "image": pictures(block["image"])}
        for block in blocks(content)
    ]


def _filled(block: Any, images: list) -> Any:
    if not isinstance(block, dict) or block.get("type") != "image" or block.get("image") is not None:
        return block
    if not images:
        raise ValueError("an image block names no image, and the column 'images' has no more")
    return {"type": "image", "image": images.pop(0)}


def resolve(
    names: dict[str, tuple[str, ...]], given: dict[str, str], seen: Collection[str], where: str
) -> dict[str, str]:
    """Which column holds what: the one that `given` says, else the first of the usual names that the table has.

    names: per standard name the usual ones. seen: the columns of the table. Raises ValueError if one is missing.
    """
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(
            f"{where}: columns has no entry {unknown[0]!r}; it maps {', '.join(names)} to the names in your table"
        )
    columns = {}
    for name, usual in names.items():
        found = [column for column in ((given[name],) if name in given else usual) if column in seen]
        if not found:
            wanted = given.get(name, " or ".join(usual))
            raise ValueError(
                f"{where}: no column {wanted} (it has: {', '.join(sorted(map(str, seen)))}); set columns.{name} to the "
                "right one"
            )
        columns[name] = found[0]
    return columns
