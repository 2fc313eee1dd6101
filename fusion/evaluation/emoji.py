"""Evaluation on held-out emoji: images from names, edits of style and skin tone, each beside the true image.

Usage: `python -m eval.emoji RUN`
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from fusion.common.html import Section, figure, paragraph, table
from fusion.data.formats import BadSample, EditPairs, ImageFolder, Sample
from fusion.data.formats.config import DataConfig, open_sources
from fusion.data.formats.split import fraction
from fusion.generation import api
from fusion.generation.api import Fusion
from fusion.sequence.document import blocks
from fusion.training import report

COUNT = 24  # most images, and most pairs of each kind of edit, each of another held-out character
FROM_WORDS = "from their names"
SAMPLING_PARAMETERS = ("seed", "steps", "guidance", "image_guidance")  # taken from the run's config.samples


@dataclass(frozen=True)
class Drawn:
    """A held-out sample and the model's result for it; all images have the same size.

    words: the text of the request. before: the source image of an edit, None without one. wanted: the true image.
    drawn: the generated image.
    """

    words: str
    before: Image.Image | None
    wanted: Image.Image
    drawn: Image.Image


def sections(model: Fusion, data: DataConfig, params: Mapping[str, Any], count: int = COUNT) -> list[Section]:
    """Build the report's sections on characters that were never trained on, split as by the run's own loaders.

    data: the run's config, with sources of kind images or edits; the latter are grouped by their column `kind`. params:
    sampling parameters of Fusion.draw and Fusion.edit. count: most samples of each kind.
    """
    found = []
    for kind, samples in held_out(data, model.processor.stride, count):
        drawn = [attempt(model, sample, params) for sample in samples]
        said = _panels(drawn) if kind == FROM_WORDS else _distances(drawn) + _panels(drawn)
        found.append(Section(f"Held-out characters, {kind}", said))
    return found


def held_out(data: DataConfig, stride: int, count: int) -> Iterator[tuple[str, list[Sample]]]:
    """Yield each kind of request for an image with at most `count` samples, of subjects that were never trained on.

    data: the run's config, whose validation split is used. stride: of the model's processor, in pixels per patch side.
    """
    sources = [replace(source, describe=0.0) if source.kind == "images" else source for source in data.sources]
    for source in open_sources(replace(data, sources=sources), "validation", stride):
        if isinstance(source, ImageFolder):
            yield FROM_WORDS, list(_subjects(source, count))
        elif isinstance(source, EditPairs):
            for kind in sorted({_kind(source, index) for index in range(len(source))}):
                yield f"edits of {kind}", list(_subjects(source, count, kind))


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Compute the peak signal-to-noise ratio of two images of the same size, in dB; inf where they are equal."""
    error = np.mean((np.asarray(image, np.float64) - np.asarray(other, np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _kind(source: EditPairs, index: int) -> str:
    """Return the kind of an edit pair, from its row's column `kind`."""
    return str(source.rows[source.chosen[index][0]].values.get("kind", "any kind"))


def _subjects(source: ImageFolder | EditPairs, count: int, kind: str | None = None) -> Iterator[Sample]:
    """Yield at most `count` samples, each of another subject, the same at every call; kind: of the edits to include."""
    seen = set()
    for index in sorted(range(len(source)), key=lambda index: fraction("held-out emoji", index)):
        subject = source.chosen[index][1]
        if len(seen) == count:
            return
        if subject in seen or (kind and _kind(source, index) != kind):
            continue
        try:
            yield source[index]
            seen.add(subject)
        except BadSample:
            continue


def attempt(model: Fusion, sample: Sample, params: Mapping[str, Any]) -> Drawn:
    """Generate the model's image for a sample's request, from text or by an edit.

    params: sampling parameters of Fusion.draw and Fusion.edit.
    """
    asked, answer = sample.messages
    words = " ".join(block["text"] for block in blocks(asked["content"]) if block["type"] == "text")
    before = next((block["image"] for block in blocks(asked["content"]) if block["type"] == "image"), None)
    (wanted,) = (block["image"] for block in blocks(answer["content"]))
    if before is None:
        return Drawn(words, None, wanted, model.draw(words, image_size=wanted.size, **params)[0])
    return Drawn(words, before, wanted, model.edit(before, words, **params))


def _panels(drawn: Sequence[Drawn]) -> str:
    html = ""
    for one in drawn:
        images = {"before": one.before, "wanted": one.wanted, "drawn": one.drawn}
        figures = "".join(figure(image, name) for name, image in images.items() if image)
        html += f'<div class="triptych"><p>{escape(one.words)}</p><div>{figures}</div></div>'
    return html


def _distances(drawn: Sequence[Drawn]) -> str:
    """Render the median PSNR of edited and of unedited images against the true images, as HTML."""
    after = [psnr(one.drawn, one.wanted) for one in drawn]
    before = [psnr(one.before, one.wanted) for one in drawn]
    nearer = sum(a > b for a, b in zip(after, before, strict=True))
    rows = [("drawn", median(after)), ("left as it was", median(before))]
    said = f"{nearer} of {len(drawn)} images came nearer to what was wanted than they were before the edit."
    return table(rows, ("image", "median PSNR against what was wanted, dB")) + paragraph(said)


def median(values: Sequence[float]) -> float:
    """Return the median of numbers, which may include infinities."""
    return float(np.median(values))


def main(arguments: Sequence[str]) -> int:
    """Write the report of a finished run again, with this section: `python -m eval.emoji RUN`.

    Returns 0, or prints one line on stderr and returns 1 (2 for wrong usage).
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m eval.emoji RUN    writes RUN/report.html", file=sys.stderr)
        return 2
    run = Path(arguments[0])
    try:
        if not (run / "config.yaml").is_file():
            raise ValueError(f"{run}: no config.yaml; give the folder of a run of train.unified")
        config = OmegaConf.load(run / "config.yaml")
        data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), config.data))
        model = api.load(run / "model", device="cuda" if torch.cuda.is_available() else None)
        print(report.write(run, sections(model, data, {name: config.samples[name] for name in SAMPLING_PARAMETERS})))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
