"""The built-in world: coloured shapes on a plain ground, every task of a unified model, and a judge of pixels."""

from fusion.data.shapes import judge
from fusion.data.shapes.constants import (
    COLOURS,
    GROUNDS,
    HELD_OUT,
    KINDS,
    PICTURE_SIZES,
    RELATIONS,
    SHAPES,
    WORLD_VERSION,
)
from fusion.data.shapes.evaluation import (
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
from fusion.data.shapes.examples import Shown, laid_out
from fusion.data.shapes.expect import Edit, Expectation, Question, Wanted
from fusion.data.shapes.judge import EditVerdict, Verdict
from fusion.data.shapes.options import Options
from fusion.data.shapes.prose import plain_text
from fusion.data.shapes.render import picture, render
from fusion.data.shapes.rules import HELD_OUT_RULES, RULES, Rule
from fusion.data.shapes.sample import Sample
from fusion.data.shapes.scene import Scene, Thing
from fusion.data.shapes.tasks import TASKS
from fusion.data.shapes.vision import Reading, Seen
from fusion.data.shapes.words import Caption, caption
from fusion.data.shapes.world import World

__all__ = [
    "COLOURS", "GROUNDS", "HELD_OUT", "HELD_OUT_RULES", "KINDS", "PICTURE_SIZES", "RELATIONS", "RULES", "SCORED_SEED", "SHAPES", "TASKS",
    "WORLD_VERSION", "Caption", "Edit", "EditVerdict", "EvaluationEdit", "EvaluationExamples", "EvaluationIntent", "EvaluationPrompt",
    "EvaluationQuestion", "Expectation", "Options", "Question", "Reading", "Rule", "Sample", "Scene", "Seen", "Shown", "Thing", "Verdict",
    "Wanted", "World", "caption", "evaluation_chains", "evaluation_edits", "evaluation_examples", "evaluation_intents", "evaluation_prompts",
    "evaluation_questions", "evaluation_stories", "judge", "laid_out", "picture", "plain_text", "render",
]  # fmt: skip
