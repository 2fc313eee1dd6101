"""Conversations as files: chat messages in JSON with image paths, read and written; and a user's typed words."""

import json
from pathlib import Path

from fusion.common.atomic import save
from fusion.common.files import claim, save_image
from fusion.sequence.document import blocks
from fusion.sequence.images import open_image


def read_words(words: list[str]) -> list:
    """What a person gave on the command line, in order: text, `@image.png` as an image, `@@` for a text that begins
    with @.

    A single `@chat.json` gives what that file holds (see `read`). Raises ValueError.
    """
    if len(words) == 1 and words[0].startswith("@") and words[0].endswith(".json"):
        return read(words[0][1:])
    parts = []
    for word in words:
        if word.startswith("@@"):
            parts.append(word[1:])
        elif word.startswith("@") and word.endswith(".json"):
            raise ValueError(f"{word[1:]}: a file of messages stands alone; leave the other words out")
        else:
            parts.append(open_image(word[1:]) if word.startswith("@") else word)
    return parts


def read(path: str | Path) -> list[dict] | dict:
    """Chat messages (a list, or `{"messages": [...]}`) or a document without roles (`{"content": [...]}`) from a JSON
    file.

    Images are given by path, from the folder of the file on, or as data: URIs; they are opened here. Raises ValueError.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: {(error.strerror or str(error)).lower()}; give the path of a JSON file of messages"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if isinstance(data, dict) and "messages" in data:
        data = data["messages"]
    try:
        if isinstance(data, dict):
            return {"content": _open(data.get("content"), path.parent)}
        if not isinstance(data, list) or not all(isinstance(message, dict) for message in data):
            raise ValueError('holds neither a list of messages nor {"content": [...]}')
        return [message | {"content": _open(message.get("content"), path.parent)} for message in data]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _open(content, folder: Path) -> list[dict]:
    opened = []
    for block in blocks(content):
        if block["type"] == "image":
            source = block["image"]
            if not isinstance(source, str):
                raise ValueError(f"an image is given by its path, not by {type(source).__name__}")
            block = {"type": "image", "image": open_image(source if source.startswith("data:") else folder / source)}
        opened.append(block)
    return opened


def write(messages: list[dict], folder: str | Path) -> Path:
    """Write a conversation, its images as PIL images, into a new folder: `messages.json`, which comes last, and the
    images it names.

    The folder is the first free one of `chat`, `chat-2`, `chat-3`, ... Returns the path of the JSON file.
    """
    folder = claim(Path(folder), folder=True)
    written, number = [], 0
    for message in messages:
        content = []
        for block in blocks(message["content"]):
            if block["type"] == "image":
                number += 1
                block = {"type": "image", "image": save_image(block["image"], folder / f"image-{number}.png").name}
            content.append(block)
        written.append(message | {"content": content})
    path = folder / "messages.json"
    save(f"{json.dumps(written, indent=2, ensure_ascii=False)}\n".encode(), path)
    return path
