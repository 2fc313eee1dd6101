"""The rules of editing by example: how each changes a scene, which ones explain an example, and which are held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product

import numpy as np
from PIL import Image

from fusion.worlds.shapes import judge
from fusion.worlds.shapes.constants import COLOURS, GROUNDS, KINDS, MOVE, SHAPES
from fusion.worlds.shapes.edits import DIRECTIONS, exchange, shift, unique
from fusion.worlds.shapes.expect import Edit, Wanted
from fusion.worlds.shapes.render import render
from fusion.worlds.shapes.scene import CELLS, Scene, Thing, place_thing
from fusion.worlds.shapes.words import a, all_of

# Object counts of the scenes that a kind of rule applies to; for `add`, the objects are in a grid.
RULE_COUNTS = {
    "recolour": (1, 2, 3, 4),
    "reshape": (1, 2, 3, 4),
    "ground": (1, 2, 3, 4),
    "add": (2, 3),
    "remove": (3, 4),
    "move": (1,),
    "swap": (2,),
}


@dataclass(frozen=True)
class Rule:
    """A change that applies to every image alike; unused fields are None.

    kind: recolour (every `shape` becomes `colour`, everything if `shape` is None), reshape (everything `colour`, or
    everything, turns into `shape`), ground (becomes `ground`), add (a `shape` in `colour` appears at `place`), remove
    (every `shape`, or everything `colour`), move (the single object moves in `direction`), swap (the two objects change
    places).
    """

    kind: str
    shape: str | None = None
    colour: str | None = None
    ground: str | None = None
    place: str | None = None
    direction: str | None = None

    @property
    def words(self) -> str:
        """The rule as an English clause."""
        which = f"every {self.shape}" if self.shape else f"everything {self.colour}"
        return {
            "recolour": f"every{f' {self.shape}' if self.shape else 'thing'} becomes {self.colour}",
            "reshape": f"everything{f' {self.colour}' if self.colour else ''} turns into {a(self.shape or 'shape')}",
            "ground": f"the ground becomes {self.ground}",
            "add": f"{a(f'{self.colour} {self.shape}')} comes at the {self.place}",
            "remove": f"{which} goes away",
            "move": f"the object goes {self.direction}",
            "swap": "the two objects change places",
        }[self.kind]

    @property
    def combined(self) -> bool:
        """True if the rule combines two attributes, each of which occurs in other rules too.

        Only these rules can be held out.
        """
        return self.kind == "add" or (self.kind in ("recolour", "reshape") and None not in (self.shape, self.colour))


RULES: tuple[Rule, ...] = (
    *(Rule("recolour", shape, colour) for shape in (None, *SHAPES) for colour in COLOURS),
    *(Rule("reshape", shape, colour) for colour in (None, *COLOURS) for shape in SHAPES),
    *(Rule("ground", ground=ground) for ground in GROUNDS),
    *(Rule("add", *kind, place=place) for kind, place in product(KINDS, CELLS)),
    *(Rule("remove", shape) for shape in SHAPES),
    *(Rule("remove", colour=colour) for colour in COLOURS),
    *(Rule("move", direction=direction) for direction in DIRECTIONS),
    Rule("swap"),
)


def _held_out_rules() -> frozenset[Rule]:
    """Return a tenth of the combined rules of each kind: those whose words have the lowest hashes."""
    found = []
    for _, rules in groupby(filter(lambda rule: rule.combined, RULES), lambda rule: rule.kind):
        ordered = sorted(rules, key=lambda rule: hashlib.sha256(rule.words.encode()).hexdigest())
        found += ordered[: round(len(ordered) / 10)]
    return frozenset(found)


# Rules that no training document shows.
HELD_OUT_RULES: frozenset[Rule] = _held_out_rules()


def _concerns(rule: Rule, thing: Thing) -> bool:
    """Return whether the rule changes or removes the object."""
    if rule.kind == "recolour":
        return rule.shape in (None, thing.shape) and thing.colour != rule.colour
    if rule.kind == "reshape":
        return rule.colour in (None, thing.colour) and thing.shape != rule.shape
    return rule.kind == "remove" and (rule.shape or rule.colour) in thing.kind


def _made(rule: Rule, scene: Scene) -> Scene:
    """Return the scene after a rule whose result is determined; the same scene where it does not apply."""
    if rule.kind == "ground":
        return replace(scene, ground=rule.ground)
    if rule.kind == "swap":
        return exchange(scene, 0, 1) if len(scene.things) == 2 == len(unique(scene)) else scene
    concerned = [index for index, thing in enumerate(scene.things) if _concerns(rule, thing)]
    if rule.kind == "remove":
        rest = tuple(thing for index, thing in enumerate(scene.things) if index not in concerned)
        return replace(scene, things=rest) if len(rest) > 1 else scene  # a single one would have to stand in the middle
    new = {"colour": rule.colour} if rule.kind == "recolour" else {"shape": rule.shape}
    for index in concerned:
        scene = scene.with_thing(index, **new)
    return scene


def apply(rng: np.random.Generator, rule: Rule, scene: Scene) -> Scene | None:
    """Return the scene after the rule, or None where it does not apply or changes nothing.

    What the rule leaves open (the size of an added object, the distance of a move) is drawn at random.
    """
    if len(scene.things) not in RULE_COUNTS[rule.kind]:
        return None
    if rule.kind == "move":
        return shift(rng, scene, rule.direction)
    if rule.kind == "add":
        if scene.layout != "grid" or rule.place not in scene.free_places:
            return None
        size = "small" if rng.random() < 0.5 else "large"
        thing = place_thing(rng, scene.image_size, "grid", (rule.shape, rule.colour), size, rule.place)
        return replace(scene, things=(*scene.things, thing))
    after = _made(rule, scene)
    return after if after != scene else None


def explains(rule: Rule, before: Scene, after: Scene) -> bool:
    """Return whether the rule can lead from one scene to the other."""
    if rule.kind == "add":
        *rest, last = after.things
        return (
            replace(before, things=after.things) == after
            and tuple(rest) == before.things
            and (*last.kind, last.place)
            == (
                rule.shape,
                rule.colour,
                rule.place,
            )
        )
    if rule.kind == "move":
        axis, sign = DIRECTIONS[rule.direction]
        to = getattr(after.things[0], axis)
        step = sign * (to - getattr(before.things[0], axis))
        return len(before.things) == 1 and step >= MOVE * before.side and before.with_thing(0, **{axis: to}) == after
    return len(before.things) in RULE_COUNTS[rule.kind] and _made(rule, before) == after != before


def _kinds_between(before: Scene, after: Scene) -> tuple[str, ...]:
    """Return the kinds of rules that can lead from one scene to the other; cheaper than trying all rules."""
    if before.ground != after.ground:
        return ("ground",)
    more = len(after.things) - len(before.things)
    return ("recolour", "reshape", "move", "swap") if not more else ("add",) if more > 0 else ("remove",)


def explanations(pairs: Sequence[tuple[Scene, Scene]]) -> list[Rule]:
    """Return all rules that explain every (before, after) example."""
    kinds = set.intersection(*(set(_kinds_between(*pair)) for pair in pairs))
    return [rule for rule in RULES if rule.kind in kinds and all(explains(rule, *pair) for pair in pairs)]


def right(rule: Rule, before: Scene, image: Image.Image | np.ndarray) -> bool:
    """Return whether an image shows a result of the rule for the scene `before`, according to the judge.

    Every object must have its shape, colour, size and place, and the ground its colour. False where the rule does not
    apply.
    """
    if rule.kind == "move":
        edit = Edit("move", before.things[0].kind, direction=rule.direction)
        return len(before.things) == 1 and judge.edit_done(render(before), image, edit).done
    if rule.kind == "add":
        possible = (
            before.layout == "grid" and rule.place in before.free_places and len(before.things) in RULE_COUNTS["add"]
        )
        after, new = before, (Wanted(rule.shape, rule.colour, place=rule.place),)
    else:
        after, new = _made(rule, before), ()
        possible = len(before.things) in RULE_COUNTS[rule.kind] and after != before
    asked = all_of(after)
    return possible and judge.check(image, replace(asked, wanted=(*asked.wanted, *new))).ok
