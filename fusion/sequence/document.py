"""Parts of a document: text and images in reading order, and how chat messages become them.

A *message* is what people write: `{"role": "user", "content": "draw a cat"}`, where the content is a string or a list
of blocks `{"type": "text", "text": str}` and `{"type": "image", "image": anything fusion.sequence.images.open_image
reads}`. A *document* is what the model reads: the messages rendered by a chat template, cut into parts that say what is
learned.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

# A private-use character marks where a block stands while the chat template, which only knows strings, runs over the
# messages.
_MARK = "\ue000{}\ue001"


@dataclass(frozen=True)
class Text:
    """A run of text.

    loss: the model learns to write it. template: it was written by the chat template, so control tokens in it are read
    as such (in all other text they stay plain characters) and guidance never drops it.
    """

    text: str
    loss: bool = False
    template: bool = False


@dataclass(frozen=True)
class Image:
    """An image; a *target* is one that the model learns to draw (flow loss), any other is context."""

    image: Any
    target: bool = False


Part = Text | Image
Document = tuple[Part, ...]


def check_unicode(text: str) -> None:
    """Raise ValueError for a string with half of a surrogate pair in it, which JSON can spell, but no tokenizer reads
    and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text is not valid Unicode (character {error.start} is {text[error.start]!a}); write it again as UTF-8"
        ) from None


def blocks(content: Any) -> list[dict]:
    """The content of a message as a list of text and image blocks; raises ValueError naming what is wrong."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise ValueError(f"the content of a message is a string or a list of blocks, not {type(content).__name__}")
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in ("text", "image") or kind not in block:
            raise ValueError(
                f'a block is {{"type": "text", "text": ...}} or {{"type": "image", "image": ...}}, not '
                f"{str(block)[:80]!r}"
            )
        if kind == "text" and not isinstance(block["text"], str):
            raise ValueError(
                f"the text of a block is a string, not {type(block['text']).__name__}: write it as a string"
            )
        if kind == "text":
            check_unicode(block["text"])
    return list(content)


def from_messages(messages: list, render: Callable[[list[dict]], str], prompt: bool = False) -> Document:
    """Chat messages -> document.

    render: the chat template as a function from string-only messages to one string. Assistant turns are learned: their
    text, the template text that closes them, and their images as targets. With `prompt` nothing is learned: all images
    are context.
    """
    parts: list[Part] = []
    plain = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"a message has a role: system, user or assistant, not {role!r}")
        marks = ""
        for block in blocks(message.get("content")):
            learned = role == "assistant" and not prompt
            part = (
                Text(block["text"], loss=learned) if block["type"] == "text" else Image(block["image"], target=learned)
            )
            marks += _MARK.format(len(parts))
            parts.append(part)
        plain.append({"role": role, "content": marks})
    return _unmark(render(plain), parts)


def _unmark(rendered: str, parts: list[Part]) -> Document:
    """Put the parts back where their marks stand in the rendered template; the rest is template text.

    Raises ValueError when the template left a message out, as some do with system prompts.
    """
    document: list[Part] = []
    learned, marked = False, 0
    for piece in rendered.split("\ue000"):
        index, closed, rest = piece.partition("\ue001")
        if closed:
            part = parts[int(index)]
            document.append(part)
            marked += 1
            learned = part.loss if isinstance(part, Text) else part.target
        else:
            rest, learned = piece, False
        if rest:
            document.append(Text(rest, loss=learned, template=True))
    if marked != len(parts):
        raise ValueError(
            "the model's chat template leaves a message out: put a system prompt into the first user message"
        )
    return tuple(part for part in document if not isinstance(part, Text) or part.text)


def from_content(content: Any) -> Document:
    """An interleaved document without roles (a page, a book): everything in it is learned."""
    return tuple(
        Text(b["text"], loss=True) if b["type"] == "text" else Image(b["image"], target=True) for b in blocks(content)
    )


def as_context(document: Document) -> Document:
    """The same document with nothing to learn: what a prompt is."""
    return tuple(
        replace(part, loss=False) if isinstance(part, Text) else replace(part, target=False) for part in document
    )
