"""Architectures by name: built for what they will see, matched in parameters, refused in one line."""

import pytest
import torch

from fusion.diffusion.architectures import ARCHITECTURES
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.registry import Sees, build, matched
from fusion.testing.reference_networks import LEARNERS, small

SIZES = {"width": 48, "layers": 3, "heads": 4}

SEES = Sees(3, 32, 24, layers=2, layer_width=20)


def parameters(name: str, settings: dict) -> int:
    return sum(p.numel() for p in build(name, settings, SEES).parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", [2_000_000, 6_000_000])
def test_a_width_is_found_for_a_number_of_parameters(name, target):
    settings = matched(name, small(name, patch_size=4) | {"heads": 4}, target, SEES)
    count = parameters(name, settings)
    assert 0.75 < count / target < 1.33 and settings["width"] % 8 == 0
    wider, narrower = (parameters(name, settings | {"width": settings["width"] + step}) for step in (8, -8))
    assert abs(count - target) <= 1.05 * min(abs(wider - target), abs(narrower - target))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="architecture 'dlt': choose one of unet, dit, "):
        build("dlt", SIZES, SEES)
    with pytest.raises(ValueError, match="dit has no setting 'depth'; it has base_grid, channels"):
        build("dit", SIZES | {"depth": 3}, SEES)
    with pytest.raises(
        ValueError, match="this network reads layers of a language model: give a text encoder its layers"
    ):
        build("hidream", SIZES, Sees(3, 32, 24))


def test_heads_turn_in_the_shares_of_the_published_networks():
    for name, head, axes in (
        ("flux", 128, (16, 56, 56)),
        ("flux2", 128, (32, 32, 32, 32)),
        ("hidream", 128, (64, 32, 32)),
        ("flux", 20, (4, 8, 8)),
    ):
        config = build(name, {"width": 2 * head, "heads": 2, "layers": 1, "single": 3}, SEES).config
        assert config.axes == axes
    assert config.text_mask and (config.channels, config.text_width, config.pooled_width) == (3, 32, 24)
    assert build("hidream", {"width": 32, "heads": 2, "layers": 1, "single": 3}, SEES).config.reads == (0, 0, 1, 1)


@pytest.mark.parametrize("name", LEARNERS)
def test_they_learn_under_autocast_too(name):
    torch.manual_seed(0)
    model, here = LEARNERS[name](Sees(3, 32, 24, layers=3, layer_width=20)), torch.ones(2, 5, dtype=torch.bool)
    cond = Conditioning(
        torch.randn(2, 5, 32), here, torch.randn(2, 24), layers=torch.randn(3, 2, 5, 20), layers_mask=here
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = (model(torch.randn(2, 3, 32, 32), torch.rand(2), cond) - 1).square().mean()
    loss.backward()
    assert loss.dtype == torch.float32 and any(
        p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters()
    )
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
