"""GenEval's rules (Ghosh et al., arXiv 2310.11513): whether detected objects are what the prompt asks for.

They are those of `evaluation/evaluate_images.py` in github.com/djghosh13/geneval, whose options and their defaults are
`Rules`. Numbers are float32 there, as they come from the detector, and so they are here: a score of 0.3 is not above
0.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.evaluation.benchmarks.common.detections import Found

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

# COCO's 80 in the order of a detector's outputs, under the names of GenEval's object_names.txt: computer mouse, tv
# remote and computer keyboard have other names elsewhere, so that classes are identified by index, never by name.
CLASSES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking "
    "meter,bench,bird,cat,dog,horse,"
    "sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports "
    "ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine "
    "glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv "
    "remote,computer keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)


@dataclass(frozen=True)
class Rules:
    """The options of GenEval's evaluation, with the official defaults.

    threshold: objects count above this confidence. counting_threshold: the same for prompts of the tag counting.
    max_objects: of a class, the most confident. max_overlap: of these, an object is dropped if its intersection over
    union with a more confident one is at least this; 1 keeps all. position_threshold: least distance of centres, as a
    multiple of the sum of both objects' sizes. bgcolor: the background on which CLIP sees an object whose colour is
    requested, or `original` for the image itself. crop: whether CLIP sees the object's box alone.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1
    bgcolor: str = "#999"
    crop: bool = True


def kept(objects: Sequence[Found], tag: str, rules: Rules) -> list[Found]:
    """Return the objects of one class that count, the most confident first; tag: of the prompt."""
    scores = np.array([one.score for one in objects], dtype=np.float32)
    order = np.argsort(scores)[::-1]
    order = order[scores[order] > (rules.counting_threshold if tag == "counting" else rules.threshold)]
    left, found = [objects[place] for place in order[: rules.max_objects]], []
    while left:
        best, *left = left
        found.append(best)
        left = [one for one in left if rules.max_overlap == 1 or overlap(best, one) < rules.max_overlap]
    return found


def overlap(one: Found, other: Found) -> float:
    """Return the intersection over union of two boxes that include their last pixel."""

    def area(left, top, right, bottom):
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    a, b = np.array([one.box, other.box], dtype=np.float32)
    both = area(*np.maximum(a, b)[:2], *np.minimum(a, b)[2:])
    either = area(*a) + area(*b) - both
    return both / either if either else 0


def relations(one: Found, other: Found, margin: float) -> set[str]:
    """Return where `one` is relative to `other`: none, one or two of left of, right of, above and below.

    Along an axis, the distance of the centres beyond `margin` times the sum of both sizes has to be more than half of
    their whole distance.
    """
    corners = np.array([one.box, other.box], dtype=np.float32).reshape(2, 2, 2)  # object, corner, axis
    sizes = np.abs(corners[:, 1] - corners[:, 0])
    apart = np.subtract(*corners.mean(axis=1))
    beyond = np.maximum(np.abs(apart) - margin * (sizes[0] + sizes[1]), 0) * np.sign(apart)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    x, y = beyond / np.linalg.norm(apart)
    sides = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, true in sides.items() if true}


def mistakes(metadata: Mapping, objects: Mapping[str, Sequence[Found]], rules: Rules) -> list[str]:
    """Return what is wrong with an image, in the official words; [] where it is right.

    metadata: a line of the prompts file; of `include` every clause has to hold, of `exclude` none. objects: those that
    count, by class, as `kept` orders them; a clause considers its `count` most confident ones alone. Raises ValueError
    where a colour is requested but was not classified.
    """
    said, groups = [], []
    for clause in metadata.get("include", []):
        group = objects.get(clause["class"], [])[: clause["count"]]
        wrong = (
            _too_few(clause, group)
            or _miscoloured(clause, group)
            or _misplaced(clause, group, groups, rules.position_threshold)
        )
        groups.append(None if wrong else group)
        said += [wrong] if wrong else []
    for clause in metadata.get("exclude", []):
        if (count := len(objects.get(clause["class"], []))) >= clause["count"]:
            said.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return said


def _too_few(clause: Mapping, group: Sequence[Found]) -> str | None:
    enough = len(group) >= clause["count"]
    return None if enough else f"expected {clause['class']}>={clause['count']}, found {len(group)}"


def _miscoloured(clause: Mapping, group: Sequence[Found]) -> str | None:
    if "color" not in clause:
        return None
    colours = [one.colour for one in group]
    if None in colours:
        raise ValueError(
            f"nobody looked at the colour of a {clause['class']}: detections need it where a prompt asks for it"
        )
    right = colours.count(clause["color"])
    if right >= clause["count"]:
        return None
    seen = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)
    return (
        f"expected {clause['color']} {clause['class']}>={clause['count']}, found {right} {clause['color']}; and {seen}"
    )


def _misplaced(clause: Mapping, group: Sequence[Found], groups: Sequence, margin: float) -> str | None:
    """Return what is wrong unless each object is placed as requested relative to each object of the target's group."""
    if "position" not in clause:
        return None
    wanted, target = clause["position"]
    if groups[target] is None:
        return f"no target for {clause['class']} to be {wanted}"
    for one in group:
        for other in groups[target]:
            if wanted not in (found := relations(one, other, margin)):
                return f"expected {clause['class']} {wanted} target, found {' and '.join(sorted(found))} target"
    return None
