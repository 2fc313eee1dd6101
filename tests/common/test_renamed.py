"""Files and commands from before names changed go on being read; a config says the new name."""

import pytest

import fusion.diffusion
from fusion.common.config import keys, load_config
from fusion.common.renamed import renamed
from fusion.recipes.diffusion import Diffusion


def test_records_of_before_are_read_with_todays_keys():
    before = {"knobs": {"steps": 3}, "seed": 0, "scores": [1.0]}
    assert renamed(before) == {"params": {"steps": 3}, "seed": 0, "scores": [1.0]}
    assert renamed(renamed(before)) == renamed(before)


def test_a_config_of_before_is_read_and_says_the_new_key(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("painter: {architecture: uvit, size: [32, 16]}\n")
    with pytest.warns(UserWarning, match=r"old.yaml: painter: is called text_to_image: now"):
        config = load_config(Diffusion, file)
    assert config.text_to_image.architecture == "uvit" and list(config.text_to_image.size) == [32, 16]
    with pytest.warns(UserWarning, match=r"painter: is called text_to_image: now"):
        assert load_config(Diffusion, None, ["painter.architecture=dit"]).text_to_image.architecture == "dit"
    with pytest.warns(UserWarning):
        assert keys(file, ["painter.codec=pixel"]) == {"text_to_image"}


def test_a_name_of_before_says_the_new_one():
    with pytest.raises(AttributeError, match=r"load_painter.*it is called load_text_to_image now"):
        fusion.diffusion.load_painter  # noqa: B018
