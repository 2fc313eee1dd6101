"""Scores out of what a benchmark's official judge wrote: `python -m eval.benchmarks.read BENCHMARK FILES ... -o results.json`

    t2i        vqa_result.json of BLIP-VQA, UniDet, CLIP or 3-in-1, one row for each file
    wise       the JSON lines of gpt_eval.py: WiScore by category, and over all where all 1,000 prompts are judged
    geneval2   score_lists.json of evaluation.py, with --data geneval2_data.jsonl: Soft-TIFA by prompt (geometric mean) and by atom (arithmetic)
    imgedit    result.json of basic_bench.py, with --data basic_edit.json: by type of edit, and the mean over types
    kris       metrics.json of each category: the judge's marks from 1 to 5, by category and kind
    gedit      the CSV files of run_gedit_score.py: semantics, quality and the root of their product, by group, and the means over groups

What is computed is what the official scripts compute, on their scales, but for what they leave out without a word: answers that are no score are
named here, and nothing is rounded on the way. Intervals are normal ones, 95%, over pictures.
"""

import argparse
import csv
import io
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.benchmarks import program
from eval.benchmarks.asked import file_of
from eval.benchmarks.named import read_atoms
from eval.page import Score
from eval.scores import Z
from fusion.files import save

WISE = {"culture": range(1, 401), "time": range(401, 568), "space": range(568, 701), "biology": range(701, 801),
        "physics": range(801, 901), "chemistry": range(901, 1001)}  # fmt: skip
"""Which prompts are of which category, by their numbers. The overall score weighs each by its share of the 1,000."""
ASPECTS = {"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1}
"""Of WISE's judge, from 0 to 2, and what each weighs."""
GEDIT = ("background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add", "subject-remove",
         "subject-replace", "text_change", "tone_transfer")  # fmt: skip


def averaged(name: str, values: Iterable[float]) -> Score:
    """The mean of values on any scale."""
    values = list(values)
    mean = sum(values) / len(values)
    half = Z * math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return Score(name, mean, mean - half, mean + half, len(values))


def over(name: str, scores: Sequence[Score]) -> Score:
    """The mean of means, each counting the same."""
    mean = sum(score.value for score in scores) / len(scores)
    half = math.sqrt(sum((score.high - score.value) ** 2 for score in scores)) / len(scores)
    return Score(name, mean, mean - half, mean + half, sum(score.count or 0 for score in scores))


# ---- T2I-CompBench ----


def t2i(files: Sequence[Path]) -> list[Score]:
    """[{"question_id", "answer"}, ...], numbers or numbers in quotes, one for each picture."""
    return [averaged(str(file.parent), _answers(file)) for file in files]


def _answers(file: Path) -> list[float]:
    found: dict[int, float] = {}
    rows = _json(file, "vqa_result.json")
    for place, row in enumerate(rows if isinstance(rows, list) else [rows]):
        try:
            number, answer = int(row["question_id"]), float(row["answer"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{file}, answer {place}: not one of vqa_result.json (question_id, answer)") from None
        if number in found or not math.isfinite(answer):
            raise ValueError(f"{file}, answer {place}: picture {number} is {'scored twice' if number in found else f'scored {answer}'}")
        found[number] = answer
    drawn = _drawn(file)
    if not found or drawn not in (0, len(found)):
        raise ValueError(f"{file}: {len(found)} pictures are scored, and {drawn or 'some'} were drawn; let the judge see them all")
    return list(found.values())


def _drawn(file: Path) -> int:
    """How many pictures the folder that a judge's file lies in was drawn with; 0 where `eval.benchmarks.draw` did not draw it."""
    for folder in file.resolve().parents:
        if folder.name and file_of(folder).is_file():
            told = json.loads(file_of(folder).read_text(encoding="utf-8"))
            return told["count"] * told["n"]
    return 0


# ---- WISE ----


def wise(files: Sequence[Path]) -> list[Score]:
    """{"prompt_id", "consistency", "realism", "aesthetic_quality"} a line. The judge's 999, for an answer that it could not read, is no score."""
    found: dict[int, float] = {}
    for file in files:
        for place, line in enumerate(_text(file, "what gpt_eval.py wrote").splitlines(), 1):
            if line.strip():
                number, score = _wiscore(line, f"{file}, line {place}")
                if number in found:
                    raise ValueError(f"{file}, line {place}: prompt {number} is scored twice")
                found[number] = score
    rows = [averaged(name, [found[one] for one in numbers if one in found]) for name, numbers in WISE.items() if any(one in found for one in numbers)]
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
        raise ValueError(f"{where}: prompt {number} has {', '.join(map(str, marks.values()))}, not marks from 0 to 2; let it be judged again")
    return number, sum(weight * marks[name] for name, weight in ASPECTS.items()) / 2


# ---- GenEval 2 ----


def geneval2(files: Sequence[Path], data: Path | None) -> list[Score]:
    """A list for each prompt of the probabilities of each atom's right answer."""
    if len(files) != 1 or data is None:
        raise ValueError("GenEval 2 is read from one score_lists.json, and --data geneval2_data.jsonl")
    asked, lists = read_atoms(data), _json(files[0], "score_lists.json")
    if not isinstance(lists, list) or len(lists) != len(asked):
        raise ValueError(f"{files[0]}: not a list for each of the {len(asked)} prompts of {data}")
    by_skill, by_count, prompts, means = defaultdict(list), defaultdict(list), [], []
    for number, (row, atoms) in enumerate(zip(asked, lists, strict=True)):
        if not _probabilities(atoms, len(row["skills"])):
            raise ValueError(f"{files[0]}, prompt {number}: not {len(row['skills'])} probabilities, one for each question of {data}")
        prompts.append(math.prod(atoms) ** (1 / len(atoms)))
        means.append(sum(atoms) / len(atoms))
        by_count[int(row["atom_count"])].append(prompts[-1])
        for skill, atom in zip(row["skills"], atoms, strict=True):
            by_skill[skill].append(atom)
    skills = [averaged(f"atoms: {skill}", by_skill[skill]) for skill in sorted(by_skill)]
    counts = [averaged(f"prompts of {count} atom{'s' * (count > 1)}", by_count[count]) for count in sorted(by_count)]
    return [averaged("Soft-TIFA GM", prompts), averaged("Soft-TIFA AM", means), *skills, *counts]


def _probabilities(atoms: Any, count: int) -> bool:
    return isinstance(atoms, list) and len(atoms) == count and all(isinstance(one, (int, float)) and 0 <= one <= 1 for one in atoms)


# ---- edits ----


def imgedit(files: Sequence[Path], data: Path | None) -> list[Score]:
    """{key: what the judge said}: its marks from 1 to 5 are the lines that end in `: NUMBER`, and the mean of them is the edit's."""
    if len(files) != 1 or data is None:
        raise ValueError("ImgEdit is read from one result.json, and --data basic_edit.json")
    asked, said = _json(data, "basic_edit.json"), _json(files[0], "result.json")
    try:
        types = {str(key): str(row["edit_type"]) for key, row in asked.items()}
        missing = [key for key in types if key not in said]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{data}: not basic_edit.json ({error!r:.80})") from None
    if missing:
        raise ValueError(f"{files[0]}: {len(missing)} of {len(types)} edits are not judged, {missing[0]} among them")
    return by_type_of_edit(types, said, str(files[0]))


def marks_of(said: Any) -> list[int]:
    """The marks from 1 to 5 in a judge's words; empty where there are none, or others."""
    marks = [int(mark) for mark in re.findall(r"^[^:\n]*: (\d+)\s*$", said if isinstance(said, str) else "", re.MULTILINE)]
    return marks if all(1 <= mark <= 5 for mark in marks) else []


def by_type_of_edit(types: dict[str, str], said: dict[str, Any], where: str) -> list[Score]:
    """Each type's mean, and the mean of them. ValueError, which begins with `where`, for an edit without marks."""
    by_type = defaultdict(list)
    for key, kind in types.items():
        if not (marks := marks_of(said[key])):
            raise ValueError(f"{where}: edit {key} has no marks from 1 to 5 ({str(said[key])[:60]!r}); let it be judged again")
        by_type[kind].append(sum(marks) / len(marks))
    rows = [averaged(kind, values) for kind, values in sorted(by_type.items())]
    return [*rows, over("overall", rows)]


def gedit(files: Sequence[Path]) -> list[Score]:
    """Files named MODEL_GROUP_LANGUAGE_vie_score.csv with columns sementics_score (the official spelling; semantics_score too) and quality_score,
    from 0 to 10; languages apart, and where a column says so, the edits that all models of the paper answered (intersection) apart as well."""
    parts: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        group = next((group for group in GEDIT if f"_{group}_" in file.name), None)
        for place, row in enumerate(csv.DictReader(io.StringIO(_text(file, "a CSV of run_gedit_score.py"))), 1):
            kind, language = row.get("task_type") or group, row.get("instruction_language")
            try:
                marks = float(row.get("sementics_score") or row["semantics_score"]), float(row["quality_score"])
                usable = kind in GEDIT and language in ("en", "cn") and all(0 <= mark <= 10 for mark in marks)
            except (KeyError, TypeError, ValueError):
                usable = False
            if not usable:
                raise ValueError(f"{file}, row {place}: no language, group and marks to 10; files are named MODEL_GROUP_LANGUAGE_vie_score.csv")
            parts[language, "all"][kind].append(marks)
            if (row.get("intersection_exist") or row.get("Intersection_exist") or "").lower() == "true":
                parts[language, "intersection"][kind].append(marks)
    return [score for (language, part), groups in sorted(parts.items()) for score in _gedit(f"{language}, {part}", groups)]


def kris(files: Sequence[Path]) -> list[Score]:
    """{id: {"consistency_score", "instruction_score", "quality_score", "knowledge_score", ...}}: marks that a category does not have are left out,
    ones that the judge failed at are not."""
    rows = []
    for file in files:
        marks = defaultdict(list)
        said = _json(file, "metrics.json")
        for key, row in said.items() if isinstance(said, dict) else ():
            for name, mark in row.items() if isinstance(row, dict) else ():
                if name.endswith("_score"):
                    if mark not in (1, 2, 3, 4, 5):
                        raise ValueError(f"{file}: edit {key} has {name} {mark}, not 1 to 5; let it be judged again")
                    marks[name.removesuffix("_score")].append(float(mark))
        if not marks or len({len(values) for values in marks.values()}) > 1:
            raise ValueError(f"{file}: not metrics.json, or some edits lack some of the marks; let the judge go on")
        rows += [averaged(f"{file.parent.name}: {name}", values) for name, values in sorted(marks.items())]
    return rows


def _gedit(name: str, groups: dict[str, list[tuple[float, float]]]) -> list[Score]:
    ways = {"semantics": lambda marks: marks[0], "quality": lambda marks: marks[1], "overall": lambda marks: math.sqrt(marks[0] * marks[1])}
    table = {way: [averaged(f"{name}, {kind}: {way}", map(of, groups[kind])) for kind in sorted(groups)] for way, of in ways.items()}
    return [*table["overall"], *(over(f"{name}: {way}", rows) for way, rows in table.items())]


# ---- the program ----


def _text(path: Path, wanted: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give {wanted}") from None


def _json(path: Path, wanted: str) -> Any:
    try:
        return json.loads(_text(path, wanted))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); give {wanted}") from None


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m eval.benchmarks.read", description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=("t2i", "wise", "geneval2", "imgedit", "gedit", "kris"))
    parser.add_argument("files", type=Path, nargs="+", help="what the judge wrote")
    parser.add_argument("--data", type=Path, help="the official questions, for GenEval 2 and ImgEdit")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the JSON file that is written")
    return parser.parse_args(argv)


def score(options: argparse.Namespace) -> list[Score]:
    """The whole program."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: give another -o, or remove it")
    if options.benchmark in ("geneval2", "imgedit"):
        figures = {"geneval2": geneval2, "imgedit": imgedit}[options.benchmark](options.files, options.data)
    elif options.data is not None:
        raise ValueError(f"--data is of geneval2 and imgedit; what {options.benchmark}'s judge wrote says all")
    else:
        figures = {"t2i": t2i, "wise": wise, "gedit": gedit, "kris": kris}[options.benchmark](options.files)
    if not figures:
        raise ValueError(f"{options.files[0]}: no scores in it")
    told = {"benchmark": options.benchmark, "files": [str(file) for file in options.files], "scores": [asdict(one) for one in figures]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save((json.dumps(told, indent=1) + "\n").encode(), options.out)
    return figures


def main(argv: Sequence[str]) -> int:
    """The program; see eval.benchmarks.program."""
    return program.run(score, parsed(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
