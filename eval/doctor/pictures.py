"""Illnesses of pictures: copies of the source, one picture for all seeds, too much guidance, blur."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from eval.charts import Line, chart, side_by_side
from eval.doctor import looks, sure
from eval.doctor.errors import x_errors
from eval.doctor.finding import Finding, Measured, Rule, worse
from eval.doctor.patient import Patient, Task
from fusion.flow import PATHS
from fusion.images import to_pixels
from fusion.page import figure, gallery, paragraph

DRAWN, SEEDS, PROMPTS, SHOWN = 48, 4, 16, 8
UNGUIDED = {"guidance": 1.0, "image_guidance": 1.0}
CHANGED = 8 / 255  # a pixel whose channels differ by less did not change


def _unguided(patient: Patient) -> dict[str, float]:
    return {name: value for name, value in UNGUIDED.items() if name in patient.knobs}


def _guidance(patient: Patient) -> float:
    return float(patient.knobs["guidance"])


COPY = Rule(
    "copying the source",
    "where the true edit changes the picture: how far the model's edit is from the source there, over how far the true one is",
    mild=0.5, severe=0.2,
    reason="0 is the source itself and 1 as large a change as the true one; below a half the picture is nearer to the source than to any edit of the "
    "right strength",
    advice="look for pairs that do not differ, and for instructions that belong to other pairs; raise samples.guidance for edits, lower "
    "image_guidance, and drop the text less often (packing.drop_text)",
)  # fmt: skip


def copying(patient: Patient) -> Finding:
    """Drawn with the run's own knobs; only pixels count that the true edit changes, so that the ground that all three share says nothing."""
    tasks = [task for task in patient.edits if _changed(task).any()][:DRAWN]
    if not tasks:
        return COPY.unknown("no held-out edit changes a pixel")
    edited = [one for one, in patient.draw(tasks)]
    shares = [_moved(task, image) for task, image in zip(tasks, edited, strict=True)]
    found = sure.median(shares)
    shown = zip(tasks, edited, shares, strict=True)
    evidence = "".join(_edit(task, image, f"{share:.2f}") for task, image, share in list(shown)[:SHOWN])
    words = f"where the true edit changes something, the median of {len(tasks)} edits goes {found.value:.0%} of the way from the source"
    return COPY.judge(found, words, evidence, copied=float(np.mean(np.less(shares, COPY.severe))))


def _changed(task: Task) -> np.ndarray:
    return np.abs(looks.values(task.truth) - looks.values(task.source)).max(-1) > CHANGED


def _moved(task: Task, edited: Image.Image) -> float:
    where, source = _changed(task), looks.values(task.source)
    return float(np.abs(looks.values(edited) - source)[where].mean() / np.abs(looks.values(task.truth) - source)[where].mean())


def _edit(task: Task, edited: Image.Image, share: str) -> str:
    pictures = [(task.source, "source"), (edited, f"its edit, {share}"), (task.truth, "true edit")]
    return f'<div class="triptych">{paragraph(task.words)}<div>{"".join(figure(image, words) for image, words in pictures)}</div></div>'


COLLAPSED = Rule(
    "collapsed diversity",
    "without guidance: how much pictures of one prompt differ between seeds, over the model's own error at t = 1 (variances)",
    mild=0.45, severe=0.15,
    reason="at t = 1 nothing but the words is known, so that the error there is what they leave open, and pictures of a sampler that draws all of it "
    "differ as much: 1; at 0.45 they differ by two thirds of what they should, at 0.15 by two fifths",
    advice="look for prompts that always came with one picture, for a set so small that it was learned by heart, and for times that never were near "
    "1 (objective.mean, shift)",
)  # fmt: skip


def collapsed(patient: Patient) -> Finding:
    """Without guidance, which narrows by design and has a check of its own."""
    tasks = patient.asked[:PROMPTS]
    drawn = patient.draw(tasks, copies=SEEDS, **_unguided(patient))
    spread = [_spread(patient, images) for images in drawn]
    open_left = x_errors(patient, [task.sample for task in tasks], 0.98, 1.0)[0].mean(-1)
    if len(open_left) != len(spread):  # documents with several pictures: what they leave open on average
        open_left = open_left.mean().expand(len(spread))
    found = sure.ratio(spread, open_left.numpy())
    guided = np.mean([_spread(patient, images) for images in patient.draw(tasks, copies=SEEDS)]) / float(open_left.mean())
    rows = "".join(f"{paragraph(task.words)}{gallery([(image, '') for image in images])}" for task, images in list(zip(tasks, drawn))[:4])
    words = f"pictures of one prompt differ by {found.value:.2f} of what the words leave open (with its own guidance by {guided:.2f})"
    return COLLAPSED.judge(found, words, rows, guided=float(guided))


@torch.no_grad()
def _spread(patient: Patient, images: Sequence[Image.Image]) -> float:
    """Variance over seeds, in latents, where the model's errors are measured too."""
    codec = patient.learner.painter.codec if patient.paints else patient.learner.fusion.codec
    device = next(patient.learner.model.parameters()).device
    latents = codec.encode(torch.stack([to_pixels(image) for image in images]).to(device)).float()
    return float(latents.var(dim=0).mean())


OVER = Rule(
    "over-guided",
    "log2 of how much more saturation, contrast or detail (the largest of the three) pictures drawn with the run's own guidance have than the true "
    "ones, or than those drawn without guidance, whichever is less",
    mild=0.35, severe=0.7,
    reason="0.35 is a quarter more than the data has, more than guidance of 2 to 4 adds to models that are well; 0.7 is three fifths more",
    advice="lower samples.guidance, to where the curve comes down to 0, or let it act within an interval only (guidance_interval); "
    "python -m eval.tune finds it",
)  # fmt: skip


def over_guided(patient: Patient) -> Finding:
    """Of both comparisons the smaller: what is too strong without guidance too is not its doing."""
    scale = _guidance(patient)
    if scale <= 1:
        return OVER.judge(Measured(0.0), "it draws without guidance")
    tasks, scales = patient.asked[:DRAWN], (1.0, (1 + scale) / 2, scale)
    drawn = {one: [image for image, in patient.draw(tasks, guidance=one)] for one in scales}
    true = [looks.look(task.truth) for task in tasks]
    own, unguided = ([looks.look(image) for image in drawn[one]] for one in (scale, 1.0))
    over_true, over_unguided = sure.excess(own, true), sure.excess(own, unguided)
    evidence = _by_guidance(drawn, true)
    for at, task in enumerate(tasks[:4]):
        row = [(images[at], f"guidance {one:g}") for one, images in drawn.items()]
        evidence += paragraph(task.words) + gallery([*row, (task.truth, "true")])
    times, more = 2**over_true.value, 2**over_unguided.value
    words = f"at guidance {scale:g} drawn pictures have {times:.2f} times what the true ones have, and {more:.2f} times what those without it have"
    found = min(over_true, over_unguided, key=lambda measured: measured.value)
    return OVER.judge(found, words, evidence, guidance=scale, over_true=over_true.value, over_unguided=over_unguided.value)


def _by_guidance(drawn: dict[float, list[Image.Image]], true: list[np.ndarray]) -> str:
    logs = {one: np.log2(np.mean([looks.look(image) for image in images], axis=0) / np.mean(true, axis=0)) for one, images in drawn.items()}
    lines = [Line(name, [(one, float(values[column])) for one, values in logs.items()]) for column, name in enumerate(looks.NAMES)]
    return side_by_side(chart("Drawn pictures against the true ones", lines, "guidance", "log2 of the ratio of means", noisy=False))


NOISE = Rule(
    "blurred",
    "error of x at t = 0.05 to 0.2, over that of the noisy picture itself",
    mild=0.75, severe=2.0,
    reason="at 1 the network gives back a picture as far from the truth as the noisy one that it was shown; "
    "runs of sharp pictures are at 0.03 to 0.25",
    advice="practise low noise (objective.uniform_share, a lower mean or shift, a smaller clamp), give the head more to draw with "
    "(model.head=conv, smaller patches), look for blurred or enlarged pictures in the data, and train longer",
)  # fmt: skip
SOFT = Rule(
    "blurred",
    "with the run's own knobs: log2 of the detail of drawn pictures over that of the true ones (means)",
    mild=-1.0, severe=-2.0,
    reason="-1 is half the detail: what averaging each two by two pixels takes away",
    advice=NOISE.advice + "; more samples.steps, if few are taken",
)  # fmt: skip


def blurred(patient: Patient) -> Finding:
    """Both in the network's answers at low noise and in the pictures that come of them; the worse counts."""
    tasks = patient.tasks
    if not tasks:
        return NOISE.unknown("no held-out document has a picture to draw")
    errors, times = x_errors(patient, [task.sample for task in tasks], 0.05, 0.2)
    path = PATHS[patient.learner.painter.config.path if patient.paints else patient.learner.model.config.path]
    noisy = (path.sigma(times) / path.alpha(times)).square()
    found = sure.ratio(errors.mean(-1).numpy(), noisy.mean(-1).numpy())
    words = f"at t = 0.05 to 0.2 the network's pictures are {found.value:.2f} times as far from the true ones as the noisy ones are"
    return worse(NOISE.judge(found, words, low_noise=found.value), _soft(patient, tasks[:DRAWN]))


def _soft(patient: Patient, tasks: list[Task]) -> Finding:
    drawn = [one for one, in patient.draw(tasks)]
    details = [[[looks.detail(looks.values(image)) + looks.FAINT] for image in images] for images in (drawn, [task.truth for task in tasks])]
    found = sure.excess(*details)
    shown = [pair for image, task in list(zip(drawn, tasks))[:SHOWN] for pair in ((image, task.words), (task.truth, "true"))]
    return SOFT.judge(found, f"drawn pictures have {2**found.value:.2f} times the detail of the true ones", gallery(shown), detail=found.value)
