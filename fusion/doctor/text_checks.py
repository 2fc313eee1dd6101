"""Text checks of the doctor: images not conditioned on text, forgetting, and never drawing when asked."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion.common import statistics
from fusion.common.charts import Line, chart, side_by_side
from fusion.common.html import table
from fusion.common.llm_files import llm_folder
from fusion.common.statistics import Measured, wilson
from fusion.data.formats import Sample
from fusion.data.packing import fixed_batches
from fusion.doctor.denoising_errors import misled, x_errors
from fusion.doctor.finding import WELL, Finding, Missing, Rule
from fusion.doctor.run_data import Patient, Task
from fusion.recipes.demo import Demo
from fusion.recipes.llm import read_corpus
from fusion.training.perplexity import encode, perplexity
from fusion.unified.objective import Objective

Misled = list[tuple[Task, list[Sample]]]
LEAST = 12  # fewest images of a kind that it is judged by
BANDS = tuple((number / 5, number / 5 + 0.2) for number in range(5))
SHOWN = 8

DEAF = Rule(
    "not conditioned on text",
    "how often the error of x at t = 0.5 to 1 is larger with another document's words (same image, noise and times)",
    mild=0.75,
    severe=0.6,
    reason="a model that does not read has 0.5, by chance, and one that reads comes near 1 however little the words "
    "say, as noise and times are the "
    "same (diffusion models classify by this, arXiv 2303.16203); 0.75 is half-way",
    advice="look whether captions belong to their images (fusion data check shows samples), whether "
    "packing.drop_text is far below 1, and train "
    "longer; if the captions truly say nothing of the images, this is the data's illness",
)


def deaf(patient: Patient) -> Finding:
    """Check whether images are conditioned on the text.

    It is judged by kind (source of the data; with or without an image in context) and all together; the finding is of
    the kind that is most surely not conditioned.
    """
    kinds = defaultdict(list)
    for task, wrong in misled(patient.tasks):
        if readable := [sample for sample in wrong if patient.reads(sample)]:
            kinds[f"{task.kind[0]}, {'edits' if task.kind[1] else 'from words alone'}"].append((task, readable))
    kinds = {kind: pairs for kind, pairs in kinds.items() if len(pairs) >= LEAST}
    if not kinds:
        return DEAF.unknown(f"fewer than {LEAST} held-out images of a kind have words that others do not have")
    heard = {kind: _heard(patient, pairs) for kind, pairs in kinds.items()}
    heard["all together"] = np.concatenate(list(heard.values()))
    kinds["all together"] = [pair for pairs in kinds.values() for pair in pairs]
    shares = {kind: statistics.resampled_ratio(found[:, 0], np.ones(len(found))) for kind, found in heard.items()}
    worst = min(shares, key=lambda kind: shares[kind].most)
    _, cost, right = heard[worst].mean(0)
    said = (
        f"{worst}: another document's words are worse {shares[worst].value:.0%} of the time, and cost "
        f"{cost / right:+.1%} of the error"
    )
    return DEAF.judge(
        shares[worst], said, _bands(patient, kinds[worst]), cost=float(cost / right), images=len(heard[worst])
    )


def _heard(patient: Patient, pairs: Misled) -> np.ndarray:
    """Return three numbers for each image, (images, 3), with another document's texts (wrong) and its own (right).

    They are how often wrong texts give a larger error than the right ones, by how much the error is larger, and the
    error with the right ones.
    """
    right = x_errors(patient, [task.sample for task, _ in pairs], 0.5, 1.0)[0].mean(-1)
    turns = range(max(len(wrong) for _, wrong in pairs))  # tasks with fewer of them reuse the same ones
    wrong = torch.stack(
        [x_errors(patient, [told[turn % len(told)] for _, told in pairs], 0.5, 1.0)[0].mean(-1) for turn in turns]
    )
    return torch.stack([(wrong > right).float().mean(0), (wrong - right).mean(0), right], dim=-1).numpy()


def _bands(patient: Patient, pairs: Misled) -> str:
    lines = []
    for name, samples in (
        ("its own words", [task.sample for task, _ in pairs]),
        ("another's words", [wrong[0] for _, wrong in pairs]),
    ):
        means = [float(x_errors(patient, samples, low, high, rounds=1)[0].mean()) for low, high in BANDS]
        lines.append(Line(name, [(round(50 * sum(band)), mean) for band, mean in zip(BANDS, means, strict=True)]))
    return side_by_side(
        chart("Error of x by time", lines, "t, per cent", "held-out images, same noise", log=True, noisy=False)
    )


SILENT = Rule(
    "never draws when asked",
    "share of the places where the true answer begins an image at which the model would begin one",
    mild=0.95,
    severe=0.5,
    reason="one request in twenty that stays without its image is noticed by everybody; below a half, the image is "
    "the exception",
    advice="let the control tokens carry loss (objective.w_text above 0), give the data answers that are images, and "
    "look for answers in words to "
    "requests for images; until then draw and edit make it draw",
)


@torch.no_grad()
def silent(patient: Patient) -> Finding:
    """Check whether the model begins an image where the true answer does.

    It is teacher-forced, so that pages and conversations are judged alike.
    """
    if patient.paints:
        return SILENT.unknown("a diffusion model can do nothing but draw")
    learner, asked, rightly = patient.learner, 0, 0
    samples = [sample for part in patient.held_out.values() for sample in part]
    for batch in fixed_batches(samples, learner.fusion.processor, patient.config.packing):
        draws = learner.losses(batch, Objective(), torch.Generator(learner.model.device).manual_seed(0)).draws
        asked, rightly = asked + int(draws[0]), rightly + int(draws[2])
    if not asked:
        return SILENT.unknown("no held-out document has an image that the model is to begin")
    share = rightly / asked
    found = Measured(share, *wilson(share, asked))
    evidence = _answers(patient) if SILENT.verdict(found) != WELL else ""
    return SILENT.judge(
        found, f"it begins an image at {rightly} of the {asked} places where it should", evidence, asked=asked
    )


def _answers(patient: Patient) -> str:
    """Render a table of what the model answers to requests for images."""
    rows = []
    for task in patient.tasks[:SHOWN]:
        if task.sample.messages:
            answer = patient.learner.fusion.generate(
                task.prompt, steps=1, guidance=1.0, max_images=1, max_new_tokens=32
            )
            rows.append([task.words, " ".join(part if isinstance(part, str) else "[an image]" for part in answer)])
    return table(rows, ["asked", "answer"]) if rows else ""


FORGETFUL = Rule(
    "forgetting",
    "by which share the perplexity of plain text is above that of the language model it was made of",
    mild=0.05,
    severe=0.25,
    reason="the same tokens under both models, so that what differs is the training; 2 % is what the demo allows "
    "itself, and a quarter is a "
    "language model of a smaller size",
    advice="mix plain text into the data (kind: text), lower the language model's rate (training.optim.rates {llm.*: "
    "0.2}), or keep it as it is "
    "(model.mode=mot or frozen, model.lora)",
)


def forgetful(patient: Patient) -> Finding:
    """Check for lost text ability, by the perplexity of plain text against that of the model's LLM.

    Perplexities are those at the last step in metrics.jsonl, or computed now where there are none.
    """
    if patient.paints:
        return FORGETFUL.unknown("a diffusion model does not write")
    rows = [row for row in patient.rows if "perplexity/now" in row and "perplexity/of_the_llm" in row]
    logged = rows and rows[-1]["step"] == patient.rows[-1]["step"]
    now, before = (rows[-1]["perplexity/now"], rows[-1]["perplexity/of_the_llm"]) if logged else _perplexities(patient)
    said = f"perplexity {now:.2f}, that of the language model {before:.2f}"
    return FORGETFUL.judge(Measured(now / before - 1), said, _course(rows), now=now, of_the_llm=before)


def _course(rows: list[dict]) -> str:
    names = {"the model": "perplexity/now", "the language model": "perplexity/of_the_llm"}
    lines = [Line(name, [(row["seen"], row[key]) for row in rows]) for name, key in names.items()]
    return side_by_side(chart("Perplexity of plain text", lines, "documents seen", log=True)) if len(rows) > 1 else ""


def _perplexities(patient: Patient) -> tuple[float, float]:
    """Compute the perplexity of the model and of its language model; Missing where that one cannot be read any more."""
    llm = patient.config.model.llm
    try:
        tokenizer = AutoTokenizer.from_pretrained(llm_folder(llm))
        base = AutoModelForCausalLM.from_pretrained(llm_folder(llm), dtype=torch.float32).eval()
        texts, context = _texts(patient)
    except (OSError, ValueError) as error:
        where = "say where it is, model.llm=FOLDER" if not Path(llm).is_dir() else "its files are not whole"
        raise Missing(f"{llm} cannot be read ({' '.join(str(error).split())[:100]}); {where}") from None
    ids = encode(tokenizer, texts, context)
    return perplexity(patient.learner.model, ids), perplexity(base.to(patient.learner.model.device), ids)


def _texts(patient: Patient) -> tuple[list[str], int]:
    if isinstance(patient.config, Demo):
        settings = patient.config
        return read_corpus(settings.llm.data, settings.llm.seed).held_out[: settings.scoring.texts], 256
    probe = patient.config.probe
    return probe.read() if probe.count else type(probe)(texts=probe.texts).read(), probe.context
