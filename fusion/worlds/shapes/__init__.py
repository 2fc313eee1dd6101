"""The built-in world: coloured shapes on a plain ground, all tasks of a unified model, and a judge of pixels."""

from fusion.worlds.shapes import judge
from fusion.worlds.shapes.constants import (
    COLOURS,
    GROUNDS,
    HELD_OUT,
    IMAGE_SIZES,
    KINDS,
    RELATIONS,
    SHAPES,
    WORLD_VERSION,
)
from fusion.worlds.shapes.evaluation import (
    SCORED_SEED,
    EvaluationEdit,
    EvaluationExamples,
    EvaluationIntent,
    EvaluationPrompt,
    EvaluationQuestion,
    evaluation_chains,
    evaluation_edits,
    evaluation_examples,
    evaluation_intents,
    evaluation_prompts,
    evaluation_questions,
    evaluation_stories,
)
from fusion.worlds.shapes.examples import Shown, laid_out
from fusion.worlds.shapes.expect import Edit, Expectation, Question, Wanted
from fusion.worlds.shapes.judge import EditVerdict, Verdict
from fusion.worlds.shapes.options import Options
from fusion.worlds.shapes.prose import plain_text
from fusion.worlds.shapes.render import render, scene_image
from fusion.worlds.shapes.rules import HELD_OUT_RULES, RULES, Rule
from fusion.worlds.shapes.sample import Sample
from fusion.worlds.shapes.scene import Scene, Thing
from fusion.worlds.shapes.tasks import TASKS
from fusion.worlds.shapes.vision import Reading, Seen
from fusion.worlds.shapes.words import Caption, caption
from fusion.worlds.shapes.world import World

__all__ = [
    "COLOURS",
    "GROUNDS",
    "HELD_OUT",
    "HELD_OUT_RULES",
    "IMAGE_SIZES",
    "KINDS",
    "RELATIONS",
    "RULES",
    "SCORED_SEED",
    "SHAPES",
    "TASKS",
    "WORLD_VERSION",
    "Caption",
    "Edit",
    "EditVerdict",
    "EvaluationEdit",
    "EvaluationExamples",
    "EvaluationIntent",
    "EvaluationPrompt",
    "EvaluationQuestion",
    "Expectation",
    "Options",
    "Question",
    "Reading",
    "Rule",
    "Sample",
    "Scene",
    "Seen",
    "Shown",
    "Thing",
    "Verdict",
    "Wanted",
    "World",
    "caption",
    "evaluation_chains",
    "evaluation_edits",
    "evaluation_examples",
    "evaluation_intents",
    "evaluation_prompts",
    "evaluation_questions",
    "evaluation_stories",
    "judge",
    "laid_out",
    "plain_text",
    "render",
    "scene_image",
]
