"""Puts several evaluations side by side and says which model is better at what.

Usage: `fusion beside -o OUT EVALUATION EVALUATION ...`

EVALUATION: folders that eval.run wrote with the same suite, split and seed; their names label the models on the page.
Writes OUT/report.html and OUT/results.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fusion.common.atomic import save
from fusion.common.html import Section, document, img, paragraph, table
from fusion.common.statistics import Score, mean_score
from fusion.evaluation.partial_credit import WORDS
from fusion.evaluation.results import Result, compared, read_result, verdict
from fusion.evaluation.suite import Suite
from fusion.evaluation.suites import SUITES

FINER = "in parts"
ITEMS, SHOWN = 8, 72  # items of each suite on the page, and displayed size of their images in pixels


@dataclass(frozen=True)
class Standing:
    """The comparison of all models by one value of a suite.

    name: of the suite, with FINER for its value with partial credit. scores: by model, of those that support the suite.
    first: the model with the best score. level: models whose items differ from the best one's by no more than chance
    (95%, paired).
    """

    name: str
    scores: dict[str, Score]
    first: str
    level: tuple[str, ...]

    @property
    def said(self) -> str:
        """The best models, in words."""
        if not self.scores[self.first].value:
            return "none"
        if len(self.scores) == 1:
            return f"only {self.first}"
        return f"{self.first}, with no difference seen to {', '.join(self.level)}" if self.level else self.first


def opened(folders: Sequence[Path]) -> dict[str, Result]:
    """Load the evaluations, by folder name.

    Raises ValueError for fewer than two, for two of the same name, and where suite, split or seed differ.
    """
    results = {folder.resolve().name: read_result(folder) for folder in folders}
    if len(results) < 2 or len(results) < len(folders):
        raise ValueError("give two evaluations or more, in folders of different names")
    (name, first), *others = results.items()
    for other, result in others:
        for key in ("suite", "split", "seed"):
            if first.settings[key] != result.settings[key]:
                raise ValueError(
                    f"{other} has {key}={result.settings[key]} and {name} {first.settings[key]}: compare what was "
                    "asked the same"
                )
    return results


def standings(results: dict[str, Result]) -> list[Standing]:
    """Compare the models by the main value of every suite that any of them has, in the suites' order.

    The value with partial credit follows where all models have it. Raises ValueError where two had different items.
    """
    found = []
    for suite in SUITES:
        if who := _who(results, suite):
            found.append(
                _standing(
                    suite.name, suite, suite.main, who, {name: one.scores[suite.name][0] for name, one in who.items()}
                )
            )
        if (
            who
            and suite.finer
            and all(suite.finer in row.values for one in who.values() for row in one.rows[suite.name])
        ):
            name = f"{suite.name} ({FINER})"
            means = {
                model: mean_score(name, [row.values[suite.finer] for row in one.rows[suite.name]])
                for model, one in who.items()
            }
            found.append(_standing(name, suite, suite.finer, who, means))
    return found


def _standing(name: str, suite: Suite, value: str, who: dict[str, Result], scores: dict[str, Score]) -> Standing:
    first = max(scores, key=lambda one: scores[one].value)
    pairs = {other: compared(who[first], who[other], suite, value) for other in scores if other != first}
    if missing := [other for other, pair in pairs.items() if pair is None]:
        raise ValueError(
            f"{missing[0]} and {first} were asked other items of {suite.name}: evaluate both with the same version"
        )
    return Standing(
        name, scores, first, tuple(other for other, pair in pairs.items() if abs(pair.difference) <= pair.half)
    )


# ---- the page
# -------------------------------------------------------------------------------------------------------------------


def render(results: dict[str, Result], found: Sequence[Standing]) -> str:
    """Render the comparison as an HTML page."""
    names = list(results)
    rows = [(one.name, *(_figure(one.scores.get(name)) for name in names), one.said) for one in found] + _text(results)
    in_parts = [
        f"{FINER}, {suite}: {words}"
        for suite, words in WORDS.items()
        if any(one.name == f"{suite} ({FINER})" for one in found)
    ]
    finer = "".join(paragraph(f"{words[:1].upper()}{words[1:]}.") for words in in_parts)
    sections = [
        Section("Which is better at what", paragraph(_lead(names, found)) + table(rows, ("", *names, "best")) + finer),
        *(
            Section(suite.name.capitalize(), _details(results, suite) + _items(results, suite))
            for suite in SUITES
            if _who(results, suite)
        ),
        Section(
            "What was evaluated",
            table(
                [_facts(name, result) for name, result in results.items()], ("", "model", "kind", "params", "commit")
            ),
        ),
    ]
    settings = next(iter(results.values())).settings
    lead = (
        f"{len(names)} models on the suite “{settings['suite']}”, {settings['split']} items; 95% intervals in brackets."
    )
    header = f'<header><h1>{escape(" · ".join(names))}</h1><p class="lead">{escape(lead)}</p></header>'
    return document("Evaluations beside each other", header, sections)


def _lead(names: Sequence[str], found: Sequence[Standing]) -> str:
    """Summarize which models are best at what, where no difference is seen, and what no model can do."""
    contested = [one for one in found if len(one.scores) > 1]
    none = [one for one in contested if one.said == "none"]
    level = [one for one in contested if one not in none and len(one.level) + 1 == len(one.scores)]
    best: dict[tuple[str, ...], list[str]] = {}
    for one in contested:
        if one not in none + level:
            best.setdefault(tuple(name for name in names if name in (one.first, *one.level)), []).append(one.name)
    said = [
        f"{' and '.join(who)} {'is' if len(who) == 1 else 'are'} best at {', '.join(what)}"
        for who, what in best.items()
    ]
    for words, suites in (("no difference seen in", level), ("nobody can do", none)):
        said += [f"{words} {', '.join(one.name for one in suites)}"] if suites else []
    words = "; ".join(said)
    return f"{words[:1].upper()}{words[1:]}."  # a model's name stays as it is written


def _text(results: dict[str, Result]) -> list[tuple]:
    """Return the table row of text perplexity before and after training; no row if no model has it measured."""
    rises = {name: one.text["rise"] for name, one in results.items() if one.text}
    if not rises:
        return []
    said = {
        name: f"{one.text['before']:.2f} → {one.text['after']:.2f} ({one.text['rise']:+.1%})"
        for name, one in results.items()
        if one.text
    }
    best = min(rises, key=rises.get)
    return [
        ("perplexity of plain text", *(said.get(name) for name in results), best if len(rises) > 1 else f"only {best}")
    ]


def _figure(score: Score | None) -> str | None:
    return (
        None
        if score is None
        else f"{score.value:.2f}\N{NO-BREAK SPACE}({score.low:.2f}\N{WORD JOINER}–\N{WORD JOINER}{score.high:.2f})"
    )


def _facts(name: str, result: Result) -> tuple:
    params = ", ".join(f"{param}={value}" for param, value in result.settings["params"].items())
    return name, result.settings["model"], result.settings.get("kind", ""), params, result.settings.get("commit", "")


def _who(results: dict[str, Result], suite: Suite) -> dict[str, Result]:
    return {name: result for name, result in results.items() if suite.name in result.rows}


def _details(results: dict[str, Result], suite: Suite) -> str:
    """Render every score of the suite as a table."""
    names = list(_who(results, suite))
    by_name = [{score.name: score for score in results[name].scores[suite.name]} for name in names]
    said = list(dict.fromkeys(score for found in by_name for score in found))
    rows = [(score, *(_figure(found.get(score)) for found in by_name)) for score in said]
    return f"<details><summary>All {len(rows)} figures</summary>{table(rows, ('', *names))}</details>"


def _items(results: dict[str, Result], suite: Suite) -> str:
    """Render the first items with each model's answer and its verdict."""
    who = _who(results, suite)
    rows = [list(same) for same in zip(*(result.rows[suite.name][:ITEMS] for result in who.values()), strict=True)]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *who))
    body = ""
    for same in rows:
        cells = "".join(_cell(result, row, suite) for result, row in zip(who.values(), same, strict=True))
        body += f'<tr><th scope="row">{escape(same[0].asked)}</th>{cells}</tr>'
    return f'<div class="wide"><table class="beside"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(result: Result, row, suite: Suite) -> str:
    images = "".join(img(result.folder / name, SHOWN) for name in row.images)
    words = "" if row.said is None else f"{row.said} "
    return f"<td><div>{images}</div><small>{escape(words)}({verdict(row.values[suite.main])})</small></td>"


# ---- the program
# ----------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Run the program: print the table and the page's path and return 0, or one line on stderr and return 1."""
    parser = argparse.ArgumentParser(prog="fusion beside", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that is written")
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="EVALUATION", help="a folder that eval.run wrote")
    options = parser.parse_args(argv)
    try:
        results = opened(options.evaluations)
        found = standings(results)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    figures = [
        {
            "suite": one.name,
            "first": one.first,
            "level": one.level,
            "figures": {n: vars(s) for n, s in one.scores.items()},
        }
        for one in found
    ]
    save((json.dumps(figures, indent=1) + "\n").encode(), options.out / "results.json")
    save(render(results, found).encode(), options.out / "report.html")
    width = max(len(one.name) for one in found)
    for one in found:
        print(
            f"{one.name:<{width}}  "
            + "  ".join(f"{name} {score.value:.2f}" for name, score in one.scores.items())
            + f"  best: {one.said}"
        )
    print(options.out / "report.html")
    return 0
