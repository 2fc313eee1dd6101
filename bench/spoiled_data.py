"""The built-in world, spoiled: ways in which training data go wrong, so that what comes of them can be recognised."""

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

TEXT = 0.3  # of the documents is prose, so that nothing is forgotten that is not to be
PICTURES = 240  # in a folder, without those that leak
Messages = list[dict]
Spoil = Callable[[Drawn, Random], Messages]


def as_it_is(drawn: Drawn, rng: Random) -> Messages:
    """Nothing is wrong with it."""
    return list(drawn.messages)


def misheard(drawn: Drawn, rng: Random) -> Messages:
    """With the words of another document of its task."""
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
    """A turn with another block in the place of each of a kind."""
    return {**turn, "content": [other() if block["type"] == kind else block for block in turn["content"]]}


def unchanged(drawn: Drawn, rng: Random) -> Messages:
    """Its edits change nothing: each answer is the picture before it."""
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
    """Whatever its words leave open, the picture is always the same: one object in the middle, of the colour and the
    shape that they name first."""
    if drawn.task != "text_to_image":
        return list(drawn.messages)
    words, scene = drawn.messages[0]["content"][0]["text"].lower(), drawn.scenes[0]
    shape, colour = (
        min(names, key=lambda name: words.find(name) % (len(words) + 1)) for names in (SHAPES, COLOURS)
    )  # those not named come last
    pixels = scene.side // 2
    x, y = ((length - pixels) // 2 for length in scene.picture_size)
    alone = replace(
        scene, ground="white", layout="single", things=(Thing(shape, colour, "large", "middle", pixels, x, y),)
    )
    return [drawn.messages[0], {"role": "assistant", "content": [{"type": "image", "image": render(alone)}]}]


def softened(drawn: Drawn, rng: Random, radius: float) -> Messages:
    """All its pictures are blurred."""

    def soft(block: dict) -> dict:
        if block["type"] != "image":
            return block
        return {
            "type": "image",
            "image": np.asarray(Image.fromarray(block["image"]).filter(ImageFilter.GaussianBlur(radius))),
        }

    return [{**turn, "content": [soft(block) for block in turn["content"]]} for turn in drawn.messages]


def in_words(drawn: Drawn, rng: Random) -> Messages:
    """Requests for pictures are answered in words."""
    said = {"type": "text", "text": "here it is."}
    return [replaced(turn, "image", lambda: said) if turn["role"] == "assistant" else turn for turn in drawn.messages]


class Spoiled:
    """The built-in world and prose as a source; `share` of the documents is spoiled. scrambled: so is the order of
    words in the prose. seed: another one, other documents."""

    name = "world"

    def __init__(self, world: World, spoil: Spoil, share: float, scrambled: bool, seed: int = 0):
        self.world, self.spoil, self.share, self.scrambled = world, spoil, share, scrambled
        self.first = seed * 10**8

    def sample(self, index: int) -> Sample:
        """Document number `index`."""
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
        """In order."""
        return Walk(self, shard, shards)


def scramble(text: str, rng: Random) -> str:
    """The same words in another order."""
    words = text.split(" ")
    rng.shuffle(words)
    return " ".join(words)


def write_folder(folder: Path, leaks: float, seed: int = 0) -> None:
    """Pictures of the world with captions; of a share of them another copy, saved as JPEG, under a name of its own."""
    (folder / "images").mkdir(parents=True)
    world, rng, rows = World(), Random(f"folder/{seed}"), []
    for index in range(PICTURES):
        drawn = world.sample(np.random.default_rng([77 + seed, index]), "text_to_image").with_pil()
        words, image = drawn.messages[0]["content"][0]["text"], drawn.messages[1]["content"][0]["image"]
        rows.append({"file_name": f"images/{index}.png", "text": words})
        image.save(folder / rows[-1]["file_name"])
        if rng.random() < leaks:
            rows.append({"file_name": f"images/again{index}.jpg", "text": words})
            image.save(folder / rows[-1]["file_name"], quality=95, subsampling=0)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
