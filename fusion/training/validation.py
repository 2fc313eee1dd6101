"""Validation: the losses of held-out batches with the same noise and the same times at every call."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fusion.training.learner import Learner
from fusion.unified.objective import FlowObjective, Losses

BINS = 5


@dataclass
class _Sums:
    """Sums over batches, each with its count."""

    text: float = 0.0
    text_count: int = 0
    control: float = 0.0
    control_count: int = 0
    x_error: float = 0.0
    images: int = 0
    asked: int = 0
    begun: int = 0
    rightly: int = 0
    copied: float = 0.0
    edits: float = 0.0

    def add(self, result: Losses) -> None:
        self.text += float(result.text)
        self.text_count += int(result.text_count)
        self.control += float(result.control)
        self.control_count += int(result.control_count)
        self.x_error += float(result.x_error.sum())
        self.images += len(result.x_error)
        if result.draws is not None:
            asked, begun, rightly = result.draws.tolist()
            self.asked, self.begun, self.rightly = self.asked + asked, self.begun + begun, self.rightly + rightly
        if result.copied is not None:
            copied, edits = result.copied.tolist()
            self.copied, self.edits = self.copied + copied, self.edits + edits


@torch.no_grad()
def validate(
    learner: Learner,
    held_out: Mapping[str, Sequence[Any]],
    objective: FlowObjective,
    seed: int,
    autocast: AbstractContextManager,
) -> dict[str, float]:
    """Metrics of held-out batches by name of their source.

    `val/text` (cross-entropy per token), `val/control` (that of control tokens), `val/x_error` (mean squared error of
    x_hat, unweighted, times uniform), `val/x_error/0.2-0.4` (that of images with such a time), `val/text_of/<name>`,
    `val/x_error_of/<name>`, and, of the tokens at which the true text goes on with an image, `val/draws/when_asked`,
    the share at which the model would draw, and of those at which it would, `val/draws/rightly`, the share at which it
    should. `val/edits/copied`: how far what it makes of an edit stays at the image that is edited, 1, rather than the
    wanted one, 0.
    """
    device = next(learner.model.parameters()).device
    objective = replace(objective, times="uniform", shift=1.0)
    total, by_name = _Sums(), defaultdict(_Sums)
    times, errors = [], []
    for name, batches in held_out.items():
        for number, batch in enumerate(batches):
            generator = torch.Generator(device).manual_seed(seed + number)
            with autocast:
                result = learner.losses(batch, objective, generator)
            for sums in (total, by_name[name]):
                sums.add(result)
            times.append(result.time.float().cpu())
            errors.append(result.x_error.float().cpu())
    return _named(total, by_name) | (_by_time(torch.cat(times), torch.cat(errors)) if times else {})


def _named(total: _Sums, by_name: Mapping[str, _Sums]) -> dict[str, float]:
    values = {}
    if total.text_count:
        values["val/text"] = total.text / total.text_count
    if total.control_count:
        values["val/control"] = total.control / total.control_count
    if total.images:
        values["val/x_error"] = total.x_error / total.images
    if total.asked:
        values["val/draws/when_asked"] = total.rightly / total.asked
    if total.begun:
        values["val/draws/rightly"] = total.rightly / total.begun
    if total.edits:
        values["val/edits/copied"] = total.copied / total.edits
    values |= {f"val/text_of/{name}": sums.text / sums.text_count for name, sums in by_name.items() if sums.text_count}
    return values | {
        f"val/x_error_of/{name}": sums.x_error / sums.images for name, sums in by_name.items() if sums.images
    }


def _by_time(times: Tensor, errors: Tensor) -> dict[str, float]:
    values = {}
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = (times >= low) & (times < high)
        if inside.any():
            values[f"val/x_error/{low:.1f}-{high:.1f}"] = float(errors[inside].mean())
    return values
