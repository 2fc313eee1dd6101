"""Trains contenders of matched size on the same data and writes one page about them.

Usage: `fusion compare configs/compare/NAME.yaml [key=value ...]`
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean

from transformers.utils import logging

from fusion.common.atomic import save
from fusion.common.charts import COLOURS, Line, chart, compact
from fusion.common.config import load
from fusion.common.html import Section, document, figure, paragraph, table
from fusion.common.statistics import student
from fusion.comparison.contenders import Comparison, Contender, Record, known, perform, place
from fusion.training.report import span
from fusion.training.trainer import NotFinite, Summary

SHOWN = 96  # pixels on screen of a sample


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and half of its 95% interval; None where one seed says nothing of it."""

    mean: float
    half: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3g}" + ("" if self.half is None else f"\u00a0±\u00a0{self.half:.2g}")


def interval(values: Sequence[float]) -> Interval:
    """The mean with its interval by Student's t."""
    if len(values) < 2:
        return Interval(mean(values), None)
    return Interval(mean(values), student(values))


def ranks(records: Sequence[Record], key) -> dict[str, Interval]:
    """By contender the place among all in `key`, 1 for the least, over the seeds that all of them have."""
    names = {record.contender for record in records}
    places: dict[str, list[float]] = {name: [] for name in names}
    for seed in {record.seed for record in records}:
        of_seed = [record for record in records if record.seed == seed]
        if {record.contender for record in of_seed} == names:
            for record in of_seed:
                better, equal = (
                    sum(test(key(other), key(record)) for other in of_seed) for test in (float.__lt__, float.__eq__)
                )
                places[record.contender].append(better + (equal + 1) / 2)
    return {name: interval(found) for name, found in places.items() if found}


def differences(records: Sequence[Record], pairs: Sequence[Sequence[str]]) -> list[dict]:
    """Of each pair the first's error and colours less the second's, seed by seed, over the seeds that both have."""
    of = {(record.contender, record.seed): record for record in records}
    seeds = sorted({record.seed for record in records})
    found = []
    for one, other in pairs:
        both = [(of[one, seed], of[other, seed]) for seed in seeds if (one, seed) in of and (other, seed) in of]
        if both:
            found.append(
                {
                    "first": one,
                    "second": other,
                    "seeds": len(both),
                    "error of x": interval([a.x_error - b.x_error for a, b in both]),
                    "colours": interval([_colours(a) - _colours(b) for a, b in both]),
                }
            )
    return found


def _colours(record: Record) -> float:
    return record.scores["colours_present"]["value"]


# ---- the page ----

PAIRED = ("first", "second", "seeds", "error of x", "colours")


COLUMNS = (
    "contender",
    "seeds",
    "M weights",
    "GFLOP ahead",
    "GFLOP a step",
    "MB kept",
    "ms",
    "images",
    "error of x",
    "its rank",
    "GenEval",
    "rank in it",
    "colours",
)


def rows(records: Sequence[Record]) -> list[dict]:
    """The table of the page, best error first."""
    by_error, by_score = (
        ranks(records, lambda one: float(one.x_error)),
        ranks(records, lambda one: -float(one.scores["overall"]["value"])),
    )
    found = []
    for name in dict.fromkeys(record.contender for record in records):
        own = [record for record in records if record.contender == name]
        first = own[0]
        found.append(
            {
                "contender": name,
                "seeds": len(own),
                "M weights": first.parameters / 1e6,
                "GFLOP ahead": first.forward / 1e9,
                "GFLOP a step": first.training / 1e9,
                "MB kept": first.kept / 1e6,
                "ms": 1000 * mean(one.per_image for one in own),
                "images": round(mean(one.seen for one in own)),
                "error of x": interval([one.x_error for one in own]),
                "its rank": by_error.get(name),
                "GenEval": interval([one.scores["overall"]["value"] for one in own]),
                "rank in it": by_score.get(name),
                "colours": interval([_colours(one) for one in own]),
            }
        )
    return sorted(found, key=lambda row: row["error of x"].mean)


def curves(records: Sequence[Record]) -> str:
    """Validation error against steps, operations and time; each curve the first seed's, as many to a chart as there are
    colours, best first."""
    first = {record.contender: record for record in reversed(records)}
    ordered = sorted(first.items(), key=lambda item: item[1].x_error)
    axes = {
        "steps": lambda record, point: point[0],
        "TFLOP of training": lambda record, point: point[1] * record.training / 1e12,
        "seconds of training": lambda record, point: point[2],
    }
    charts = ""
    for unit, x in axes.items():
        for start in range(0, len(ordered), COLOURS):
            part = ordered[start : start + COLOURS]
            lines = [Line(name, [(x(record, point), point[3]) for point in record.curve]) for name, record in part]
            charts += chart(f"against {unit}", lines, unit, log=True)
    return charts


def samples(comparison: Comparison, done: Sequence[tuple[Contender, Record]]) -> str:
    """A row of images per contender, drawn from the same noise."""
    shown, said = "", paragraph("From left to right: " + "; ".join(comparison.prompts) + ".")
    for contender in dict.fromkeys(one.name for one, _ in done):
        first, record = next(pair for pair in done if pair[0].name == contender)
        strip = place(comparison, first, record.seed).with_suffix(".png")
        shown += figure(strip, f"{contender}, seed {record.seed}", SHOWN * len(comparison.prompts))
    return said + f'<div class="sheets">{shown}</div>'


def render(comparison: Comparison, done: Sequence[tuple[Contender, Record]]) -> str:
    """The page as one string of HTML."""
    records = [record for _, record in done]
    commits, devices = (
        ", ".join(sorted({getattr(record, name) for record in records})) for name in ("commit", "device")
    )
    size = (
        f"{compact(comparison.target)} "
        f"{'parameters' if comparison.match == 'parameters' else 'operations of a forward pass'}"
    )
    lead = (
        f"{len({record.contender for record in records})} contenders of about {size}, {len(records)} of "
        f"{len(comparison.contenders) * len(comparison.seeds)} runs done, "
        f"{span(sum(record.seconds for record in records))} of training."
    )
    words = (
        "Costs are for one image: operations of a forward pass and of a training step (two for a multiply-add, in "
        "matrix products and "
        "convolutions), memory kept for the backward pass, and time of training. Error of x: mean squared error of "
        "what is predicted of held-out "
        "images, at uniform times. Means over seeds with 95% intervals; ranks are over seeds that all contenders "
        "have, 1 is best."
    )
    sections = [
        Section("Table", paragraph(words) + table(rows(records), COLUMNS)),
        *(
            [Section("Differences, seed by seed", table(differences(records, comparison.pairs), PAIRED))]
            if comparison.pairs
            else []
        ),
        Section("Validation error", curves(records)),
        Section("Samples", samples(comparison, done) if comparison.prompts else ""),
    ]
    listed = {"commits": commits, "device": devices}
    facts = "".join(
        f"<div><dt>{name}</dt><dd><code>{escape(value)}</code></dd></div>" for name, value in listed.items()
    )
    facts = f"<dl>{facts}</dl>"
    return document(
        "Comparison", f'<header><h1>Comparison</h1><p class="lead">{escape(lead)}</p>{facts}</header>', sections
    )


def markdown(rows: Sequence[dict], columns: Sequence[str]) -> str:
    """A table for a document."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row[column] for column in columns)
        shown = (
            f"{cell:,}" if isinstance(cell, int) else f"{cell:.3g}" if isinstance(cell, float) else str(cell or "")
            for cell in cells
        )
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def write(comparison: Comparison, done: Sequence[tuple[Contender, Record]]) -> Path:
    """Write OUT/comparison.html, whole or not at all."""
    out = Path(comparison.out)
    out.mkdir(parents=True, exist_ok=True)
    save(render(comparison, done).encode(), out / "comparison.html")
    return out / "comparison.html"


# ---- the program ----


def compare(comparison: Comparison) -> list[tuple[Contender, Record]] | Summary:
    """This shard's runs that are not known yet, seed by seed, so that what is there can be compared at any time; the
    page after each."""
    wanted = [(contender, seed) for seed in comparison.seeds for contender in comparison.contenders]
    done = [(contender, record) for contender, seed in wanted if (record := known(comparison, contender, seed))]
    finished = {(contender.name, record.seed) for contender, record in done}
    for number, (contender, seed) in enumerate(wanted):
        if (contender.name, seed) in finished or number % comparison.shards != comparison.shard:
            continue
        print(f"run {number + 1} of {len(wanted)}: {contender.name}, seed {seed}")
        record = perform(comparison, contender, seed)
        if isinstance(record, Summary):
            return record
        done.append((contender, record))
        write(comparison, done)
    return done


def main(argv: Sequence[str]) -> int:
    """0 when all runs are there, 1 with one line on stderr when it cannot go on, 130 when a signal stopped it."""
    comparison = load(Comparison, argv)
    logging.disable_progress_bar()
    try:
        done = compare(comparison)
    except (ValueError, NotFinite) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if isinstance(done, Summary):
        print(f"stopped by {done.interrupted}; the same command goes on from there")
        return 130
    page = write(comparison, done)
    records = [record for _, record in done]
    print(markdown(rows(records), COLUMNS))
    if comparison.pairs:
        print("\n" + markdown(differences(records, comparison.pairs), PAIRED))
    print(page)
    return 0
