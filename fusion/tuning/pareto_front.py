"""Choice among settings judged on the same items: the quality-cost front; presets fast, balanced and best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, variance

from fusion.common.statistics import Z
from fusion.generation.sampling import Sampling

QUARTER = 0.25  # of the default's cost: what `fast` may take
RULE = (
    "best: the highest quality, whatever it costs; nothing beats it significantly. balanced: the cheapest whose "
    "quality is not significantly "
    "below best's (the 95% interval of the mean difference over the same items from the same noise reaches 0). fast: "
    "the highest quality at a "
    "quarter of the default's cost or less, and at no more than balanced's. Where two are equally good, the cheaper; "
    "where equally cheap, the better."
)


@dataclass(frozen=True)
class Judged:
    """A setting, its cost (forward passes an image), and by suite each item's quality and whether it was right; the
    items are the same for all."""

    setting: Sampling
    cost: float
    quality: dict[str, Sequence[float]]
    right: dict[str, Sequence[float]]

    @property
    def mean(self) -> float:
        """Of the suites' mean qualities."""
        return mean(map(mean, self.quality.values()))


def gain(one: Judged, other: Judged) -> tuple[float, float]:
    """By how much one is better, item by item, and half of the 95% interval of that mean; suites count the same,
    however many items they have."""
    gains = [[a - b for a, b in zip(found, other.quality[suite], strict=True)] for suite, found in one.quality.items()]
    spread = sum(variance(found) / len(found) for found in gains)
    return mean(map(mean, gains)), Z * math.sqrt(spread) / len(gains)


def chosen(judged: Sequence[Judged], default_cost: float) -> dict[str, Judged]:
    """The presets by name (see RULE). Raises ValueError where nothing is as cheap as `fast` has to be."""
    best = max(judged, key=lambda one: (one.mean, -one.cost))
    balanced = min((one for one in judged if reaches(one, best)), key=lambda one: (one.cost, -one.mean))
    limit = min(QUARTER * default_cost, balanced.cost)
    cheap = [one for one in judged if one.cost <= limit]
    if not cheap:
        raise ValueError(f"nothing that was tried takes {limit:g} forward passes or less: give a larger --budget")
    return {"fast": max(cheap, key=lambda one: (one.mean, -one.cost)), "balanced": balanced, "best": best}


def reaches(one: Judged, best: Judged) -> bool:
    """Whether it is not significantly below the best."""
    less, half = gain(best, one)
    return less <= half


def front(judged: Sequence[Judged]) -> list[Judged]:
    """Those that nothing of the same cost or less is better than, cheapest first."""
    found: list[Judged] = []
    for one in sorted(judged, key=lambda one: (one.cost, -one.mean)):
        if not found or one.mean > found[-1].mean:
            found.append(one)
    return found
