"""What the demo's model can do, as sections of its report: scores, drawings, edits, a story, descriptions, questions, text."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eval import shapes
from eval.page import score_table, triptych
from eval.shapes import Answered, Edited, Evaluation
from eval.text import Kept
from fusion.api import Fusion
from fusion.page import Section, code, figure, gallery, paragraph, story, table
from train.metrics import read

PROMPTS = (
    "draw a red circle", "draw a green square on a beige ground", "draw a red circle left of a blue square",
    "draw a yellow cross above a cyan triangle", "draw three orange circles", "draw a black square and a purple cross",
)  # fmt: skip
STORIES = (
    "tell me a story in three pictures about a red circle",
    "tell me a story in two pictures about a blue square and a yellow triangle",
)
SEEDS = 6  # pictures of one prompt: a row of the page
DRAWINGS, EDITS, QUESTIONS, DESCRIBED = 30, 10, 18, 6  # how many are shown


def sections(
    model: Fusion, evaluation: Evaluation, kept: Kept, targets: dict[str, float], knobs: dict, model_folder: Path, codec_run: Path | None = None
) -> list[Section]:
    """The sections in the order of the page. codec_run: the run folder of the codec, if it was trained here."""
    return [
        Section("Scores", scores(evaluation, targets)),
        Section("Drawn on request", drawings(model, knobs)),
        Section("Scored pictures", as_scored(evaluation)),
        Section("Edits", "".join(edit(one) for one in evaluation.edited[:EDITS])),
        *stories(model, knobs),
        Section("Descriptions", descriptions(model, [one.image for one in evaluation.answered[::7][:DESCRIBED]], knobs)),
        Section("Questions", gallery((one.image, answer(one)) for one in evaluation.answered[:QUESTIONS])),
        Section("Text kept", text(kept, targets.get("text_rise"))),
        *([Section("What the codec keeps", codec(codec_run))] if codec_run else []),
        Section("Going on", code(commands(model_folder))),
    ]


def scores(evaluation: Evaluation, targets: dict[str, float]) -> str:
    """The main scores against their targets, and by category."""
    found = evaluation.scores
    split = {seed: name for name, seed in shapes.SPLITS.items()}.get(found.seed, f"seed {found.seed}")
    words = (
        f"{len(evaluation.drawn)} pictures, {len(evaluation.edited)} edits, {len(evaluation.answered)} answers and {len(evaluation.decided)} "
        f"openings ({split} prompts), judged from pixels alone in {found.seconds:.0f} s."
    )
    details = f"<details><summary>by category</summary>{score_table(found.details)}</details>"
    return paragraph(words) + score_table(shapes.with_targets(found, targets)) + details


def drawings(model: Fusion, knobs: dict) -> str:
    """A few prompts, each with several seeds, at the size that the model chooses."""
    shown = []
    for prompt in PROMPTS:
        shown += [(image, prompt) for image in model.draw(prompt, n=SEEDS, **knobs)]
    return gallery(shown)


def as_scored(evaluation: Evaluation) -> str:
    """The first of the scored pictures, each with the judge's word."""
    shown = []
    for one in evaluation.drawn[:DRAWINGS]:
        mark = "✓" if one.verdict.ok else "✗"
        shown.append((one.image, f"{mark} {one.asked.prompt}" + ("" if one.verdict.ok else f" ({one.verdict.reasons[0]})")))
    right = sum(one.verdict.ok for one in evaluation.drawn[:DRAWINGS])
    return paragraph(f"The first {len(shown)} of {len(evaluation.drawn)} prompts, {right} of them right.") + gallery(shown)


def edit(one: Edited) -> str:
    """Before, after and difference, with the judge's word."""
    mark, why = ("✓", "") if one.verdict.done else ("✗", one.verdict.reasons[0].removeprefix("after: ") + "; ")
    return triptych(one.before, one.image, caption=f"{mark} {one.asked.instruction} ({why}{one.verdict.kept:.0%} of the rest kept)")


def stories(model: Fusion, knobs: dict) -> list[Section]:
    """Interleaved text and pictures, all of it the model's own; the prompt stands in the heading."""
    told = model.generate([[prompt] for prompt in STORIES], **{**knobs, "max_new_tokens": 160, "max_images": 4})
    return [Section(f"A story: “{prompt}”", story(parts)) for prompt, parts in zip(STORIES, told, strict=True)]


def descriptions(model: Fusion, images: Sequence[Image.Image], knobs: dict) -> str:
    """What the model says of pictures that it did not draw."""
    replies = model.generate([[image, "Describe the picture."] for image in images], **{**knobs, "max_images": 0, "max_new_tokens": 64})
    return gallery([(image, "".join(reply)) for image, reply in zip(images, replies, strict=True)])


def answer(one: Answered) -> str:
    """Question and answer, with the right one where they differ."""
    question = f"{one.asked.question.text} {one.reply}"
    return f"✓ {question}" if one.right else f"✗ {question} (right: {one.asked.question.answer})"


def text(kept: Kept, most: float | None) -> str:
    """Perplexity before and after."""
    said = "" if most is None else f" The target is a rise of at most {most:.0%}: {'met' if kept.rise <= most else 'missed'}."
    rows = [("the language model", kept.before), ("after learning to draw", kept.after)]
    words = f"{kept.tokens:,} tokens of held-out text, the same for both. It {'rose' if kept.rise > 0 else 'fell'} by {abs(kept.rise):.1%}.{said}"
    return paragraph(words) + table(rows, ("held-out perplexity", "per token"))


def codec(run: Path) -> str:
    """Held-out pictures through the codec when it was trained."""
    _, sheet = max((int(sheet.parent.name.removeprefix("step_")), sheet) for sheet in run.glob("samples/step_*/reconstructions.png"))
    quality = read(run / "metrics.jsonl")[-1]["val/psnr"]
    caption = f"pictures, what is left of them, and four times the difference; PSNR {quality:.1f} dB"
    return paragraph("Held-out pictures, encoded and decoded: no drawing of this model is sharper.") + figure(sheet, caption)


def commands(folder: Path) -> str:
    """What a person may want to type next."""
    return f"""
.venv/bin/fusion generate {folder} "draw a red circle left of a blue square"
.venv/bin/fusion chat {folder}
.venv/bin/fusion edit {folder} IMAGE.png "make the circle green"
.venv/bin/python -m eval.run {folder} --split development -o {folder.parent / 'eval'}
.venv/bin/python -m train.demo out=out/longer minutes=120 documents=1000000

import fusion
model = fusion.load("{folder}")
model.draw("draw a red circle")[0].save("drawn.png")
"""
