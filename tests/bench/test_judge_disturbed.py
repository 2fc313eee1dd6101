"""bench.judge: disturbances grow and repeat, shares are right, a faulty judge shows, every output is written."""

import json

import numpy as np
import pytest

from bench import judge as program
from bench.disturb import DISTURBANCES
from bench.judge_measure import Tally, measure, near_miss
from bench.judge_page import page, sheet, stands
from fusion.worlds.shapes import judge, render
from fusion.worlds.shapes.scene import sample_scene
from fusion.worlds.shapes.words import all_of

pytestmark = pytest.mark.usefixtures("unchecked")


def scene_of(number, count=4):
    return sample_scene(np.random.default_rng(number), {count: 1.0}, {(32, 32): 1.0})


@pytest.mark.parametrize("one", DISTURBANCES, ids=lambda one: one.name)
def test_a_disturbance_grows_with_its_strength_and_repeats(one):
    image = render(scene_of(0))
    assert list(one.strengths) == sorted(one.strengths) and len(one.strengths) == 6
    made = [one.done(image, strength, np.random.default_rng(3)) for strength in one.strengths]
    again = [one.done(image, strength, np.random.default_rng(3)) for strength in one.strengths]
    assert all(np.array_equal(first, second) for first, second in zip(made, again))
    far = [np.abs(disturbed.astype(float) - image).mean() for disturbed in made]
    assert far == sorted(far) and far[0] < 0.6 * far[-1]
    assert all(disturbed.shape == image.shape and disturbed.dtype == np.uint8 for disturbed in made)


def test_shifted_colours_are_one_vector_of_the_length_that_is_said():
    shift = next(one for one in DISTURBANCES if one.name == "colours")
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    moved = shift.done(grey, 40, np.random.default_rng(1)).astype(float) - grey
    assert np.ptp(moved, axis=(0, 1)).max() == 0 and np.linalg.norm(moved[0, 0]) == pytest.approx(40, abs=1)


def test_clean_scenes_are_read_and_near_misses_are_not_passed():
    for number in range(40):
        rng = np.random.default_rng(number)
        scene = scene_of(number, count=1 + number % 4)
        false = near_miss(rng, scene)
        assert sum(one != two for one, two in zip(false.wanted, all_of(scene).wanted)) == 1
        tally = Tally()
        tally.add(scene, false, render(scene))
        assert {name: score.value for name, score in tally.scores.items()} == {
            "precision": 1,
            "recall": 1,
            "exact": 1,
            "false passed": 0,
        }


def test_what_is_named_wrongly_or_elsewhere_is_no_hit():
    scene = scene_of(5)
    first = scene.things[0]
    other = next(
        colour for colour in ("red", "blue", "green") if colour not in {thing.colour for thing in scene.things}
    )
    tally = Tally()
    tally.add(scene, near_miss(np.random.default_rng(0), scene), render(scene.with_thing(0, colour=other)))
    assert (tally.right, tally.named, tally.there, tally.exact) == ([3], [4], [4], [False])
    assert dict(tally.misread) == {f"{first.colour} {first.shape} as {other} {first.shape}": 1}
    assert tally.found[first.shape].count(False) == 1 and tally.found[first.colour].count(False) == 1
    moved = scene.with_thing(0, x=first.x + (4 if first.x < 8 else -4))
    tally.add(scene, near_miss(np.random.default_rng(0), scene), render(moved))
    assert tally.right[1] == 3


def test_a_judge_that_is_sure_of_everything_passes_what_is_false(monkeypatch):
    class Sure:
        ok = True

    monkeypatch.setattr(judge, "check", lambda image, expectation: Sure())
    tally = measure(3, "32x32").tallies["blur"][1.5]
    assert tally.scores["exact"].value == tally.scores["false passed"].value == 1 and tally.scores["recall"].value == 0


def test_the_program_writes_page_figures_and_sheet_and_nothing_over(tmp_path, capsys):
    out = tmp_path / "judge"
    assert program.main(["-o", str(out), "--scenes", "5"]) == 0
    said = capsys.readouterr().out
    assert "exact scenes" in said and str(out / "report.html") in said
    found = json.loads((out / "results.json").read_text())
    rows = {(row["disturbance"], row["strength"]): row for row in found["rows"]}
    assert (
        len(rows) == 7 * len(DISTURBANCES)
        and rows["blur", 0]["exact"]["value"] == 1 == rows["JPEG", 0]["recall"]["value"]
    )
    assert rows["blur", 1.5]["precision"] is None and rows["blur", 1.5]["exact"]["value"] == 0
    assert found["command"] == "python -m bench.judge --scenes 5 --size 32x32 --seed 0"
    report = (out / "report.html").read_text()
    assert report.count("<svg") == len(DISTURBANCES) and report.count("<img") == len(DISTURBANCES) * 7 * 4
    assert 'src="data:' in report and 'src="http' not in report
    assert (out / "judge.png").stat().st_size > 5000
    assert program.main(["-o", str(out)]) == 1 and "holds something" in capsys.readouterr().err
    assert program.main(["-o", str(tmp_path / "none"), "--scenes", "0"]) == 1 and "scenes=0" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_page_says_up_to_where_scenes_are_read():
    found = measure(4, "32x32")
    blur, *_ = stands(found)
    assert blur.startswith("blur") and "up to 0.75" in blur and "fewer than half of all at 1" in blur
    assert all(line in page(found).replace("&gt;", ">") for line in stands(found)) and sheet(found).width > 800
