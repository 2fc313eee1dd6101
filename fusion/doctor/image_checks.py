"""Checks of generated images: copies of the source, one image for all seeds, too much guidance, blur."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fusion.common import statistics
from fusion.common.charts import Line, chart, side_by_side
from fusion.common.html import figure, gallery, paragraph
from fusion.common.statistics import Measured
from fusion.doctor import image_statistics as looks
from fusion.doctor.denoising_errors import x_errors
from fusion.doctor.finding import Finding, Rule, worse
from fusion.doctor.run_data import Patient, Task
from fusion.flow.matching import PATHS

SEEDS, SHOWN = 4, 8
UNGUIDED = {"guidance": 1.0, "image_guidance": 1.0}
CHANGED = 8 / 255  # a pixel whose channels differ by less did not change
HALF = 0.5  # of the distance from the source to the true edit


def _unguided(patient: Patient) -> dict[str, float]:
    return {name: value for name, value in UNGUIDED.items() if name in patient.params}


def _guidance(patient: Patient) -> float:
    return float(patient.params["guidance"])


def _some(patient: Patient, tasks: Sequence[Task], share: float = 0.5) -> list[Task]:
    """Return the first tasks, as many as a share of `patient.count`, but at least LEAST: more make figures surer."""
    return list(tasks[: max(statistics.LEAST, int(share * patient.count))])


def _copies(patient: Patient, tasks: Sequence[Task]) -> int:
    """Return the number of seeds for each task, at most SEEDS, that give about `patient.count` images together."""
    return min(SEEDS, max(1, patient.count // len(tasks)))


COPY = Rule(
    "copying the source",
    "share of edits that go less than half of the way from the source, where the true edit changes the image",
    mild=0.1,
    severe=0.5,
    reason="short of half of the way the image is nearer to the source than to the edit that was asked for; runs "
    "that do not copy have 0 to 0.05, "
    "and from a tenth on a person meets it again and again",
    advice="look for pairs that do not differ, and for instructions that belong to other pairs; raise samples.guidance "
    "for edits, lower "
    "image_guidance, and drop the text less often (packing.drop_text)",
)


def copying(patient: Patient) -> Finding:
    """Check whether edits copy the source.

    Edits are drawn with the run's own sampling parameters, several times where they are few. Only pixels that the true
    edit changes count, so that the background that all three images share has no weight. A model that was trained on
    some pairs without a change copies now and then, which a share shows and a median hides.
    """
    tasks = _some(patient, [task for task in patient.edits if _changed(task).any()])
    if not tasks:
        return COPY.unknown("no held-out edit changes a pixel")
    edited = patient.draw(tasks, copies=_copies(patient, tasks))
    moved = np.array([[_moved(task, image) for image in images] for task, images in zip(tasks, edited, strict=True)])
    found = statistics.resampled_mean((moved < HALF).mean(axis=1))
    shown = list(zip(tasks, edited, moved, strict=True))[:SHOWN]
    evidence = "".join(_edit(task, images[0], f"{way[0]:.2f}") for task, images, way in shown)
    words = (
        f"where the true edit changes something, {found.value:.0%} of {moved.size} edits of {len(tasks)} images go "
        "less than half of the way"
    )
    return COPY.judge(found, words, evidence, median=float(np.median(moved)))


def _changed(task: Task) -> np.ndarray:
    return np.abs(looks.values(task.truth) - looks.values(task.source)).max(-1) > CHANGED


def _moved(task: Task, edited: Image.Image) -> float:
    where, source = _changed(task), looks.values(task.source)
    return float(
        np.abs(looks.values(edited) - source)[where].mean() / np.abs(looks.values(task.truth) - source)[where].mean()
    )


def _edit(task: Task, edited: Image.Image, share: str) -> str:
    images = [(task.source, "source"), (edited, f"its edit, {share}"), (task.truth, "true edit")]
    figures = "".join(figure(image, words) for image, words in images)
    return f'<div class="triptych">{paragraph(task.words)}<div>{figures}</div></div>'


COLLAPSED = Rule(
    "collapsed diversity",
    "without guidance: how much images of one prompt differ between seeds, over the model's own error at t = 1 "
    "(variances)",
    mild=0.45,
    severe=0.15,
    reason="at t = 1 nothing but the words is known, so that the error there is what they leave open, and images of "
    "a sampler that draws all of it "
    "differ as much: 1; at 0.45 they differ by two thirds of what they should, at 0.15 by two fifths",
    advice="look for prompts that always came with one image, for a set so small that it was learned by heart, and "
    "for times that never were near "
    "1 (objective.mean, shift)",
)


def collapsed(patient: Patient) -> Finding:
    """Check whether images of one prompt differ between seeds as much as they should.

    They are drawn without guidance, which narrows diversity by design and has a check of its own.
    """
    tasks = _some(patient, patient.asked, 1 / 6)
    drawn = patient.draw(tasks, copies=SEEDS, **_unguided(patient))
    spread = [_spread(patient, images) for images in drawn]
    open_left = x_errors(patient, [task.sample for task in tasks], 0.98, 1.0)[0].mean(-1)
    if len(open_left) != len(spread):  # documents with several images: what they leave open on average
        open_left = open_left.mean().expand(len(spread))
    found = statistics.resampled_ratio(spread, open_left.numpy())
    guided = np.mean([_spread(patient, images) for images in patient.draw(tasks, copies=SEEDS)]) / float(
        open_left.mean()
    )
    rows = "".join(
        f"{paragraph(task.words)}{gallery([(image, '') for image in images])}"
        for task, images in list(zip(tasks, drawn))[:4]
    )
    words = (
        f"images of one prompt differ by {found.value:.2f} of what the words leave open (with its own guidance by "
        f"{guided:.2f})"
    )
    return COLLAPSED.judge(found, words, rows, guided=float(guided))


def _spread(patient: Patient, images: Sequence[Image.Image]) -> float:
    """Return the variance over seeds, in latents, where the model's errors are measured too."""
    return float(patient.encode(images).var(dim=0).mean())


OVER = Rule(
    "over-guided",
    "log2 of how much more saturation, contrast or detail (the largest of the three) images drawn with the run's own "
    "guidance have than the true "
    "ones, or than those drawn without guidance, whichever is less",
    mild=0.3,
    severe=0.7,
    reason="0.3 is a quarter more than the data has, more than guidance of 2 to 4 adds to models that are well; 0.7 is "
    "three fifths more",
    advice="lower samples.guidance, to where the curve comes down to 0, or let it act within an interval only "
    "(guidance_interval); "
    "fusion tune finds it",
)


def over_guided(patient: Patient) -> Finding:
    """Check whether guidance exaggerates saturation, contrast or detail.

    Drawn images are compared with the true ones and with those drawn without guidance, and the smaller excess counts:
    what is too strong without guidance too is not caused by it.
    """
    scale = _guidance(patient)
    if scale <= 1:
        return OVER.judge(Measured(0.0), "it draws without guidance")
    tasks, scales = _some(patient, patient.asked), (1.0, (1 + scale) / 2, scale)
    drawn = {one: patient.draw(tasks, copies=_copies(patient, tasks), guidance=one) for one in scales}
    looked = {
        one: np.array([np.mean([looks.look(image) for image in images], axis=0) for images in rows])
        for one, rows in drawn.items()
    }
    true = np.array([looks.look(task.truth) for task in tasks])
    over_true, over_unguided = (
        statistics.resampled_excess(looked[scale], true),
        statistics.resampled_excess(looked[scale], looked[1.0]),
    )
    evidence = _by_guidance(looked, true)
    for at, task in enumerate(tasks[:4]):
        row = [(rows[at][0], f"guidance {one:g}") for one, rows in drawn.items()]
        evidence += paragraph(task.words) + gallery([*row, (task.truth, "true")])
    times, more = 2**over_true.value, 2**over_unguided.value
    words = (
        f"at guidance {scale:g} drawn images have {times:.2f} times what the true ones have, and {more:.2f} times "
        "what those without it have"
    )
    found = min(over_true, over_unguided, key=lambda measured: measured.value)
    return OVER.judge(
        found, words, evidence, guidance=scale, over_true=over_true.value, over_unguided=over_unguided.value
    )


def _by_guidance(looked: dict[float, np.ndarray], true: np.ndarray) -> str:
    logs = {one: np.log2(rows.mean(axis=0) / true.mean(axis=0)) for one, rows in looked.items()}
    lines = [
        Line(name, [(one, float(values[column])) for one, values in logs.items()])
        for column, name in enumerate(looks.NAMES)
    ]
    return side_by_side(
        chart("Drawn images against the true ones", lines, "guidance", "log2 of the ratio of means", noisy=False)
    )


NOISE = Rule(
    "blurred",
    "error of x at t = 0.05 to 0.2, over that of the noisy image itself",
    mild=1.0,
    severe=2.0,
    reason="above 1 the network gives back an image further from the truth than the noisy one that it was shown, "
    "which would do better left alone; "
    "runs of sharp images are at 0.03 to 0.25",
    advice="practise low noise (objective.uniform_share, a lower mean or shift, a smaller clamp), give the head more "
    "to draw with "
    "(model.head=conv, smaller patches), look for blurred or enlarged images in the data, and train longer",
)
SOFT = Rule(
    "blurred",
    "with the run's own sampling parameters: log2 of the detail of drawn images over that of the true ones as the "
    "codec gives them back (means)",
    mild=-0.5,
    severe=-1.0,
    reason="-0.5 is what a Gaussian of 0.6 pixels takes from drawings with sharp edges, and -1, half the detail, one "
    "of a pixel; runs of sharp "
    "images are at -0.35 to 0.5",
    advice=NOISE.advice + "; more samples.steps, if few are taken",
)


def blurred(patient: Patient) -> Finding:
    """Check for blur, both in the network's predictions at low noise and in drawn images; the worse counts."""
    tasks = patient.tasks
    if not tasks:
        return NOISE.unknown("no held-out document has an image to draw")
    errors, times = x_errors(patient, [task.sample for task in tasks], 0.05, 0.2)
    path = PATHS[patient.learner.text_to_image.config.path if patient.paints else patient.learner.model.config.path]
    noisy = (path.sigma(times) / path.alpha(times)).square()
    found = statistics.resampled_ratio(errors.mean(-1).numpy(), noisy.mean(-1).numpy())
    words = (
        f"at t = 0.05 to 0.2 the network's images are {found.value:.2f} times as far from the true ones as the "
        "noisy ones are"
    )
    return worse(NOISE.judge(found, words, low_noise=found.value), _soft(patient, _some(patient, tasks)))


def _soft(patient: Patient, tasks: list[Task]) -> Finding:
    """Check the detail of drawn images against that of the true ones as the codec reconstructs them.

    What an autoencoder takes from every image is not a fault of training.
    """
    drawn = [one for (one,) in patient.draw(tasks)]
    true = [patient.given_back(task.truth) for task in tasks]
    details = [[[looks.detail(looks.values(image)) + looks.FAINT] for image in images] for images in (drawn, true)]
    found = statistics.resampled_excess(*details)
    shown = [
        pair for image, task in list(zip(drawn, tasks))[:SHOWN] for pair in ((image, task.words), (task.truth, "true"))
    ]
    return SOFT.judge(
        found,
        f"drawn images have {2**found.value:.2f} times the detail of the true ones",
        gallery(shown),
        detail=found.value,
    )
