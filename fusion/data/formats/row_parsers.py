"""Parse rows into samples: captions, edits, chats, interleaved pages and plain text, from any kind of table."""

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
    """Resize images to sides that are multiples of `stride`, within the limits, or to exactly `size` (width, height).

    max_pixels, max_side: limits in pixels, None for none. Raises ValueError if the limits leave no room for one stride,
    or `size` is not a multiple of it.
    """

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
class ImageOpener:
    """Open the images that rows refer to.

    An image is given as a path relative to `root`, encoded bytes, `{"bytes": ..., "path": ...}`, or a PIL image.
    """

    root: Path = Path()
    fit: Fit = NATIVE

    def __call__(self, value: Any) -> PIL.Image.Image:
        """Return the image as RGB, resized by `fit`; raises fusion.sequence.images.BadImage."""
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
    """Return the value of a column of a row; raises ValueError if it is missing or empty."""
    if values.get(column) in (None, ""):
        raise ValueError(f"column {column!r} is empty" if column in values else f"has no column {column!r}")
    return values[column]


def sentence(values: dict[str, Any], column: str) -> str:
    """Return the text of a column of a row without surrounding whitespace.

    Raises ValueError if it is empty, not a string, or holds a lone surrogate.
    """
    value = cell(values, column)
    if not isinstance(value, str):
        raise ValueError(f"column {column!r} holds a {type(value).__name__}, not a string")
    if not value.strip():
        raise ValueError(f"column {column!r} holds nothing but spaces")
    check_unicode(value)
    return value.strip()


def listed_images(values: dict[str, Any]) -> list:
    """Return the list in the column `images`, for image blocks that name no image.

    Raises ValueError if the column holds something else than a list.
    """
    images = values.get("images")
    if not isinstance(images, list | None):
        raise ValueError(f"column 'images' holds a {type(images).__name__}, not a list")
    return list(images or [])


def turn(role: str, *parts: str | PIL.Image.Image) -> dict:
    """Build a chat message of the given role from text and images."""
    kinds = ("text" if isinstance(part, str) else "image" for part in parts)
    return {"role": role, "content": [{"type": kind, kind: part} for kind, part in zip(kinds, parts, strict=True)]}


@dataclass(frozen=True)
class Captions:
    """Parse an image and its caption (columns `file_name`, `text`) into a conversation of two messages.

    The user gives a prompt and the assistant draws the image or, with probability `describe`, the user shows the image
    with a question and the assistant answers with the caption. `{text}` in a prompt is replaced by the caption; the
    prompt or question is chosen at random.
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
        self, values: dict, columns: dict[str, str], opener: ImageOpener, rng: random.Random
    ) -> dict[str, list]:
        text = sentence(values, columns["text"])
        image = opener(cell(values, columns["file_name"]))
        if rng.random() < self.describe:
            return {"messages": [turn("user", image, rng.choice(self.questions)), turn("assistant", text)]}
        return {"messages": [turn("user", rng.choice(self.prompts).replace("{text}", text)), turn("assistant", image)]}


DRAW = Captions()


@dataclass(frozen=True)
class Edits:
    """Parse an image, an instruction and the edited image into a conversation that ends with the edited image."""

    names: ClassVar = {
        "input_file_name": ("input_file_name", "input_image"),
        "instruction": ("instruction", "edit_prompt"),
        "edited_file_name": ("edited_file_name", "edited_image"),
    }

    def __call__(
        self, values: dict, columns: dict[str, str], opener: ImageOpener, rng: random.Random
    ) -> dict[str, list]:
        instruction = sentence(values, columns["instruction"])
        before, after = (opener(cell(values, columns[name])) for name in ("input_file_name", "edited_file_name"))
        return {"messages": [turn("user", before, instruction), turn("assistant", after)]}


@dataclass(frozen=True)
class Chats:
    """Parse chat messages; a block `{"type": "image"}` without an image takes the next one of the column `images`."""

    names: ClassVar = {"messages": ("messages",)}

    def __call__(
        self, values: dict, columns: dict[str, str], opener: ImageOpener, rng: random.Random
    ) -> dict[str, list]:
        messages = cell(values, columns["messages"])
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError(f"column {columns['messages']!r} is not a list of messages")
        if unknown := [m.get("role") for m in messages if m.get("role") not in ROLES]:
            raise ValueError(f"a message has the role {unknown[0]!r}; write one of {', '.join(ROLES)}")
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError("no message is the assistant's, so there is nothing to learn")
        images = listed_images(values)
        chat = [{"role": m["role"], "content": _open_blocks(m.get("content"), opener, images)} for m in messages]
        if images:
            raise ValueError(f"column 'images' has {len(images)} more than the messages use")
        return {"messages": chat}


@dataclass(frozen=True)
class Pages:
    """Parse interleaved text and image blocks without roles (column `content`)."""

    names: ClassVar = {"content": ("content",)}

    def __call__(
        self, values: dict, columns: dict[str, str], opener: ImageOpener, rng: random.Random
    ) -> dict[str, list]:
        content = _open_blocks(cell(values, columns["content"]), opener, listed_images(values))
        if not content:
            raise ValueError(f"column {columns['content']!r} is empty")
        return {"content": content}


@dataclass(frozen=True)
class Texts:
    """Parse plain text (column `text`) into content without roles, in which every token has a loss."""

    names: ClassVar = {"text": ("text",)}

    def __call__(
        self, values: dict, columns: dict[str, str], opener: ImageOpener, rng: random.Random
    ) -> dict[str, list]:
        return {"content": [{"type": "text", "text": sentence(values, columns["text"])}]}


Form = Captions | Edits | Chats | Pages | Texts


def _open_blocks(content: Any, opener: ImageOpener, images: list) -> list[dict]:
    """Return the blocks of a message or page with their images opened.

    Image blocks without an image take (and remove) theirs from `images`, in order.
    """
    if isinstance(content, list):
        content = [_filled(block, images) for block in content]
    return [
        {"type": "text", "text": block["text"]}
        if block["type"] == "text"
        else {"type": "image", "image": opener(block["image"])}
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
    """Map each standard name to a column of the table: the one in `given`, else the first usual name the table has.

    names: the usual column names of each standard name. given: standard name -> column, set by the user. seen: the
    columns of the table. where: the source's name, for error messages. Raises ValueError if a column is missing or a
    name unknown.
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
