"""Sampling has one set of defaults, that of fusion.generation.sampling, and rows have one rule for their seeds."""

import inspect

import pytest

from fusion.comparison.contenders import Scored
from fusion.diffusion.text_to_image import TextToImage
from fusion.evaluation import run
from fusion.generation.sampling import Sampling, row_seeds
from fusion.recipes.demo import Scoring
from fusion.recipes.diffusion import TextToImageSamples
from fusion.training.samples import Samples


def test_every_program_draws_with_the_same_defaults():
    names = ("steps", "solver", "shift", "guidance")
    usual = {name: getattr(Sampling(), name) for name in names}
    images = inspect.signature(TextToImage.images).parameters
    assert {name: images[name].default for name in names} == usual and usual["steps"] == 20
    assert images["interval"].default == Sampling().guidance_interval
    for config in (Samples(), Scoring(), TextToImageSamples()):
        assert {name: config.params[name] for name in names} == usual
    assert Samples().params["image_guidance"] == Scoring().params["image_guidance"] == Sampling().image_guidance
    assert Scored().params == run.SAMPLING_PARAMETERS == {name: usual[name] for name in ("steps", "guidance")}


def test_what_a_config_says_is_what_draws():
    samples = Samples(steps=3, solver="heun", shift=2.0, guidance=1.5, image_guidance=1.2, max_new_tokens=9)
    assert Sampling(**samples.params).steps == 3 and Sampling(**samples.params).solver == "heun"
    said = {
        "steps": 3,
        "solver": "heun",
        "shift": 2.0,
        "guidance": 1.5,
        "image_guidance": 1.2,
        "max_new_tokens": 9,
        "max_images": 2,
    }
    assert samples.params == said
    assert "image_guidance" not in TextToImageSamples().params


def test_rows_have_seeds_that_follow_each_other_or_those_that_are_given():
    assert row_seeds(5, 3) == [5, 6, 7] == row_seeds([5, 6, 7], 3) == row_seeds(range(5, 8), 3)
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        row_seeds([1, 2], 3)
