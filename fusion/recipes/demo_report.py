"""Sections of the demo's report: scores, drawings, edits, a story, descriptions, questions and text."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fusion.common.html import Section, code, figure, gallery, paragraph, story, table
from fusion.common.scores_html import score_table, triptych
from fusion.evaluation.scorecard import Scorecard
from fusion.evaluation.suite import SPLITS, Answer
from fusion.evaluation.suites import Drawing, Edits, Questions
from fusion.generation.api import Fusion
from fusion.training.metrics import read
from fusion.training.perplexity import Kept

PROMPTS = (
    "draw a red circle",
    "draw a green square on a beige ground",
    "draw a red circle left of a blue square",
    "draw a yellow cross above a cyan triangle",
    "draw three orange circles",
    "draw a black square and a purple cross",
)
STORIES = (
    "tell me a story in three images about a red circle",
    "tell me a story in two images about a blue square and a yellow triangle",
)
SEEDS = 6  # images of one prompt: a row of the page
DRAWINGS, EDITS, QUESTIONS, DESCRIBED = 30, 10, 18, 6  # how many are shown


def sections(
    model: Fusion,
    card: Scorecard,
    kept: Kept,
    targets: dict[str, float],
    params: dict,
    model_folder: Path,
    codec_run: Path | None = None,
) -> list[Section]:
    """The sections in the order of the page. codec_run: the run folder of the codec, if it was trained here."""
    answers = card.answers
    asked = [images[0] for _, images in answers[Questions.name]]
    return [
        Section("Scores", scores(card, targets)),
        Section("Drawn on request", drawings(model, params)),
        Section("Scored images", as_scored(answers[Drawing.name])),
        Section("Edits", "".join(edit(one) for one in answers[Edits.name][:EDITS])),
        *stories(model, params),
        Section("Descriptions", descriptions(model, asked[::7][:DESCRIBED], params)),
        Section("Questions", gallery(map(answered, answers[Questions.name][:QUESTIONS]))),
        Section("Text kept", text(kept, targets.get("text_rise"))),
        *([Section("What the codec keeps", codec(codec_run))] if codec_run else []),
        Section("Going on", code(commands(model_folder))),
    ]


def scores(card: Scorecard, targets: dict[str, float]) -> str:
    """The main scores against their targets, and by category."""
    split = {seed: name for name, seed in SPLITS.items()}.get(card.seed, f"seed {card.seed}")
    counts = ", ".join(f"{name} {len(answers)}" for name, answers in card.answers.items())
    words = f"Items asked: {counts} ({split}), judged from pixels alone in {card.seconds:.0f} s."
    words += "".join(f" {said}" for said in (of_memory(card), of_chance(card)) if said)
    details = f"<details><summary>by category</summary>{score_table(card.details)}</details>"
    return paragraph(words) + score_table(card.with_targets(targets)) + details


def of_memory(card: Scorecard) -> str:
    """Say how many of the scored prompts the training documents have, where that is known."""
    if card.seen is None:
        return ""
    prompts = [row.asked for row, _ in card.answers[Drawing.name]]
    seen = sum(prompt in card.seen for prompt in prompts)
    return f"Of the {len(prompts)} prompts, {seen} occur verbatim in the documents of the training."


def of_chance(card: Scorecard) -> str:
    """Say what guessing scores."""
    levels = (f"{card.figures[name].name} {level:.2f}" for name, level in card.chance.items())
    said = ", ".join(levels)
    return f"Chance: {said} (the commonest answer to each form of question, a coin for when to draw)." if said else ""


def drawings(model: Fusion, params: dict) -> str:
    """A few prompts, each with several seeds, at the size that the model chooses."""
    shown = []
    for prompt in PROMPTS:
        shown += [(image, prompt) for image in model.draw(prompt, n=SEEDS, **params)]
    return gallery(shown)


def as_scored(drawn: Sequence[Answer]) -> str:
    """The first of the scored images, each with the judge's word."""
    shown, right = [], 0
    for row, images in drawn[:DRAWINGS]:
        right += row.values["right"] == 1
        mark, why = ("✓", "") if row.values["right"] == 1 else ("✗", f" ({row.reasons[0]})")
        shown.append((images[-1], f"{mark} {row.asked}{why}"))
    return paragraph(f"The first {len(shown)} of {len(drawn)} prompts, {right} of them right.") + gallery(shown)


def edit(answer: Answer) -> str:
    """Before, after and difference, with the judge's word."""
    row, (before, after) = answer
    mark, why = ("✓", "") if row.values["right"] == 1 else ("✗", row.reasons[0].removeprefix("after: ") + "; ")
    return triptych(before, after, caption=f"{mark} {row.asked} ({why}{row.values['kept']:.0%} of the rest kept)")


def stories(model: Fusion, params: dict) -> list[Section]:
    """Interleaved text and images, all of it the model's own; the prompt stands in the heading."""
    told = model.generate([[prompt] for prompt in STORIES], **{**params, "max_new_tokens": 160, "max_images": 4})
    return [Section(f"A story: “{prompt}”", story(parts)) for prompt, parts in zip(STORIES, told, strict=True)]


def descriptions(model: Fusion, images: Sequence[Image.Image], params: dict) -> str:
    """What the model says of images that it did not draw."""
    replies = model.generate(
        [[image, "Describe the picture."] for image in images], **{**params, "max_images": 0, "max_new_tokens": 64}
    )
    return gallery([(image, "".join(reply)) for image, reply in zip(images, replies, strict=True)])


def answered(answer: Answer) -> tuple[Image.Image, str]:
    """The image of a question, and in words the question with the right answer, and the model's."""
    row, images = answer
    return images[0], f"{'✓' if row.values['right'] == 1 else '✗'} {row.asked} → {row.said}"


def text(kept: Kept, most: float | None) -> str:
    """Perplexity before and after."""
    said = (
        ""
        if most is None
        else f" The target is a rise of at most {most:.0%}: {'met' if kept.rise <= most else 'missed'}."
    )
    rows = [("the language model", kept.before), ("after learning to draw", kept.after)]
    words = (
        f"{kept.tokens:,} tokens of held-out text, the same for both. It {'rose' if kept.rise > 0 else 'fell'} by "
        f"{abs(kept.rise):.1%}.{said}"
    )
    return paragraph(words) + table(rows, ("held-out perplexity", "per token"))


def codec(run: Path) -> str:
    """Held-out images through the codec when it was trained."""
    _, sheet = max(
        (int(sheet.parent.name.removeprefix("step_")), sheet)
        for sheet in run.glob("samples/step_*/reconstructions.png")
    )
    quality = read(run / "metrics.jsonl")[-1]["val/psnr"]
    caption = f"images, what is left of them, and four times the difference; PSNR {quality:.1f} dB"
    return paragraph("Held-out images, encoded and decoded: no drawing of this model is sharper.") + figure(
        sheet, caption
    )


def commands(folder: Path) -> str:
    """What a person may want to type next."""
    return f"""
.venv/bin/fusion generate {folder} "draw a red circle left of a blue square"
.venv/bin/fusion chat {folder}
.venv/bin/fusion edit {folder} IMAGE.png "make the circle green"
.venv/bin/fusion eval {folder} --split development -o {folder.parent / "eval"}
.venv/bin/python -m train.demo out=out/longer minutes=120 documents=1000000

import fusion
model = fusion.load("{folder}")
model.draw("draw a red circle")[0].save("drawn.png")
"""
