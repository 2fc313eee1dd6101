"""Results of an evaluation: its figures as JSON, its HTML page, and the comparison with another, item by item."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from fusion.common.html import Section, document, img, paragraph, table
from fusion.common.renamed import renamed
from fusion.common.scores_html import as_text, score_table
from fusion.common.statistics import Difference, Score, paired
from fusion.evaluation.suite import Row, Suite
from fusion.evaluation.suites import SUITES

SHOWN, EXTREMES = 72, 12  # displayed size of a sample in pixels; number of best and of worst items on top


@dataclass(frozen=True)
class Result:
    """The result of one evaluation.

    settings: what was evaluated, and how. facts: about the run, such as device and versions. scores, rows: by suite.
    text: perplexities of the LLM and of the model made from it, None if they were not measured.
    """

    folder: Path
    settings: dict
    facts: dict
    scores: dict[str, list[Score]]
    rows: dict[str, list[Row]]
    text: dict | None

    def figures(self, paired: Sequence["Paired"] = ()) -> dict:
        """Return the contents of results.json, without the rows of the items, which are stored beside it."""
        scores = [{"suite": suite} | asdict(score) for suite, found in self.scores.items() for score in found]
        return (
            self.settings
            | self.facts
            | {"figures": scores, "text": self.text, "paired": [asdict(one) for one in paired]}
        )

    def as_text(self) -> str:
        """Format the scores and the text perplexities for a terminal."""
        scores = [score for found in self.scores.values() for score in found]
        lines = [as_text(scores)]
        if self.text:
            width = max(len(score.name) for score in scores)
            lines.append(
                f"{'text perplexity':<{width}}  {self.text['before']:.2f} -> {self.text['after']:.2f} "
                f"({self.text['rise']:+.1%})"
            )
        return "\n".join(lines)


def read_result(folder: Path) -> Result:
    """Load the result that eval.run wrote into a folder; ValueError, in one line, if it is missing or incomplete."""
    try:
        found = renamed(json.loads((folder / "results.json").read_text(encoding="utf-8")))
        files = [
            (suite.name, sorted((folder / "samples" / suite.name.replace(" ", "-")).glob("*.jsonl")))
            for suite in SUITES
        ]
        rows = {
            name: [Row(**json.loads(line)) for file in paths for line in file.read_text(encoding="utf-8").splitlines()]
            for name, paths in files
        }
        scores: dict[str, list[Score]] = {}
        for figure_ in found["figures"]:
            scores.setdefault(figure_.pop("suite"), []).append(Score(**figure_))
        return Result(folder, found, {}, scores, {name: rows[name] for name in scores}, found["text"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: no finished evaluation there ({' '.join(str(error).split())[:80]}); run eval.run on it first"
        ) from None


# ---- item by item ----


@dataclass(frozen=True, kw_only=True)
class Paired(Difference):
    """The mean difference of two subjects over the items of a suite: the first subject's values minus the second's."""

    suite: str


def compared(one: Result, other: Result, suite: Suite, value: str) -> Paired | None:
    """Compare one value of a suite item by item: `one` minus `other`.

    value: its name in Row.values. Returns None where the prompts differ, or either result lacks the suite.
    """
    same = one.settings["prompts"].get(suite.name) == other.settings["prompts"].get(suite.name)
    if not same or suite.name not in one.rows or suite.name not in other.rows:
        return None
    rows, theirs = one.rows[suite.name], {row.number: row.values[value] for row in other.rows[suite.name]}
    difference = paired([row.values[value] for row in rows], [theirs[row.number] for row in rows])
    return Paired(suite=suite.name, **vars(difference))


def against(one: Result, other: Result) -> list[Paired]:
    """Compare the main value of each suite, over suites with the same prompts in both; ValueError if there is none."""
    found = [pair for suite in SUITES if (pair := compared(one, other, suite, suite.main))]
    if not found:
        raise ValueError(
            f"{other.folder}: it was asked for nothing that {one.folder} was: give the same --suite and --split"
        )
    return found


# ---- the page ----


def render(one: Result, paired: Sequence[Paired] = (), other: Result | None = None) -> str:
    """Render the evaluation as an HTML page; paired: the comparison with `other`, if there is one."""
    sections = [Section("Scores", score_table(scores[0] for scores in one.scores.values()) + _words(one.text))]
    if other:
        sections.append(Section(f"Against {other.settings['model']}", _comparison(paired)))
    for suite in SUITES:
        if suite.name in one.rows:
            rows = one.rows[suite.name]
            sections.append(
                Section(
                    suite.name.capitalize(),
                    score_table(one.scores[suite.name]) + _samples(one.folder, suite.main, rows),
                )
            )
    settings = {name: one.settings[name] for name in ("suite", "split", "seed", "params", "prompts")} | one.facts
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd></div>"
        for name, value in settings.items()
    )
    lead = (
        f"{one.facts.get('kind', '')}, {sum(map(len, one.rows.values()))} items of the suite “{one.settings['suite']}”."
    )
    header = (
        f"<header><h1>{escape(str(one.settings['model']))}</h1><p "
        f'class="lead">{escape(lead)}</p><dl>{facts}</dl></header>'
    )
    return document(f"Evaluation of {one.settings['model']}", header, sections)


def _words(text: dict | None) -> str:
    if text is None:
        return ""
    before, after, rise = text["before"], text["after"], text["rise"]
    return paragraph(
        f"Perplexity of {text['tokens']:,} tokens of plain text: {before:.2f} before, {after:.2f} now ({rise:+.1%})."
    )


def _comparison(paired: Sequence[Paired]) -> str:
    rows = [
        (one.suite, f"{one.difference:+.3f} ± {one.half:.3f}", one.better, one.worse, one.count, _verdict(one))
        for one in paired
    ]
    said = "Differences of the same items, this model less the other; the interval is of the mean difference, at 95%."
    return paragraph(said) + table(rows, ("suite", "difference", "better", "worse", "of", ""))


def _verdict(one: Paired) -> str:
    if abs(one.difference) <= one.half:
        return "no difference seen"
    return "better" if one.difference > 0 else "worse"


def _samples(folder: Path, main: str, rows: Sequence[Row]) -> str:
    ordered = sorted(rows, key=lambda row: row.values[main])
    parts = ""
    if ordered[0].values[main] < ordered[-1].values[main]:
        for title, chosen in (("Worst", ordered[:EXTREMES]), ("Best", ordered[: -EXTREMES - 1 : -1])):
            parts += f"<h3>{title}</h3>{_gallery(folder, main, chosen)}"
    return parts + f"<details><summary>All {len(rows)}</summary>{_gallery(folder, main, rows)}</details>"


def _gallery(folder: Path, main: str, rows: Sequence[Row]) -> str:
    return '<div class="gallery">' + "".join(_item(folder, main, row) for row in rows) + "</div>"


def verdict(value: float) -> str:
    """Format a value in [0, 1]: "right" for 1, "wrong" for 0, otherwise two decimals."""
    return ("right" if value == 1 else "wrong") if value in (0, 1) else f"{value:.2f}"


def _item(folder: Path, main: str, row: Row) -> str:
    caption = f"{row.asked}{'' if row.said is None else f' → {row.said}'} ({verdict(row.values[main])})"
    if not row.images:
        return f"<figure>{paragraph(caption)}</figure>"
    shown = "".join(img(folder / name, SHOWN) for name in row.images)
    return f'<figure class="several"><div>{shown}</div><figcaption>{escape(caption)}</figcaption></figure>'
