"""Editing by example: image pairs before and after an unnamed rule, and an image to apply it to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fusion.worlds.shapes.chance import pick, weighted
from fusion.worlds.shapes.options import Options
from fusion.worlds.shapes.render import render
from fusion.worlds.shapes.rules import HELD_OUT_RULES, RULE_COUNTS, RULES, Rule, apply, explains, explanations
from fusion.worlds.shapes.sample import Sample, assistant, user
from fusion.worlds.shapes.scene import Scene, sample_scene

T = TypeVar("T")
Pair = tuple[Scene, Scene]  # before and after

EXAMPLES = 2  # per rule; tests/worlds/test_shapes_examples.py checks that no other rule explains them
VERBS = ("becomes", "turns into")
TRIES, REDRAWN = (
    100,
    20,
)  # attempts at a scene that fits a rule, and at examples that no other rule explains, before another rule is used


@dataclass(frozen=True)
class Shown:
    """A rule, examples that no other rule explains, a source scene, and what the rule makes of it.

    after: one correct result of several.
    """

    rule: Rule
    pairs: tuple[Pair, ...]
    source: Scene
    after: Scene


def laid_out(pairs: Sequence[tuple[T, T]], source: T, verb: str = VERBS[0]) -> list[T | str]:
    """Arrange examples and a source as the parts of a user's turn.

    pairs: (before, after) of each example, which become before, `verb`, after. Then come the source and a question.
    Without pairs, the turn does not show the rule.
    """
    parts: list[T | str] = []
    for before, after in pairs:
        parts += [before, verb, after]
    return [*parts, source, f"{verb} what?"]


def rules_of(options: Options, held_out: bool) -> dict[str, list[Rule]]:
    """Return, by kind, the rules that fit scenes of these options: the held-out rules, or all others."""
    counts = {count for count, weight in options.counts.items() if weight > 0 and (count > 1 or not options.held_out)}
    chosen = [rule for rule in RULES if (rule in HELD_OUT_RULES) == held_out and counts & {*RULE_COUNTS[rule.kind]}]
    return {
        kind: [rule for rule in chosen if rule.kind == kind]
        for kind in RULE_COUNTS
        if any(rule.kind == kind for rule in chosen)
    }


def _pair(rng: np.random.Generator, options: Options, rule: Rule, size: tuple[int, int]) -> Pair | None:
    """Generate a scene that the rule changes, and the scene after it; None if no scene fits.

    A held-out pair is only introduced if the options hold out.
    """
    counts = {count: weight for count, weight in options.counts.items() if count in RULE_COUNTS[rule.kind]}
    for _ in range(TRIES):
        before = sample_scene(
            rng, counts, {size: 1.0}, options.held_out, rule.kind == "add", options.kinds, options.distinct
        )
        after = apply(rng, rule, before)
        if after is not None and (options.held_out or not after.held_out):
            return before, after
    return None


def examples_of(
    rng: np.random.Generator, options: Options, rule: Rule, size: tuple[int, int]
) -> tuple[Pair, ...] | None:
    """Generate EXAMPLES pairs of scenes of `size` (width, height) pixels that this rule alone explains.

    Returns None if the options' scenes seem to have none.
    """
    for _ in range(REDRAWN):
        pairs = [_pair(rng, options, rule, size) for _ in range(EXAMPLES)]
        if None in pairs:
            return None
        if explanations(pairs) == [rule]:
            return tuple(pairs)
    return None


def by_example(rng: np.random.Generator, options: Options, kind: str | None = None) -> Shown:
    """Generate a task for a rule of the given kind, or of a random kind; all its images have one size."""
    rules, size = rules_of(options, options.held_out), weighted(rng, options.image_sizes)
    while True:
        rule = pick(rng, rules[kind or pick(rng, tuple(rules))])
        pairs = examples_of(rng, options, rule, size)
        last = pairs and _pair(rng, options, rule, size)
        if last:
            return Shown(rule, pairs, *last)


def of_another(rng: np.random.Generator, options: Options, shown: Shown) -> Shown:
    """Generate a task with the same source for another rule, which occurs in training and gives a different result."""
    rules = rules_of(options, held_out=False)
    while True:
        rule = pick(rng, rules[pick(rng, tuple(rules))])
        after = apply(rng, rule, shown.source)
        if after is None or (after.held_out and not options.held_out) or explains(shown.rule, shown.source, after):
            continue
        pairs = examples_of(rng, options, rule, shown.source.image_size)
        if pairs and not explains(rule, shown.source, shown.after):
            return Shown(rule, pairs, shown.source, after)


def examples(rng: np.random.Generator, options: Options) -> Sample:
    """Generate a document in which the user shows examples of a rule and a source image to apply it to.

    There are two examples; the assistant answers with just the resulting image.
    """
    shown = by_example(rng, options)
    images = [tuple(map(render, pair)) for pair in shown.pairs]
    messages = (user(*laid_out(images, render(shown.source), pick(rng, VERBS))), assistant(render(shown.after)))
    scenes = (*(scene for pair in shown.pairs for scene in pair), shown.source, shown.after)
    return Sample("examples", messages, scenes, rule=shown.rule, held_out=any(scene.held_out for scene in scenes))
