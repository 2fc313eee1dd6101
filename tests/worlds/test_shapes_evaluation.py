"""The evaluation sets of the built-in world: complete, answerable, fixed, and apart from training."""

from collections import Counter

import numpy as np
import pytest

from fusion.worlds.shapes import (
    HELD_OUT,
    Options,
    World,
    evaluation_edits,
    evaluation_examples,
    evaluation_intents,
    evaluation_prompts,
    evaluation_questions,
    judge,
    render,
)
from fusion.worlds.shapes.edits import EDITS
from fusion.worlds.shapes.evaluation import CATEGORIES, HELD_OUT_CATEGORIES, _stream
from fusion.worlds.shapes.questions import QUESTIONS

SETS = {
    "prompts": evaluation_prompts,
    "edits": evaluation_edits,
    "questions": evaluation_questions,
    "intents": evaluation_intents,
}
SETS |= {"examples": evaluation_examples}


def shown(item):
    """What a model gets to see of an evaluation item, for comparison."""
    parts = [
        getattr(item, field, None)
        for field in ("prompt", "instruction", "question", "message", "before", "shown", "other")
    ]
    return str(parts)


@pytest.mark.parametrize("name", SETS)
def test_sets_are_fixed_by_their_seed(name, unchecked):
    one, two, other = ([shown(item) for item in SETS[name](60, seed)] for seed in (0, 0, 1))
    assert len(one) == 60 and one == two and one != other
    assert [shown(item) for item in SETS[name](30, 0)] == one[:30], "a longer set begins with the shorter"


def test_prompts_cover_the_categories_and_hold_out_pairs_where_there_are_any():
    prompts = evaluation_prompts(240)
    assert Counter(item.category for item in prompts) == dict.fromkeys(CATEGORIES, 40)
    for item in prompts:
        kinds = frozenset((want.shape, want.colour) for want in item.expectation.wanted)
        assert item.held_out == (kinds in HELD_OUT)
    held_out = Counter(item.category for item in prompts if item.held_out)
    assert held_out == dict.fromkeys(HELD_OUT_CATEGORIES, 20)


def fulfilled(item, rng):
    """Whether one of the scenes that the world draws, given the asked kinds, satisfies the judge."""
    world = World(Options(counts={len(item.expectation.wanted): 1}, sizes={"32x32": 1}))
    for _ in range(80):
        scene = world.sample(rng, "text_to_image").scenes[0]
        for number, want in enumerate(item.expectation.wanted):
            thing = scene.things[number]
            scene = scene.with_thing(number, shape=want.shape or thing.shape, colour=want.colour or thing.colour)
        if judge.check(render(scene), item.expectation).ok:
            return True
    return False


def test_every_prompt_can_be_fulfilled():
    rng = np.random.default_rng(0)
    assert all(fulfilled(item, rng) for item in evaluation_prompts(60))


def test_edits_cover_the_kinds_and_are_done_by_their_reference():
    edits = evaluation_edits(70)
    assert Counter(item.kind for item in edits) == dict.fromkeys(EDITS, 10)
    assert Counter(item.held_out for item in edits) == {True: 35, False: 35}
    for item in edits:
        assert item.held_out == item.before.held_out and np.array_equal(item.image, render(item.before))
        verdict = judge.edit_done(item.image, render(item.after), item.edit)
        assert verdict.done and verdict.kept == 1, item


def test_questions_cover_the_kinds():
    questions = evaluation_questions(100)
    assert Counter(item.question.kind for item in questions) == dict.fromkeys(QUESTIONS, 20)
    assert all(
        item.kind == item.question.kind and judge.answer_right(item.question, item.question.answer)
        for item in questions
    )


def test_half_of_the_intents_ask_for_an_image():
    intents = evaluation_intents(80)
    assert sum(item.draw for item in intents) == 40
    drawing = {item.kind for item in intents if item.draw}
    assert drawing == {"text_to_image", "edits", "stories"} and drawing.isdisjoint(
        {i.kind for i in intents if not i.draw}
    )
    assert all(item.message["role"] == "user" for item in intents)


@pytest.mark.parametrize("seed", range(3))
def test_evaluation_streams_are_not_those_of_training(seed):
    def start(rng):
        return tuple(rng.integers(0, 2**63, 4).tolist())

    training = [np.random.default_rng(seed), *map(np.random.default_rng, np.random.SeedSequence(seed).spawn(64))]
    training += [np.random.default_rng([seed, index]) for index in range(64)]
    streams = [_stream(name, seed) for name in SETS]
    assert {start(rng) for rng in training}.isdisjoint({start(rng) for rng in streams})
    assert len({start(_stream(name, seed)) for name in SETS}) == len(SETS)
