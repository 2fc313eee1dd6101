"""The table of architectures: one entry each, read by everything else, and covered by every table of the tests."""

import re
from pathlib import Path

import pytest

import fusion.diffusion
from fusion.diffusion.architectures import ARCHITECTURES, CLASSES, COUNTERPARTS, PIPELINES
from fusion.testing.reference_networks import LEARNERS, REFERENCES, SMALL
from tests.diffusion.conftest import CASES

LIBRARY = Path(fusion.diffusion.__file__).parents[1]
OWN = {"diffusion/architectures.py", "testing/reference_networks.py"}  # the table, and the small networks of the tests


def test_no_name_stands_for_two_things():
    assert len(CLASSES) == 2 * len(ARCHITECTURES)
    assert len(COUNTERPARTS) == sum(len(one.diffusers.classes) for one in ARCHITECTURES.values() if one.diffusers)
    assert len(PIPELINES) == sum(len(one.pipelines) for one in ARCHITECTURES.values())


def test_networks_are_known_to_the_table_alone():
    """A network's module is imported by the table and by other networks: whoever else needs it, asks the table."""
    modules = {one.network.__module__.rpartition(".")[2] for one in ARCHITECTURES.values()}
    assert len(modules) == len(ARCHITECTURES)
    places = re.compile(rf"networks\.({'|'.join(modules)})\b|networks import [(\w\s,]*\b({'|'.join(modules)})\b")
    knowing = {str(path.relative_to(LIBRARY)) for path in LIBRARY.rglob("*.py") if places.search(path.read_text())}
    assert {path for path in knowing if not path.startswith("diffusion/networks/")} == OWN


def test_every_class_is_a_name_of_the_package():
    assert all(getattr(fusion.diffusion, name) is kind for name, kind in CLASSES.items())
    assert set(CLASSES) < set(fusion.diffusion.__all__) < set(dir(fusion.diffusion))
    with pytest.raises(AttributeError, match="no attribute 'DlT'"):
        fusion.diffusion.DlT  # noqa: B018


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_in_the_tables_of_the_tests(name):
    one = ARCHITECTURES[name]
    assert any(key.split(",")[0] == name for key in LEARNERS), "it learns"
    assert any(type(make()) is one.network for make in SMALL.values()), "it is tried in small"
    if one.diffusers:
        assert set(one.diffusers.classes) <= {case.name for case in REFERENCES.values()}, "it is compared with theirs"
    if one.pipelines:
        sampled = {make.__annotations__["return"].__name__ for make, _ in CASES.values()}
        assert sampled & set(one.pipelines), "its pipelines are sampled"
