"""The number of supported LLM families: counted once, in docs/families.md, and the same wherever it is printed."""

import re
from pathlib import Path

import pytest

from bench.families import Verdict, page
from fusion.testing.tiny_llms import tiny_config
from fusion.unified.backbone import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/families.md").read_text(encoding="utf-8")
VERDICTS = [
    Verdict(name, word == "passes", note.strip())
    for name, word, note in re.findall(r"^\| `(\S+)` \| (passes|refused) \|(.*) \|$", PAGE, re.MULTILINE)
]


def test_the_page_is_what_its_table_says():
    (version,) = re.findall(r"transformers (\d+\.\d+\.\d+)", PAGE)
    assert len(VERDICTS) > 150 and page(VERDICTS, version) == PAGE


def test_a_second_name_is_no_family():
    for verdict in VERDICTS:
        if verdict.passes:
            family = tiny_config(verdict.family).model_type
            assert verdict.note == ("" if family == verdict.family else f"a second name of `{family}`")
    assert {verdict.family for verdict in VERDICTS if verdict.passes and verdict.counts} == set(FAMILIES)


@pytest.mark.parametrize("file", ["README.md", "docs/guide/python.md"])
def test_the_number_of_families_is_that_of_the_adapters(file):
    said = re.findall(r"(\d+) decoder families", (ROOT / file).read_text(encoding="utf-8"))
    assert said and set(map(int, said)) == {len(FAMILIES)}
