"""Text benchmarks before and after: what a model retains of its LLM, paired by item, with intervals and page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from fusion.common.html import Section, document, paragraph, table
from fusion.common.statistics import Z, wilson

MEAN, PERPLEXITY, WEIGHTED, BITS = "mean", "perplexity", "weighted_perplexity", "bits_per_byte"
KINDS = (MEAN, PERPLEXITY, WEIGHTED, BITS)
"""How lm-evaluation-harness makes one figure of many items, by its own names: of numbers; of log-likelihoods; and of
(log-likelihood, weight)."""


@dataclass(frozen=True)
class Figure:
    """A task's value by one metric.

    filter: lm_eval's filter of answers. stderr: None where it is not known. count: number of documents. higher: whether
    more is better, None where it is not known. kind: how the value is aggregated from items (KINDS), None where it is
    not. items: each document's part, in the task's order; empty without kind.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    count: int
    higher: bool | None
    kind: str | None = None
    items: tuple = ()

    @property
    def name(self) -> str:
        """The metric's name, with the filter of answers where there is one."""
        return self.metric if self.filter == "none" else f"{self.metric} ({self.filter})"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The 95% interval, None where it is not known.

        It is Wilson's for a share, whose standard error is 0 where all or none are right.
        """
        if self.kind == MEAN and all(0 <= item <= 1 for item in self.items):
            return wilson(self.value, len(self.items))
        return None if self.stderr is None else (self.value - Z * self.stderr, self.value + Z * self.stderr)


def value_of(kind: str, items: Sequence) -> tuple[float, NDArray]:
    """Compute the value of items, and by how much each item moves it, times their number.

    kind: one of KINDS. items: one number each, or (log-likelihood, weight). The mean of the moves is 0, and their
    spread is that of the value (the delta method).
    """
    x = np.asarray(items, dtype=float)
    if kind in (MEAN, PERPLEXITY):
        value, moves = x.mean(), x - x.mean()
        return (float(value), moves) if kind == MEAN else (math.exp(-value), -math.exp(-value) * moves)
    likelihood, weight = x.T
    rate = likelihood.sum() / weight.sum()
    moves = (likelihood - rate * weight) / weight.mean()
    return (
        (math.exp(-rate), -math.exp(-rate) * moves) if kind == WEIGHTED else (-rate / math.log(2), -moves / math.log(2))
    )


def stderr_of(moves: NDArray) -> float | None:
    """Compute the standard error of a value from its items' moves (see `value_of`); None for a single item."""
    return float(moves.std(ddof=1) / math.sqrt(len(moves))) if len(moves) > 1 else None


# ---- before and after ----


@dataclass(frozen=True)
class Pair:
    """A model's figure beside its LLM's by the same metric.

    before: the LLM's, None if it was not evaluated. after: the model's. difference: after minus before. half: half the
    95% interval of the paired difference, None where the figure has none.
    """

    before: Figure | None
    after: Figure
    difference: float | None = None
    half: float | None = None

    @property
    def verdict(self) -> str:
        """The verdict in words; better and worse only where the interval excludes 0."""
        if self.before is None:
            return ""
        if self.after.items and self.before.items == self.after.items:
            return "the same"
        if self.half is None:
            return "too few" if self.after.items else "not paired"
        if abs(self.difference) <= self.half:
            return "no difference seen"
        if self.after.higher is None:
            return "differs"
        return "better" if (self.difference > 0) == self.after.higher else "worse"

    def told(self) -> dict:
        """Return the entry in results.json: every figure, its standard error and its 95% interval."""
        after = self.after
        return {
            "task": after.task,
            "metric": after.metric,
            "filter": after.filter,
            "count": after.count,
            "higher_is_better": after.higher,
            "before": self.before and _figures(self.before),
            "after": _figures(after),
            "difference": self.difference,
            "half": self.half,
            "verdict": self.verdict,
        }


def paired(before: Sequence[Figure], after: Sequence[Figure]) -> list[Pair]:
    """Pair each of the model's figures with the LLM's by the same metric.

    before: the LLM's figures, empty if it was not evaluated. Raises ValueError where they are of other tasks or
    metrics.
    """
    known = {(one.task, one.metric, one.filter): one for one in before}
    if before and {(one.task, one.metric, one.filter) for one in after} != set(known):
        raise ValueError("the LLM and the model were not asked the same: give another folder with -o")
    return [_pair(known.get((one.task, one.metric, one.filter)), one) for one in after]


def _pair(before: Figure | None, after: Figure) -> Pair:
    if before is None:
        return Pair(None, after)
    difference = after.value - before.value
    if after.kind is None or before.kind != after.kind or len(before.items) != len(after.items):
        return Pair(before, after, difference)
    error = stderr_of(value_of(after.kind, after.items)[1] - value_of(before.kind, before.items)[1])
    return Pair(before, after, difference, None if error is None else Z * error)


def _figures(one: Figure) -> dict:
    low, high = one.bounds or (None, None)
    return {"value": one.value, "stderr": one.stderr, "low": low, "high": high}


# ---- for people ----

COLUMNS = ("task", "metric", "before", "after", "difference", "", "of")


def rows_of(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Return a table row of COLUMNS for each pair, values with their 95% intervals."""
    return [
        (
            one.after.task,
            f"{one.after.name}{_arrow(one.after.higher)}",
            _shown(one.before),
            _shown(one.after),
            _moved(one),
            one.verdict,
            f"{one.after.count:,}",
        )
        for one in pairs
    ]


def as_text(pairs: Sequence[Pair]) -> str:
    """Format the pairs as a table for a terminal, without empty columns."""
    rows = [COLUMNS, *rows_of(pairs)]
    columns = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in zip(*columns)
    )


def render(
    pairs: Sequence[Pair], model: str, llm: str | None, facts: Mapping[str, object], notes: Sequence[str] = ()
) -> str:
    """Render the comparison as an HTML page.

    facts: about the run, by name. notes: what a reader should know about the comparison.
    """
    beside = (
        f"before: {llm}; after: the model made of it"
        if llm
        else "the model alone; give --against to see what it did before"
    )
    lead = f"Text benchmarks of lm-evaluation-harness, {beside}."
    said = (
        "Values with their 95% intervals, those of differences of the same items: their mean or, of perplexities, by "
        "the delta method."
    )
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd></div>" for name, value in facts.items()
    )
    header = f'<header><h1>{escape(model)}</h1><p class="lead">{escape(lead)}</p><dl>{shown}</dl></header>'
    body = "".join(map(paragraph, notes)) + table(rows_of(pairs), COLUMNS) + f"<p><small>{escape(said)}</small></p>"
    return document(f"Text benchmarks of {model}", header, [Section("Before and after" if llm else "Scores", body)])


def _arrow(higher: bool | None) -> str:
    return "" if higher is None else (" ↑" if higher else " ↓")


def _shown(one: Figure | None) -> str:
    if one is None:
        return ""
    return f"{one.value:.4g}" + ("" if one.bounds is None else " ({:.4g}–{:.4g})".format(*one.bounds))


def _moved(one: Pair) -> str:
    return (
        "" if one.difference is None else f"{one.difference:+.4g}" + ("" if one.half is None else f" ± {one.half:.2g}")
    )


# ---- on disk ----


def to_json(figures: Sequence[Figure]) -> list[dict]:
    """Convert figures to JSON objects that `from_json` reads."""
    return [asdict(one) for one in figures]


def from_json(rows: Sequence[dict]) -> list[Figure]:
    """Convert the objects of `to_json`, written and read as JSON, to figures; items that are pairs are tuples again."""
    return [
        Figure(**row | {"items": tuple(tuple(item) if isinstance(item, list) else item for item in row["items"])})
        for row in rows
    ]
