"""eval.beside: who is best at what is said where the items tell them apart, and not where they do not."""

import json
import shutil
from dataclasses import replace

import jaxtyping
import pytest

from fusion.common.statistics import Score
from fusion.evaluation import run
from fusion.evaluation import side_by_side as beside
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import SUITES
from tests.evaluation.test_eval_run import COUNT, Ignorant, Perfect, evaluated


class TextToImage(Perfect):
    """Only draws, and every other prompt right."""

    can = frozenset({"draw"})

    def draw(self, prompts, seeds, size):
        right = super().draw(prompts, seeds, size)
        wrong = Ignorant.draw(self, prompts, seeds, size)
        return [right[i] if seed % 2 else wrong[i] for i, seed in enumerate(seeds)]


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Finished ones, small."""
    folder = tmp_path_factory.mktemp("evaluations")
    subjects = {"all": Perfect(), "nothing": Ignorant(), "half": TextToImage(), "other": Perfect(SPLITS["development"])}
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # as in tests/evaluation/test_eval_run.py
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run.COUNTS, "quick", lambda suite: COUNT)
        for name, subject in subjects.items():
            evaluated(patch, folder / name, subject, split="development" if name == "other" else "scored")
    jaxtyping.config.update("jaxtyping_disable", before)
    shutil.copytree(folder / "all", folder / "again")
    return folder


def test_the_best_of_each_suite_is_told_and_who_is_level_with_it(evaluations):
    names = ("nothing", "half", "all", "again")
    found = {one.name: one for one in beside.standings(beside.opened([evaluations / name for name in names]))}
    finer = {"drawing": "drawing (in parts)", "edits": "edits (in parts)"}
    assert list(found) == [name for suite in SUITES for name in (suite.name, finer.get(suite.name)) if name]
    assert {one.first for one in found.values()} == {"all"}
    assert all(one.level == ("again",) for one in found.values())
    assert set(found["drawing"].scores) == set(names) and set(found["edits"].scores) == {"nothing", "all", "again"}
    assert found["drawing"].said == "all, with no difference seen to again"
    parts = found["drawing (in parts)"].scores
    assert parts["all"].value == 1 and parts["half"].value >= found["drawing"].scores["half"].value


def test_the_page_shows_the_same_items_and_the_figures_are_kept(evaluations, tmp_path, capsys):
    out = tmp_path / "page"
    assert beside.main(["-o", str(out), *(str(evaluations / name) for name in ("nothing", "half", "all"))]) == 0
    said = capsys.readouterr().out
    assert "drawing" in said and "best: all\n" in said and str(out / "report.html") in said
    page = (out / "report.html").read_text()
    assert "All is best at drawing, drawing (in parts)" in page and "the share of what was asked that is right" in page
    assert page.count("<img") > 3 * beside.ITEMS and "http" not in page.replace("http-equiv", "")
    kept = {one["suite"]: one for one in json.loads((out / "results.json").read_text())}
    assert kept["drawing"]["figures"]["all"]["value"] == 1 and 0.2 < kept["drawing"]["figures"]["half"]["value"] < 0.8
    assert kept["edits"]["first"] == "all" and kept["edits"]["figures"]["all"]["count"] == COUNT


def test_the_first_sentence_says_who_is_best_at_what():
    def standing(name, first, level, *values):
        scores = {who: Score(who, value, 0.0, 1.0, 9) for who, value in zip("abc", values, strict=False)}
        return beside.Standing(name, scores, first, level)

    found = [
        standing("drawing", "b", (), 0.1, 0.9, 0.2),
        standing("edits", "c", ("a",), 0.7, 0.1, 0.8),
        standing("questions", "a", ("b", "c"), 0.5, 0.5, 0.4),
        standing("stories", "a", ("b", "c"), 0.0, 0.0, 0.0),
        standing("alone", "a", (), 0.5),
        standing("more edits", "a", ("c",), 0.9, 0.1, 0.8),
    ]
    said = (
        "B is best at drawing; a and c are best at edits, more edits; no difference seen in questions; nobody can do "
        "stories."
    )
    assert beside._lead("abc", found) == said
    named = [
        beside.Standing(
            "drawing", {"DiT-XL": Score("", 0.9, 0.0, 1.0, 9), "b": Score("", 0.1, 0.0, 1.0, 9)}, "DiT-XL", ()
        )
    ]
    assert beside._lead(["DiT-XL", "b"], named) == "DiT-XL is best at drawing."
    assert [one.said for one in found[2:5]] == ["a, with no difference seen to b, c", "none", "only a"]


def test_what_is_left_of_the_writing_is_a_row_too(evaluations):
    results = beside.opened([evaluations / name for name in ("nothing", "half", "all")])
    assert not any(one.text for one in results.values()) and "perplexity" not in beside.render(
        results, beside.standings(results)
    )
    told = {"nothing": {"before": 2.0, "after": 3.0, "rise": 0.5}, "all": {"before": 2.0, "after": 1.5, "rise": -0.25}}
    results |= {name: replace(results[name], text=text) for name, text in told.items()}
    page = beside.render(results, beside.standings(results))
    assert "In parts, drawing: " in page and "In parts, edits: " in page
    assert "2.00 → 3.00 (+50.0%)" in page and "2.00 → 1.50 (-25.0%)" in page and "perplexity of plain text" in page


def test_what_cannot_be_compared_is_one_line(evaluations, tmp_path, capsys):
    for names, line in (
        (["all"], "give two evaluations or more"),
        (["all", "all"], "give two evaluations or more"),
        (["all", "other"], "other has split=development and all scored"),
        (["all", "missing"], "no finished evaluation there"),
    ):
        assert beside.main(["-o", str(tmp_path / "page"), *(str(evaluations / name) for name in names)]) == 1
        assert line in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
