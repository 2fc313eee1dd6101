"""Architectures by name: built for what they will see, matched in parameters, refused in one line."""

import pytest

from fusion.architectures.registry import ARCHITECTURES, build, matched

SIZES = {"width": 48, "layers": 3, "heads": 4}


def parameters(name: str, settings: dict) -> int:
    return sum(p.numel() for p in build(name, settings, 3, 32, 24).parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("target", [600_000, 3_000_000])
def test_a_width_is_found_for_a_number_of_parameters(name, target):
    settings = matched(name, SIZES | {"patch_size": 4}, target, 3, 32, 24)
    count = parameters(name, settings)
    assert 0.75 < count / target < 1.33 and settings["width"] % 16 == 0
    wider, narrower = (parameters(name, settings | {"width": settings["width"] + step}) for step in (16, -16))
    assert abs(count - target) <= 1.05 * min(abs(wider - target), abs(narrower - target))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="architecture 'dlt': choose one of dit, "):
        build("dlt", SIZES, 3, 32, 24)
    with pytest.raises(ValueError, match="dit has no setting 'depth'; it has base_grid, channels"):
        build("dit", SIZES | {"depth": 3}, 3, 32, 24)
