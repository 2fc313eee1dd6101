"""Another scene of which a caption is true, so that few texts go with endless images."""

from dataclasses import replace

import numpy as np

from fusion.worlds.shapes.chance import pick
from fusion.worlds.shapes.constants import GROUNDS
from fusion.worlds.shapes.expect import Expectation
from fusion.worlds.shapes.render import render
from fusion.worlds.shapes.sample import Sample, assistant
from fusion.worlds.shapes.scene import Scene, place_thing


def redrawn(rng: np.random.Generator, sample: Sample) -> Sample:
    """Draw the image of a text-to-image document anew: the words stay, what they leave open changes. Documents of other
    tasks are returned as they are."""
    if sample.task != "text_to_image" or sample.expectation is None:
        return sample
    scene = another(rng, sample.scenes[0], sample.expectation)
    return replace(sample, scenes=(scene,), messages=(*sample.messages[:-1], assistant(render(scene))))


def another(rng: np.random.Generator, scene: Scene, claims: Expectation) -> Scene:
    """Return a scene with the same kinds of objects that fulfils the claims; ground, sizes, jitter and, where no place
    is claimed, places are new."""
    sized = any(wanted.size for wanted in claims.wanted)
    placed = claims.relations or any(wanted.place for wanted in claims.wanted)
    places = [thing.place for thing in scene.things]
    if not placed:
        places = [places[i] for i in rng.permutation(len(places))]
    things = [
        place_thing(
            rng,
            scene.image_size,
            scene.layout,
            (thing.shape, thing.colour),
            thing.size if sized else pick(rng, ("small", "large")),
            place,
        )
        for thing, place in zip(scene.things, places, strict=True)
    ]
    ground = scene.ground if claims.ground else pick(rng, tuple(GROUNDS))
    return replace(scene, ground=ground, things=tuple(things))
