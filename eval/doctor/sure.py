"""How sure a statistic is: 95% intervals from resampling the pictures that it was measured on (Efron's bootstrap)."""

from collections.abc import Callable, Sequence

import numpy as np

from eval.doctor.finding import Measured, Missing

RESAMPLED = 2000
LEAST = 8  # pictures: of fewer, resampling finds them more alike than they are


def ratio(over: Sequence[float], under: Sequence[float]) -> Measured:
    """The sum of some values over that of others, which belong to the same pictures."""
    pairs = np.stack([np.asarray(over, float), np.asarray(under, float)], axis=-1)
    return _measured(pairs, lambda drawn: drawn[..., 0].sum(-1) / drawn[..., 1].sum(-1))


def excess(over: Sequence[Sequence[float]], under: Sequence[Sequence[float]]) -> Measured:
    """The largest log2 of the ratio of two means, over the columns. over, under: (pictures, columns), of the same prompts."""
    columns = np.shape(over)[-1]
    return _measured(np.concatenate([over, under], axis=-1), lambda drawn: _log_ratios(drawn.mean(-2), columns).max(-1))


def _log_ratios(means: np.ndarray, columns: int) -> np.ndarray:
    return np.log2(means[..., :columns] / means[..., columns:])


def mean(values: Sequence[float]) -> Measured:
    """Of one value a picture."""
    return _measured(np.asarray(values, float)[:, None], lambda drawn: drawn[..., 0].mean(-1))


def _measured(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Measured:
    """rows: (pictures, values). Raises Missing where they are too few."""
    if len(rows) < LEAST:
        raise Missing(f"{len(rows)} held-out pictures can be used, and it takes {LEAST} to be sure of anything")
    drawn = np.random.default_rng(0).integers(len(rows), size=(RESAMPLED, len(rows)))
    low, high = np.quantile(statistic(rows[drawn]), (0.025, 0.975))
    return Measured(float(statistic(rows)), float(low), float(high))
