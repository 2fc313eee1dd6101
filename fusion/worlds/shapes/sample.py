"""A document of the built-in world as chat messages, with everything needed to score it."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from fusion.worlds.shapes.expect import Edit, Expectation, Question
from fusion.worlds.shapes.rules import Rule
from fusion.worlds.shapes.scene import Scene

Message = dict[str, object]


@dataclass(frozen=True)
class Sample:
    """One document of a task.

    `messages` are {"role", "content"}; content blocks are {"type": "text", "text": str} or {"type": "image", "image":
    (h, w, 3) uint8 array}, and an image by the assistant is a target. `scenes` are those of the images in order.
    `expectation` is what a requested first image must show, `questions` and `edits` what the later turns ask; `rule` is
    what examples show. `held_out`: some scene has a held-out pair (never in training).
    """

    task: str
    messages: tuple[Message, ...]
    scenes: tuple[Scene, ...] = ()
    expectation: Expectation | None = None
    questions: tuple[Question, ...] = ()
    edits: tuple[Edit, ...] = ()
    rule: Rule | None = None
    held_out: bool = False

    def with_pil(self) -> "Sample":
        """Return the same sample with PIL images in its messages."""
        messages = tuple({**turn, "content": [_pil(block) for block in turn["content"]]} for turn in self.messages)
        return replace(self, messages=messages)


def _pil(block: dict) -> dict:
    return {"type": "image", "image": Image.fromarray(block["image"])} if block["type"] == "image" else block


def message(role: str, *content: str | np.ndarray) -> Message:
    """Build a chat message of texts and images ((h, w, 3) uint8), in order."""
    blocks = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
        for part in content
    ]
    return {"role": role, "content": blocks}


def user(*content: str | np.ndarray) -> Message:
    """Build a user turn of texts and images, in order."""
    return message("user", *content)


def assistant(*content: str | np.ndarray) -> Message:
    """Build an assistant turn of texts and images, in order; its images are targets."""
    return message("assistant", *content)
