"""Sample from a numpy Generator with one uniform number per draw, since `Generator.choice` takes 20 us."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Return True with this probability."""
    return rng.random() < probability


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """Return a uniformly random integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def weighted(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """Return one of the keys, with probability in proportion to its weight."""
    left = rng.random() * sum(weights.values())
    for option, weight in weights.items():
        left -= weight
        if left < 0:
            return option
    return option


def some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """Return `count` different options in random order."""
    pool = list(options)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]
