"""Phrase edits in English: as a user's request, and as a step of a story."""

from collections.abc import Sequence

import numpy as np

from fusion.worlds.shapes.chance import chance, pick
from fusion.worlds.shapes.constants import Kind
from fusion.worlds.shapes.expect import Edit
from fusion.worlds.shapes.words import PLACE_WORDS, RELATION_WORDS, SIZE_WORDS, a, user_style

REQUESTS = {
    "recolour": (
        "make {it} {new}",
        "make {it} {new}",
        "turn {it} {new}",
        "change {it} to {new}",
        "change the colour of {it} to {new}",
        "paint {it} {new}",
        "colour {it} {new}",
        "{it} should be {new}",
    ),
    "reshape": (
        "make {it} {new}",
        "turn {it} into {new}",
        "change {it} to {new}",
        "change {it} into {new}",
        "replace {it} with {new}",
    ),
    "add": (
        "add {new}{where}",
        "add {new}{where}",
        "put {new}{where}",
        "place {new}{where}",
        "add {new} to the picture{where}",
    ),
    "remove": ("remove {it}", "remove {it}", "delete {it}", "take {it} away", "take away {it}", "erase {it}"),
    "move": ("move {it} {where}", "move {it} {where}", "shift {it} {where}"),
    "place": ("move {it} to the {where}", "move {it} to the {where} corner", "put {it} in the {where} corner"),
    "swap": (
        "swap {it} and {other}",
        "swap {it} with {other}",
        "exchange {it} and {other}",
        "{it} and {other} should change places",
    ),
    "ground": (
        "make the ground {new}",
        "make the background {new}",
        "change the ground to {new}",
        "change the background to {new}",
        "turn the background {new}",
        "the ground should be {new}",
    ),
}
STORY = {
    "recolour": ("{it} turns {new}", "{it} becomes {new}", "{it} is {new}", "someone paints {it} {new}"),
    "reshape": ("{it} turns into {new}", "{it} becomes {new}", "{it} changes into {new}"),
    "add": ("{new} appears{where}", "{new} comes{where}", "we see {new}{where}"),
    "remove": ("{it} disappears", "{it} goes away", "{it} leaves"),
    "move": ("{it} moves {where}", "{it} goes {where}"),
    "place": ("{it} moves to the {where}", "{it} goes to the {where} corner"),
    "swap": ("{it} and {other} change places", "{it} and {other} swap places"),
    "ground": ("the ground turns {new}", "the ground becomes {new}", "the background is {new}"),
}
WAYS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
POLITE = ("{}", "{}", "{}", "{}", "please {}", "now {}", "can you {}?", "could you {}?")


def the(rng: np.random.Generator, kind: Kind, kinds: Sequence[Kind], pronoun: bool = False) -> str:
    """Return a noun phrase for the one object of this kind among `kinds`.

    It is the full name, or one shortened as far as it stays unambiguous. pronoun: also allow "it" for the only object.
    """
    shape, colour = kind
    names = [f"the {colour} {shape}"] * 2
    if sum(other[0] == shape for other in kinds) == 1:
        names.append(f"the {shape}")
    if sum(other[1] == colour for other in kinds) == 1:
        names.append(f"the {colour} {pick(rng, ('shape', 'object', 'one'))}")
    if pronoun and len(kinds) == 1:
        names += ["it", "it"]
    return pick(rng, names)


def _where(rng: np.random.Generator, edit: Edit, kinds: Sequence[Kind]) -> str:
    if edit.relation:
        return f" {pick(rng, RELATION_WORDS[edit.relation])} {the(rng, edit.other, kinds)}"
    return f" {pick(rng, PLACE_WORDS[edit.place])}" if edit.place else ""


def _slots(rng: np.random.Generator, edit: Edit, kinds: Sequence[Kind], pronoun: bool) -> dict[str, str]:
    """Return the words that fill the placeholders of a template."""
    if edit.kind == "ground":
        return {"new": edit.ground}
    if edit.kind == "add":
        size = f"{pick(rng, SIZE_WORDS[edit.size])} " if edit.size else ""
        return {"new": a(f"{size}{edit.target[1]} {edit.target[0]}"), "where": _where(rng, edit, kinds)}
    slots = {"it": the(rng, edit.target, kinds, pronoun)}
    if edit.kind == "recolour":
        slots["new"] = edit.colour
    if edit.kind == "reshape":
        slots["new"] = a(edit.shape if chance(rng, 0.7) else f"{edit.target[1]} {edit.shape}")
    if edit.kind == "swap":
        slots["other"] = the(rng, edit.other, kinds)
    if edit.kind == "move":
        slots["where"] = edit.place or pick(rng, WAYS[edit.direction])
    return slots


def _template(rng: np.random.Generator, table: dict[str, tuple[str, ...]], edit: Edit) -> str:
    return pick(rng, table["place" if edit.kind == "move" and edit.place else edit.kind])


def request(rng: np.random.Generator, edit: Edit, kinds: Sequence[Kind]) -> str:
    """Return a user's request for this edit, worded at random.

    kinds: the (shape, colour) of every object in the image before the edit.
    """
    text = _template(rng, REQUESTS, edit).format(**_slots(rng, edit, kinds, pronoun=True))
    text = text.replace("the colour of it ", "its colour ")
    return user_style(rng, text if " should " in text else pick(rng, POLITE).format(text))


def happening(rng: np.random.Generator, edit: Edit, kinds: Sequence[Kind]) -> str:
    """Return the edit as an event of a story: a clause without a full stop. `kinds` as in `request`."""
    return _template(rng, STORY, edit).format(**_slots(rng, edit, kinds, pronoun=False))
