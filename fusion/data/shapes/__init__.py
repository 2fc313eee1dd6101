"""The built-in world: coloured shapes on a plain ground, every task of a unified model, and a judge of pixels."""

from fusion.data.shapes.constants import (
    COLOURS,
    GROUNDS,
    HELD_OUT,
    KINDS,
    PICTURE_SIZES,
    RELATIONS,
    SHAPES,
    WORLD_VERSION,
)
from fusion.data.shapes.expect import Edit, Expectation, Question, Wanted
from fusion.data.shapes.judge import Verdict, check
from fusion.data.shapes.options import Options
from fusion.data.shapes.render import picture, render
from fusion.data.shapes.sample import Sample
from fusion.data.shapes.scene import Scene, Thing
from fusion.data.shapes.vision import Reading, Seen, read
from fusion.data.shapes.words import Caption, caption
from fusion.data.shapes.world import World

__all__ = [
    "COLOURS", "GROUNDS", "HELD_OUT", "KINDS", "PICTURE_SIZES", "RELATIONS", "SHAPES", "WORLD_VERSION",
    "Caption", "Edit", "Expectation", "Options", "Question", "Reading", "Sample", "Scene", "Seen", "Thing", "Verdict", "Wanted",
    "World", "caption", "check", "picture", "read", "render",
]  # fmt: skip
