"""Questions about pictures, as benchmarks put them: where pictures stand among the words, and a model's answers in words alone."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from fusion.api import Fusion

PLACE = re.compile(r"<image(?: (\d+))?>")


def prompt_of(text: str, images: Sequence[Image.Image]) -> list[str | Image.Image]:
    """One user's turn. `<image>` stands for the next picture and `<image 2>` for the second, there where it is named first; those that the text
    does not name come before it, and what names none is text."""
    order, named = [], 0
    for match in PLACE.finditer(text):
        number = int(match[1]) - 1 if match[1] else named
        named += not match[1]
        new = 0 <= number < len(images) and number not in {other for other, _ in order}
        order += [(number, match.span())] if new else []
    parts: list[str | Image.Image] = [image for number, image in enumerate(images) if number not in {other for other, _ in order}]
    start = 0
    for number, (first, last) in order:
        parts += [text[start:first], images[number]]
        start = last
    return [part for part in [*parts, text[start:]] if not isinstance(part, str) or part.strip()]


def answers(model: Fusion, prompts: Sequence[list], seed: int, knobs: Mapping[str, Any], until: Sequence[str] = ()) -> list[str]:
    """What a model says to each prompt, without drawing, cut off where one of `until` begins. Row r uses seed + r."""
    replies = model.generate([*prompts], seed, **{**knobs, "max_images": 0})
    return [cut("".join(part for part in reply if isinstance(part, str)), until) for reply in replies]


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of some others in it."""
    return text[: min([place for one in until if one and (place := text.find(one)) >= 0], default=len(text))]
