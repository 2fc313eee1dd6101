"""GenEval's rules, on images made of detections: all six tags, and every threshold on both of its sides."""

from collections import Counter

import numpy as np
import pytest

from fusion.evaluation.benchmarks.common.detections import Found
from fusion.evaluation.benchmarks.geneval import read_prompts
from fusion.evaluation.benchmarks.judges.geneval_rules import CLASSES, TAGS, Rules, kept, mistakes, overlap, relations

RULES = Rules()


def above(value: float) -> float:
    """The next number of 32 bits."""
    return float(np.nextafter(np.float32(value), np.float32(1)))


def at(
    x: float, y: float, score: float = 0.95, width: float = 10, height: float = 10, colour: str | None = None
) -> Found:
    """An object by its centre."""
    return Found((x - width / 2, y - height / 2, x + width / 2, y + height / 2), score, colour)


def sure(*scores: float) -> list[Found]:
    return [at(50, 50, score) for score in scores]


def seen(*colours: str, scores: tuple[float, ...] = (0.95, 0.9, 0.85)) -> list[Found]:
    return [at(50, 50, score, colour=colour) for colour, score in zip(colours, scores, strict=False)]


def asks(tag: str, *include: dict, exclude: tuple[dict, ...] = ()) -> dict:
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def one(name: str, **more) -> dict:
    return {"class": name, "count": 1} | more


def count_of(name: str, count: int) -> dict:
    return asks("counting", {"class": name, "count": count}, exclude=({"class": name, "count": count + 1},))


SINGLE = asks("single_object", one("bench"))
TWO = asks("two_object", one("bench"), one("cow"))
CLOCKS = count_of("clock", 2)
RED = asks("colors", one("cake", color="red"))
BOTH = asks("color_attr", one("apple", color="red"), one("bowl", color="blue"))
SAME_CLASS = asks("color_attr", one("apple", color="red"), one("apple", color="blue"))
TWO_RED = asks("colors", {"class": "cake", "count": 2, "color": "red"})
BENCH, COW = {"bench": sure(0.95)}, {"cow": sure(0.95)}


def right_of(side: str = "right of") -> dict:
    return asks("position", one("couch"), one("dog", position=[side, 0]))


def dog(x: float, y: float, **more) -> dict:
    """A dog somewhere from a couch at (100, 100), both 10 x 10: centres have to be 2 apart before anything counts."""
    return {"couch": [at(100, 100)], "dog": [at(100 + x, 100 + y, **more)]}


# asked, found, the official reasons; no reason is a right image
CASES = {
    "single: there": (SINGLE, BENCH, []),
    "single: nothing there": (SINGLE, {}, ["expected bench>=1, found 0"]),
    "single: something else": (SINGLE, COW, ["expected bench>=1, found 0"]),
    "single: at the threshold": (SINGLE, {"bench": sure(0.3)}, ["expected bench>=1, found 0"]),
    "single: at the threshold in 32 bits": (
        SINGLE,
        {"bench": sure(float(np.float32(0.3)))},
        ["expected bench>=1, found 0"],
    ),
    "single: just above the threshold": (SINGLE, {"bench": sure(above(0.3))}, []),
    "single: several are right, too": (SINGLE, {"bench": sure(0.9, 0.8, 0.7)}, []),
    "two: both": (TWO, BENCH | COW, []),
    "two: no first": (TWO, COW, ["expected bench>=1, found 0"]),
    "two: no second": (TWO, BENCH, ["expected cow>=1, found 0"]),
    "two: none": (TWO, {}, ["expected bench>=1, found 0", "expected cow>=1, found 0"]),
    "two: second at the threshold": (TWO, BENCH | {"cow": sure(0.3)}, ["expected cow>=1, found 0"]),
    "two: second just above": (TWO, BENCH | {"cow": sure(above(0.3))}, []),
    "counting: as many": (CLOCKS, {"clock": sure(0.95, 0.95)}, []),
    "counting: one too few": (CLOCKS, {"clock": sure(0.95)}, ["expected clock>=2, found 1"]),
    "counting: none": (CLOCKS, {}, ["expected clock>=2, found 0"]),
    "counting: one too many": (CLOCKS, {"clock": sure(0.95, 0.95, 0.95)}, ["expected clock<3, found 3"]),
    "counting: the last at its threshold": (CLOCKS, {"clock": sure(0.95, 0.9)}, ["expected clock>=2, found 1"]),
    "counting: the last just above": (CLOCKS, {"clock": sure(0.95, above(0.9))}, []),
    "counting: one more at its threshold": (CLOCKS, {"clock": sure(0.95, 0.95, 0.9)}, []),
    "counting: one more just above": (CLOCKS, {"clock": sure(0.95, 0.95, above(0.9))}, ["expected clock<3, found 3"]),
    "counting: above the usual threshold alone": (CLOCKS, {"clock": sure(0.95, 0.5)}, ["expected clock>=2, found 1"]),
    "counting: other things do not count": (CLOCKS, {"clock": sure(0.95, 0.95)} | COW, []),
    "counting: no more than sixteen are seen": (count_of("clock", 16), {"clock": sure(*[0.95] * 17)}, []),
    "counting: and so no seventeen": (
        count_of("clock", 17),
        {"clock": sure(*[0.95] * 17)},
        ["expected clock>=17, found 16"],
    ),
    "colors: right": (RED, {"cake": seen("red")}, []),
    "colors: wrong": (RED, {"cake": seen("pink")}, ["expected red cake>=1, found 0 red; and 1 pink"]),
    "colors: nothing there": (RED, {}, ["expected cake>=1, found 0"]),
    "colors: at the threshold": (RED, {"cake": seen("red", scores=(0.3,))}, ["expected cake>=1, found 0"]),
    "colors: just above": (RED, {"cake": seen("red", scores=(above(0.3),))}, []),
    "colors: the most confident is looked at": (
        RED,
        {"cake": seen("blue", "red")},
        ["expected red cake>=1, found 0 red; and 1 blue"],
    ),
    "colors: and no other": (RED, {"cake": seen("red", "blue")}, []),
    "colors: wherever it stands": (RED, {"cake": seen("blue", "red", scores=(0.8, 0.9))}, []),
    "colors: two of two": (TWO_RED, {"cake": seen("red", "red")}, []),
    "colors: one of two": (
        TWO_RED,
        {"cake": seen("white", "red", "red")},
        ["expected red cake>=2, found 1 red; and 1 red, 1 white"],
    ),
    "position: right": (right_of(), dog(5, 0), []),
    "position: half of the way is margin": (right_of(), dog(4, 0), ["expected dog right of target, found  target"]),
    "position: less than half of it is": (right_of(), dog(4.1, 0), []),
    "position: all is margin": (right_of(), dog(2, 0), ["expected dog right of target, found  target"]),
    "position: on the other side": (right_of(), dog(-30, 0), ["expected dog right of target, found left of target"]),
    "position: left": (right_of("left of"), dog(-5, 0), []),
    "position: left, half of the way": (
        right_of("left of"),
        dog(-4, 0),
        ["expected dog left of target, found  target"],
    ),
    "position: above": (right_of("above"), dog(0, -5), []),
    "position: above, half of the way": (right_of("above"), dog(0, -4), ["expected dog above target, found  target"]),
    "position: below": (right_of("below"), dog(0, 5), []),
    "position: below, half of the way": (right_of("below"), dog(0, 4), ["expected dog below target, found  target"]),
    "position: across is both, right of": (right_of(), dog(20, 20), []),
    "position: across is both, below": (right_of("below"), dog(20, 20), []),
    "position: and not the opposite": (
        right_of("above"),
        dog(20, 20),
        ["expected dog above target, found below and right of target"],
    ),
    "position: hardly below": (right_of("below"), dog(20, 8), ["expected dog below target, found right of target"]),
    "position: in the same place": (right_of(), dog(0, 0), ["expected dog right of target, found  target"]),
    "position: a wide one needs more room": (
        right_of(),
        dog(5, 0, width=60),
        ["expected dog right of target, found  target"],
    ),
    "position: a high one needs no more beside": (right_of(), dog(5, 0, height=60), []),
    "position: no target": (
        right_of(),
        {"dog": [at(200, 100)]},
        ["expected couch>=1, found 0", "no target for dog to be right of"],
    ),
    "position: not there": (right_of(), {"couch": [at(100, 100)]}, ["expected dog>=1, found 0"]),
    "position: the most confident is looked at": (
        right_of(),
        {"couch": [at(100, 100)], "dog": [at(130, 100, 0.6), at(70, 100, 0.9)]},
        ["expected dog right of target, found left of target"],
    ),
    "position: so with its target": (
        right_of(),
        {"couch": [at(160, 100, 0.6), at(100, 100, 0.9)], "dog": [at(130, 100)]},
        [],
    ),
    "position: at the threshold": (right_of(), dog(30, 0, score=0.3), ["expected dog>=1, found 0"]),
    "color_attr: both right": (BOTH, {"apple": seen("red"), "bowl": seen("blue")}, []),
    "color_attr: swapped": (
        BOTH,
        {"apple": seen("blue"), "bowl": seen("red")},
        ["expected red apple>=1, found 0 red; and 1 blue", "expected blue bowl>=1, found 0 blue; and 1 red"],
    ),
    "color_attr: one wrong": (
        BOTH,
        {"apple": seen("red"), "bowl": seen("green")},
        ["expected blue bowl>=1, found 0 blue; and 1 green"],
    ),
    "color_attr: one missing": (BOTH, {"apple": seen("red")}, ["expected bowl>=1, found 0"]),
    "color_attr: one at the threshold": (
        BOTH,
        {"apple": seen("red"), "bowl": seen("blue", scores=(0.3,))},
        ["expected bowl>=1, found 0"],
    ),
    "color_attr: two of a class are one to it": (
        SAME_CLASS,
        {"apple": seen("red", "blue")},
        ["expected blue apple>=1, found 0 blue; and 1 red"],
    ),
}


def why(asked: dict, found: dict, rules: Rules = RULES) -> list[str]:
    return mistakes(asked, {name: kept(several, asked["tag"], rules) for name, several in found.items()}, rules)


@pytest.mark.parametrize(("asked", "found", "reasons"), CASES.values(), ids=CASES)
def test_an_image_is_judged(asked, found, reasons):
    assert why(asked, found) == reasons


def test_every_tag_has_right_and_wrong_images():
    judged = Counter((asked["tag"], not reasons) for asked, _, reasons in CASES.values())
    assert set(judged) == {(tag, right) for tag in TAGS for right in (True, False)} and sum(judged.values()) >= 40


def test_a_whole_group_has_to_stand_right_of_the_whole_other():
    two = [at(130, 100), at(140, 100)]
    asked = asks("position", {"class": "couch", "count": 2}, {"class": "dog", "count": 2, "position": ["right of", 0]})
    assert not why(asked, {"couch": [at(100, 100), at(90, 100)], "dog": two})
    assert why(asked, {"couch": [at(100, 100), at(135, 100, 0.5)], "dog": two}) == [
        "expected dog right of target, found left of target"
    ]
    assert why(asked, {"couch": [at(100, 100), at(90, 100)], "dog": [at(130, 100), at(70, 100)]}) != []


def test_a_target_of_the_wrong_colour_is_none():
    asked = asks("position", one("couch", color="red"), one("dog", position=["right of", 0]))
    found = {"couch": [at(100, 100, colour="blue")], "dog": [at(130, 100)]}
    assert why(asked, found) == ["expected red couch>=1, found 0 red; and 1 blue", "no target for dog to be right of"]


def test_a_colour_that_nobody_looked_at_is_no_wrong_colour():
    with pytest.raises(ValueError, match="nobody looked at the colour of a cake"):
        why(RED, {"cake": sure(0.9)})


def test_overlap_counts_the_last_pixel():
    box = Found((0, 0, 9, 9), 0.9)
    assert overlap(box, box) == 1
    assert overlap(box, Found((5, 0, 14, 9), 0.9)) == pytest.approx(50 / 150)
    assert overlap(box, Found((9, 9, 12, 12), 0.9)) == pytest.approx(1 / (100 + 16 - 1))
    assert overlap(box, Found((10, 0, 19, 9), 0.9)) == 0


FIRST, LARGE, SMALL = (
    Found((0, 0, 9, 9), 0.9),
    Found((0, 0, 9, 4), 0.8),
    Found((0, 5, 4, 9), 0.7),
)  # half and a quarter of the first


@pytest.mark.parametrize(
    ("most", "left"),
    [
        (1.0, [FIRST, LARGE, SMALL]),
        (above(0.5), [FIRST, LARGE, SMALL]),
        (0.5, [FIRST, SMALL]),
        (above(0.25), [FIRST, SMALL]),
        (0.25, [FIRST]),
    ],
)
def test_what_overlaps_too_much_goes(most, left):
    assert overlap(FIRST, LARGE) == 0.5 and overlap(FIRST, SMALL) == 0.25 and overlap(LARGE, SMALL) == 0
    assert kept([SMALL, FIRST, LARGE], "single_object", Rules(max_overlap=most)) == left


def test_what_goes_makes_no_other_go():
    chain = [Found((0, 0, 9, 9), 0.9), Found((4, 0, 13, 9), 0.8), Found((8, 0, 17, 9), 0.7)]  # each overlaps the next
    assert kept(chain, "single_object", Rules(max_overlap=0.3)) == [chain[0], chain[2]]


def test_sixteen_are_chosen_before_any_of_them_goes():
    copies = [Found((0, 0, 9, 9), 0.95)] * 16
    assert len(kept([*copies, Found((50, 50, 59, 59), 0.9)], "single_object", Rules(max_overlap=0.5))) == 1


def test_thresholds_are_options():
    found = sure(0.5, 0.6)
    assert (
        len(kept(found, "colors", Rules(threshold=0.5))) == 1
        and len(kept(found, "counting", Rules(counting_threshold=0.4))) == 2
    )
    assert len(kept(found, "counting", RULES)) == 0 and len(kept(found, "colors", Rules(max_objects=1))) == 1
    assert relations(at(4, 0), at(0, 0), 0.1) == set() and relations(at(4, 0), at(0, 0), 0.05) == {"right of"}


def test_the_official_prompts_are_read(shared_data):
    folder = shared_data / "benchmarks" / "geneval"
    if not folder.is_dir():
        pytest.skip(f"no prompts of GenEval at {folder}")
    prompts = read_prompts(folder / "evaluation_metadata.jsonl")
    assert Counter(asked["tag"] for asked in prompts) == dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
    assert (folder / "object_names.txt").read_text().splitlines() == list(CLASSES)
