"""Spoil documents of the built-in world in ways in which training data go wrong, to recognise the effects."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from fusion.data.curriculum import TRAINING_SEED, Walk
from fusion.data.formats import Sample
from fusion.worlds.shapes import COLOURS, SHAPES, Thing, World, plain_text, render
from fusion.worlds.shapes.sample import Sample as Drawn

TEXT = 0.3  # share of prose in the documents, so that the language model is not forgotten by accident
IMAGES = 240  # images in a folder, without the leaked copies
Messages = list[dict]
Spoil = Callable[[Drawn, Random], Messages]


def as_it_is(drawn: Drawn, rng: Random) -> Messages:
    """Return the document's messages unchanged."""
    return list(drawn.messages)


def misheard(drawn: Drawn, rng: Random) -> Messages:
    """Replace the user's texts by those of another document of the same task."""
    other = World().sample(np.random.default_rng(rng.getrandbits(60)), drawn.task)
    words = [
        block
        for turn in other.messages
        if turn["role"] == "user"
        for block in turn["content"]
        if block["type"] == "text"
    ]
    return [
        replaced(turn, "text", lambda: rng.choice(words)) if turn["role"] == "user" else turn for turn in drawn.messages
    ]


def replaced(turn: dict, kind: str, other: Callable[[], dict]) -> dict:
    """Return the turn with every block of type `kind` replaced by `other()`."""
    return {**turn, "content": [other() if block["type"] == kind else block for block in turn["content"]]}


def unchanged(drawn: Drawn, rng: Random) -> Messages:
    """Replace every image after the first by the one before it, so that edits change nothing."""
    messages, last = [], None
    for turn in drawn.messages:
        turn = {**turn, "content": list(turn["content"])}
        for place, block in enumerate(turn["content"]):
            if block["type"] == "image":
                turn["content"][place] = block if last is None else last
                last = turn["content"][place]
        messages.append(turn)
    return messages


def always_alike(drawn: Drawn, rng: Random) -> Messages:
    """Replace the drawn image by one that is always the same for the words, so that diversity collapses.

    It shows one object in the middle, of the colour and the shape that the words name first. Only text_to_image is
    changed.
    """
    if drawn.task != "text_to_image":
        return list(drawn.messages)
    words, scene = drawn.messages[0]["content"][0]["text"].lower(), drawn.scenes[0]
    shape, colour = (
        min(names, key=lambda name: words.find(name) % (len(words) + 1)) for names in (SHAPES, COLOURS)
    )  # names that do not occur come last
    pixels = scene.side // 2
    x, y = ((length - pixels) // 2 for length in scene.image_size)
    alone = replace(
        scene, ground="white", layout="single", things=(Thing(shape, colour, "large", "middle", pixels, x, y),)
    )
    return [drawn.messages[0], {"role": "assistant", "content": [{"type": "image", "image": render(alone)}]}]


def softened(drawn: Drawn, rng: Random, radius: float) -> Messages:
    """Blur all images with this radius, in pixels."""

    def soft(block: dict) -> dict:
        if block["type"] != "image":
            return block
        return {
            "type": "image",
            "image": np.asarray(Image.fromarray(block["image"]).filter(ImageFilter.GaussianBlur(radius))),
        }

    return [{**turn, "content": [soft(block) for block in turn["content"]]} for turn in drawn.messages]


def in_words(drawn: Drawn, rng: Random) -> Messages:
    """Replace the assistant's images by a text, so that requests for images are answered in words."""
    said = {"type": "text", "text": "here it is."}
    return [replaced(turn, "image", lambda: said) if turn["role"] == "assistant" else turn for turn in drawn.messages]


class Spoiled:
    """A source of documents of the built-in world and prose, of which the share `share` is spoiled.

    scrambled: the order of words in spoiled prose is random. seed: two seeds share no documents.
    """

    name = "world"

    def __init__(self, world: World, spoil: Spoil, share: float, scrambled: bool, seed: int = 0):
        self.world, self.spoil, self.share, self.scrambled = world, spoil, share, scrambled
        self.first = seed * 10**8

    def sample(self, index: int) -> Sample:
        """Return document number `index`."""
        index += self.first
        rng, numbers = Random(f"spoiled/{index}"), np.random.default_rng([TRAINING_SEED, index])
        key, spoilt = f"world:{index}", rng.random() < self.share
        if rng.random() < TEXT:
            words = plain_text(numbers)
            return Sample(
                None,
                [{"type": "text", "text": scramble(words, rng) if spoilt and self.scrambled else words}],
                "text",
                key,
            )
        drawn = self.world.sample(numbers)
        messages = self.spoil(drawn, rng) if spoilt else list(drawn.messages)
        return Sample(list(replace(drawn, messages=tuple(messages)).with_pil().messages), None, self.name, key)

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Walk:
        """Return a stream of the documents in order; `seed` is not used."""
        return Walk(self, shard, shards)


def scramble(text: str, rng: Random) -> str:
    """Return the same words in random order."""
    words = text.split(" ")
    rng.shuffle(words)
    return " ".join(words)


def write_folder(folder: Path, leaks: float, seed: int = 0) -> None:
    """Write a folder of captioned images of the world with leaks across the split.

    leaks: the share of the images of which another copy is saved, as JPEG, under another name.
    """
    (folder / "images").mkdir(parents=True)
    world, rng, rows = World(), Random(f"folder/{seed}"), []
    for index in range(IMAGES):
        drawn = world.sample(np.random.default_rng([77 + seed, index]), "text_to_image").with_pil()
        words, image = drawn.messages[0]["content"][0]["text"], drawn.messages[1]["content"][0]["image"]
        rows.append({"file_name": f"images/{index}.png", "text": words})
        image.save(folder / rows[-1]["file_name"])
        if rng.random() < leaks:
            rows.append({"file_name": f"images/again{index}.jpg", "text": words})
            image.save(folder / rows[-1]["file_name"], quality=95, subsampling=0)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
