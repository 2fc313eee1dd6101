"""Checks of the run itself: whether it ended too early, and whether it is validated on what it was trained on."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from fusion.common.charts import Line, chart, side_by_side
from fusion.common.html import gallery
from fusion.common.statistics import Measured, Z
from fusion.data.formats import BadSample, Sample, Source
from fusion.data.formats.table_source import TableSource
from fusion.doctor import image_statistics as looks
from fusion.doctor.finding import UNCLEAR, Finding, Rule
from fusion.doctor.run_data import Patient
from fusion.sequence.document import blocks

POINTS = 4  # fewest validations in the last half of a run that a slope is fitted to

GREEN = Rule(
    "undertrained",
    "what the last doubling of documents took off the validation error of images, the learning rate still up",
    mild=0.05,
    severe=0.2,
    reason="a fall of a twentieth with each doubling is nearly flat; where it is a fifth, twice the time is a visibly "
    "better model",
    advice="go on: resume=true with more training.documents or minutes, and let the learning rate come down to its end",
)
ENDED = Rule(
    GREEN.illness,
    "what the last doubling of documents took off the validation error of images, or off its least before, or one "
    "took off while "
    "the learning rate was up, whichever is least",
    mild=0.15,
    severe=0.35,
    reason="bringing the rate down takes off up to a third by itself; what did not fall before it, or was lower once, "
    "does not want training",
    advice=GREEN.advice,
)
STAGES = Rule(
    GREEN.illness,
    "share of the documents before the curriculum's last stage that were seen",
    mild=1.0,
    severe=0.9,
    reason="what comes in the last stage alone was never seen",
    advice=GREEN.advice,
)
STOPPED = Rule(
    GREEN.illness,
    "share of what it was to last that it lasted, where the curve falls but is too rough for a slope",
    mild=0.5,
    severe=0.1,
    reason="with the learning rate still up, a run that has not seen half of what it was planned for is not known "
    "to be done",
    advice=GREEN.advice,
)


Curve = Sequence[tuple[float, float]]


def undertrained(patient: Patient) -> Finding:
    """Check whether the run ended too early.

    It is judged by the curriculum where its last stage was not reached, else by the validation curve.
    """
    if not patient.rows:
        return GREEN.unknown("metrics.jsonl is missing")
    return _by_stages(patient) or _by_curve(patient)


def _by_stages(patient: Patient) -> Finding | None:
    seen, starts = patient.rows[-1]["seen"], [stage.until for stage in patient.stages[:-1]]
    if not starts or seen >= starts[-1]:
        return None
    at = sum(seen >= start for start in starts) + 1
    words = f"it ended after {seen:,} documents, in stage {at} of {len(starts) + 1}; the last begins at {starts[-1]:,}"
    return STAGES.judge(Measured(seen / starts[-1]), words, _curves(patient.rows))


def _by_curve(patient: Patient) -> Finding:
    seen = patient.rows[-1]["seen"]
    curve = [
        (row["seen"], row["val/x_error"]) for row in patient.rows if row.get("val/x_error", 0) > 0 and row["seen"] > 0
    ]
    if (late := sum(at >= seen / 2 for at, _ in curve)) < POINTS:
        return GREEN.unknown(
            f"{late} validations in the last half of the run, and a slope takes {POINTS}; lower training.validate_every"
        )
    rate, falls = _rate(patient), _falls(patient.rows, curve, seen)
    rule = GREEN if rate > 0.1 else ENDED
    said, found = min(falls if rule is ENDED else falls[:1], key=lambda pair: pair[1].value)
    takes = f"take {found.value:.1%} off" if found.value >= 0 else f"put {-found.value:.1%} on"
    words = f"{said.format(takes=takes)}, and the learning rate ended at {rate:.0%} of its peak"
    finding, share = rule.judge(found, words, _curves(patient.rows), rate=rate), _share(patient)
    if finding.verdict == UNCLEAR and rule is GREEN:
        stopped = STOPPED.judge(
            Measured(share),
            f"{words}; it was stopped after {share:.1%} of what it was to last",
            finding.evidence,
            rate=rate,
        )
        return stopped if stopped.ill else finding
    return finding


def _falls(rows: Sequence[dict], curve: Curve, seen: int) -> list[tuple[str, Measured]]:
    """Measure what a doubling of documents took off the error: a sentence and the measurement, for each of up to three.

    They are over the last half; at its end, against the least of the first half; and while the learning rate was up.
    The sentence has the placeholder `{takes}`.
    """
    first, late = ([point for point in curve if (point[0] < seen / 2) == early] for early in (True, False))
    falls = [("twice the documents {takes} the error", falling(late))]
    if first:
        least = min(error for _, error in first)
        falls.append(
            ("twice the documents {takes} the least error of the first half", Measured(1 - late[-1][1] / least))
        )
    rates = [(row["seen"], row["lr"]) for row in rows if "lr" in row]
    peak = max((rate for _, rate in rates), default=0.0)
    end = max((at for at, rate in rates if rate >= peak / 2), default=0)
    if len(up := [point for point in curve if end / 2 <= point[0] <= end]) >= POINTS:
        falls.append(("while its rate was up twice the documents {takes} the error", falling(up)))
    return falls


def _share(patient: Patient) -> float:
    """Return the share of the planned documents or minutes that the run lasted, whichever is more."""
    last, training = patient.rows[-1], patient.config.training
    documents, minutes = training.documents, training.minutes
    return max(last["seen"] / documents if documents else 0.0, last["time"] / (60 * minutes) if minutes else 0.0)


def _rate(patient: Patient) -> float:
    """Return the last learning rate over the largest, less the share that was to be left (`floor`), at least 0."""
    rates, floor = [row["lr"] for row in patient.rows if "lr" in row], patient.config.training.optim.floor
    return max(0.0, rates[-1] / max(*rates, 1e-30) - floor) if rates else 0.0


def falling(curve: Curve) -> Measured:
    """Measure the share that each doubling of x takes off y, with the 95% interval.

    It fits a line through log y over log2 x, and the interval is that of its slope. curve: points (x, y).
    """
    x, y = np.log2([seen for seen, _ in curve]), np.log2([error for _, error in curve])
    (slope, _), centred = np.polyfit(x, y, 1), x - x.mean()
    left = y - y.mean() - slope * centred
    half = Z * math.sqrt(np.square(left).sum() / (len(x) - 2) / np.square(centred).sum())
    return Measured(*(1 - 2 ** (slope + side * half) for side in (0, 1, -1)))


def _curves(rows: Sequence[dict]) -> str:
    groups = {"Validation error of images": ("val/x_error",), "Learning rate": ("lr",)}
    lines = {
        title: [Line(name, [(row["seen"], row[name]) for row in rows if name in row]) for name in names]
        for title, names in groups.items()
    }
    charts = [
        chart(title, found, "seen", log=title != "Learning rate")
        for title, found in lines.items()
        if any(line.points for line in found)
    ]
    return side_by_side(*charts)


# ---- leaks ----

LEAKING = Rule(
    "leaking validation subjects",
    "share of the validation samples that have an image, or a subject, of training's",
    mild=0.0,
    severe=0.1,
    reason="one is one too many, as it is always the same image that the figures are better by; from a tenth on no "
    "figure of validation holds",
    advice="give images that are the same one subject (a `subject` column, or one file name), or take them out; "
    "fusion data check lists equal ones",
)
MOST = 5000  # most samples of a source that are compared, evenly spread over all
NEAREST = 4  # nearest images of training, which are compared pixel by pixel
ALIKE, OF_ITS_CONTRAST = 8 / 255, 0.2  # images this near count as the same one: saved again, resized, a few levels off


def leaking(patient: Patient) -> Finding:
    """Check whether validation samples share an image or a subject with training.

    Images are compared as thumbnails, and the nearest pixel by pixel. Crops and mirrored images are not found.
    """
    sides = {
        side: [source for source in patient.sources(side) if isinstance(source, TableSource)]
        for side in ("train", "validation")
    }
    if not sides["validation"]:
        return LEAKING.unknown("its data has no end, and every document is drawn from its own number")
    train = [pair for source in sides["train"] for pair in _images(source)]
    held_out = [pair for source in sides["validation"] for pair in _images(source)]
    samples = {sample.key: sample for sample, _ in held_out}
    if not train or not held_out:
        return LEAKING.unknown("one side of the split has no image")
    subjects = {sample.subject for sample, _ in train} - {None}
    shared = {key for key, sample in samples.items() if sample.subject in subjects}
    twins = _twins(train, held_out)
    leaked = shared | {held[0].key for held, _ in twins}
    words = (
        f"{len(leaked)} of {len(samples)} validation samples: {len({held[0].key for held, _ in twins})} by an image, "
        f"{len(shared)} by a subject; "
        f"{len(train):,} images of training were compared"
    )
    shown = [
        pair
        for held, own in twins[:6]
        for pair in ((held[1], f"validation: {held[0].key}"), (own[1], f"training: {own[0].key}"))
    ]
    return LEAKING.judge(
        Measured(len(leaked) / len(samples)), words, gallery(shown), images=len(twins), subjects=len(shared)
    )


Illustrated = tuple[Sample, Image.Image]


def _images(source: Source) -> list[Illustrated]:
    """Return the images of at most MOST samples of a source, each with its sample."""
    found = []
    for index in range(0, len(source), max(1, math.ceil(len(source) / MOST))):
        try:
            sample = source[index]
        except BadSample:
            continue
        turns = [turn["content"] for turn in sample.messages] if sample.messages else [sample.content]
        found += [
            (sample, block["image"]) for content in turns for block in blocks(content) if block["type"] == "image"
        ]
    return found


def _twins(train: Sequence[Illustrated], held_out: Sequence[Illustrated]) -> list[tuple[Illustrated, Illustrated]]:
    """Return the images of validation that are also in training, each as (validation, training)."""
    small = [torch.from_numpy(np.stack([looks.thumbnail(image) for _, image in side])) for side in (held_out, train)]
    nearest = torch.cat(
        [
            torch.cdist(part, small[1]).topk(min(NEAREST, len(train)), largest=False).indices
            for part in small[0].split(256)
        ]
    )
    found = []
    for held, places in zip(held_out, nearest.tolist(), strict=True):
        limit = min(ALIKE, OF_ITS_CONTRAST * float(looks.values(held[1]).std()))
        own = next((train[place] for place in places if looks.distance(held[1], train[place][1]) <= limit), None)
        if own is not None:
            found.append((held, own))
    return found
