"""The tasks of the world: each function draws one document at random."""

import numpy as np

from fusion.data.shapes.options import Options
from fusion.data.shapes.render import render
from fusion.data.shapes.sample import Sample, assistant, user
from fusion.data.shapes.scene import Scene, sample_scene
from fusion.data.shapes.words import ask_for_picture, caption


def any_scene(rng: np.random.Generator, options: Options) -> Scene:
    """A scene as the options weigh them."""
    return sample_scene(rng, options.counts, options.picture_sizes, options.held_out)


def text_to_image(rng: np.random.Generator, options: Options) -> Sample:
    """The user asks for a picture; the assistant answers with just the picture."""
    scene = any_scene(rng, options)
    told = caption(rng, scene)
    messages = (user(ask_for_picture(rng, told.text)), assistant(render(scene)))
    return Sample("text_to_image", messages, (scene,), told.claims, held_out=scene.held_out)


TASKS = {"text_to_image": text_to_image}
