"""Scores out of what a benchmark's official judge wrote: `fusion benchmark read BENCHMARK FILES ... -o results.json`

    t2i        vqa_result.json of BLIP-VQA, UniDet, CLIP or 3-in-1, one row for each file
    wise       the JSON lines of gpt_eval.py: WiScore by category, and over all where all 1,000 prompts are judged
    geneval2   score_lists.json of evaluation.py, with --data geneval2_data.jsonl:
               Soft-TIFA by prompt (geometric mean) and by atom (arithmetic)
    imgedit    result.json of basic_bench.py, with --data basic_edit.json: by type of edit, and the mean over types
    kris       metrics.json of each category, in percent: by dimension and kind of mark,
               and over all where all categories are judged
    oneig      the CSV files of its scripts: alignment, diversity, reasoning and style by prompt,
               text as a whole; one row for each model
    gedit      the CSV files of run_gedit_score.py: semantics, quality and the root of their product,
               by group, and the means over groups

Scores are those of the official scripts, on their scales, with two differences: answers that are no score, which the
scripts silently leave out, are errors here, and nothing is rounded on the way. Intervals are normal, 95%, over images.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion.common.atomic import save
from fusion.common.statistics import Score, averaged
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.input_files import json_in, text_in
from fusion.evaluation.benchmarks.common.provenance import file_of
from fusion.evaluation.benchmarks.edit_ratings import gedit, imgedit, kris
from fusion.evaluation.benchmarks.named_files import read_atoms
from fusion.evaluation.benchmarks.oneig import oneig

WISE = {
    "culture": range(1, 401),
    "time": range(401, 568),
    "space": range(568, 701),
    "biology": range(701, 801),
    "physics": range(801, 901),
    "chemistry": range(901, 1001),
}
"""Which prompts are of which category, by their numbers. The overall score weighs each by its share of the 1,000."""
ASPECTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
"""Of WISE's judge, from 0 to 2, and what each weighs."""


# ---- T2I-CompBench ----


def t2i(files: Sequence[Path]) -> list[Score]:
    """Compute the T2I-CompBench score of each vqa_result.json, the mean over images, named by the file's folder.

    Files are [{"question_id", "answer"}, ...] with one entry for each image; answers are numbers, or numbers in quotes.
    Raises ValueError for anything else, and unless every image that was drawn is scored once.
    """
    return [averaged(str(file.parent), _answers(file)) for file in files]


def _answers(file: Path) -> list[float]:
    found: dict[int, float] = {}
    rows = json_in(file, "vqa_result.json")
    for place, row in enumerate(rows if isinstance(rows, list) else [rows]):
        try:
            number, answer = int(row["question_id"]), float(row["answer"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{file}, answer {place}: not one of vqa_result.json (question_id, answer)") from None
        if number in found or not math.isfinite(answer):
            raise ValueError(
                f"{file}, answer {place}: image {number} is {'scored twice' if number in found else f'scored {answer}'}"
            )
        found[number] = answer
    drawn = _drawn(file)
    if not found or drawn not in (0, len(found)):
        raise ValueError(
            f"{file}: {len(found)} images are scored, and {drawn or 'some'} were drawn; let the judge see them all"
        )
    return list(found.values())


def _drawn(file: Path) -> int:
    """Return how many images were drawn into the folder that a judge's file lies in.

    Returns 0 where `fusion.evaluation.benchmarks.draw` did not draw it.
    """
    for folder in file.resolve().parents:
        if folder.name and file_of(folder).is_file():
            told = json.loads(file_of(folder).read_text(encoding="utf-8"))
            return told["count"] * told["n"]
    return 0


# ---- WISE ----


def wise(files: Sequence[Path]) -> list[Score]:
    """Compute WiScore by category, and overall where all 1,000 prompts are judged.

    Lines of the files are {"prompt_id", "consistency", "realism", "aesthetic_quality"}. Raises ValueError for a prompt
    that is scored twice, and for a rating outside 0 to 2, such as the judge's 999 for an answer that it could not read.
    """
    found: dict[int, float] = {}
    for file in files:
        for place, line in enumerate(text_in(file, "what gpt_eval.py wrote").splitlines(), 1):
            if line.strip():
                number, score = _wiscore(line, f"{file}, line {place}")
                if number in found:
                    raise ValueError(f"{file}, line {place}: prompt {number} is scored twice")
                found[number] = score
    rows = [
        averaged(name, [found[one] for one in numbers if one in found])
        for name, numbers in WISE.items()
        if any(one in found for one in numbers)
    ]
    if not rows:
        raise ValueError(f"{files[0]}: no scores in it")
    whole = all(one in found for numbers in WISE.values() for one in numbers)
    return [*rows, averaged("overall", found.values())] if whole else rows


def _wiscore(line: str, where: str) -> tuple[int, float]:
    try:
        row = json.loads(line)
        number, marks = int(row["prompt_id"]), {name: float(row[name]) for name in ASPECTS}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: not what gpt_eval.py writes (prompt_id, {', '.join(ASPECTS)})") from None
    if not all(0 <= mark <= 2 for mark in marks.values()) or not 1 <= number <= 1000:
        raise ValueError(
            f"{where}: prompt {number} has {', '.join(map(str, marks.values()))}, not marks from 0 to 2; let it be "
            "judged again"
        )
    return number, sum(weight * marks[name] for name, weight in ASPECTS.items()) / 2


# ---- GenEval 2 ----


def geneval2(files: Sequence[Path], data: Path | None) -> list[Score]:
    """Compute Soft-TIFA by prompt (geometric mean) and by atom (arithmetic), by skill, and by number of atoms.

    files: one score_lists.json, which has for each prompt a list of the probabilities of each atom's right answer.
    data: geneval2_data.jsonl. Raises ValueError where the two do not match.
    """
    if len(files) != 1 or data is None:
        raise ValueError("GenEval 2 is read from one score_lists.json, and --data geneval2_data.jsonl")
    asked, lists = read_atoms(data), json_in(files[0], "score_lists.json")
    if not isinstance(lists, list) or len(lists) != len(asked):
        raise ValueError(f"{files[0]}: not a list for each of the {len(asked)} prompts of {data}")
    by_skill, by_count, prompts, means = defaultdict(list), defaultdict(list), [], []
    for number, (row, atoms) in enumerate(zip(asked, lists, strict=True)):
        if not _probabilities(atoms, len(row["skills"])):
            raise ValueError(
                f"{files[0]}, prompt {number}: not {len(row['skills'])} probabilities, one for each question of {data}"
            )
        prompts.append(math.prod(atoms) ** (1 / len(atoms)))
        means.append(sum(atoms) / len(atoms))
        by_count[int(row["atom_count"])].append(prompts[-1])
        for skill, atom in zip(row["skills"], atoms, strict=True):
            by_skill[skill].append(atom)
    skills = [averaged(f"atoms: {skill}", by_skill[skill]) for skill in sorted(by_skill)]
    counts = [averaged(f"prompts of {count} atom{'s' * (count > 1)}", by_count[count]) for count in sorted(by_count)]
    return [averaged("Soft-TIFA GM", prompts), averaged("Soft-TIFA AM", means), *skills, *counts]


def _probabilities(atoms: Any, count: int) -> bool:
    return (
        isinstance(atoms, list)
        and len(atoms) == count
        and all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in atoms)
    )


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark read", description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=("t2i", "wise", "geneval2", "oneig", "imgedit", "gedit", "kris"))
    parser.add_argument("files", type=Path, nargs="+", help="what the judge wrote")
    parser.add_argument("--data", type=Path, help="the official questions, for GenEval 2 and ImgEdit")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the JSON file that is written")
    return parser.parse_args(argv)


def score(options: argparse.Namespace) -> list[Score]:
    """Compute the scores of a benchmark and write them to `options.out` as JSON; ValueError if that file exists."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: give another -o, or remove it")
    if options.benchmark in ("geneval2", "imgedit"):
        figures = {"geneval2": geneval2, "imgedit": imgedit}[options.benchmark](options.files, options.data)
    elif options.data is not None:
        raise ValueError(f"--data is of geneval2 and imgedit; what {options.benchmark}'s judge wrote says all")
    else:
        figures = {"t2i": t2i, "wise": wise, "oneig": oneig, "gedit": gedit, "kris": kris}[options.benchmark](
            options.files
        )
    if not figures:
        raise ValueError(f"{options.files[0]}: no scores in it")
    told = {
        "benchmark": options.benchmark,
        "files": [str(file) for file in options.files],
        "scores": [asdict(one) for one in figures],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save((json.dumps(told, indent=1) + "\n").encode(), options.out)
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(score, parsed(argv))
