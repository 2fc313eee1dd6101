"""Judges the edits of ImgEdit (Ye et al., arXiv 2505.20275) with any model that sees, by the official instructions.

    fusion benchmark imgedit OUT --data basic_edit.json --images FOLDER --prompts prompts.json --judge VLM -o
    result.json

OUT is the folder that `fusion.evaluation.benchmarks.edit` wrote; prompts.json, the instructions for each type of edit,
comes with the official code. The judge is a model of transformers (a folder or hub id) or an OpenAI-compatible server
(an address). It gets the instruction, the image before and the image after, as GPT-4o does in the official
basic_bench.py; scores of other judges are comparable only among themselves. result.json has the answers in the official
format, and the scores are those of `fusion.evaluation.benchmarks.official_scores imgedit`. Answers are stored beside
it, and an interrupted run resumes.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.statistics import Score
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.detections import digest_of
from fusion.evaluation.benchmarks.common.input_files import keep, kept_in
from fusion.evaluation.benchmarks.edit import read_rows
from fusion.evaluation.benchmarks.edit_ratings import by_type_of_edit, marks_of
from fusion.evaluation.benchmarks.judges.server import judge_of
from fusion.evaluation.benchmarks.judges.vqa import Judge
from fusion.sequence.images import open_image

KEPT_EVERY = 32  # edits judged between two writes of the answers
MARK = "<edit_prompt>"  # placeholder of the edit's text in the official instructions


def read_instructions(path: Path, types: set[str]) -> dict[str, str]:
    """Load the judge's instruction for each type of edit from the official prompts.json.

    Raises ValueError where one of `types` is missing, or has no placeholder for the edit's text.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        wrong = [kind for kind in sorted(types) if MARK not in said[kind]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not the official prompts.json, an instruction for each type of edit ({error!r:.80})"
        ) from None
    if wrong:
        raise ValueError(f"{path}: the instruction for {wrong[0]} has no {MARK}")
    return said


def judged(
    keys: Sequence[str], asked: dict[str, tuple[Path, Path, str]], judge: Judge, length: int, file: Path
) -> dict[str, str]:
    """Return the judge's answer about each edit, by key.

    keys: of the edits, in order. asked: (image before, image after, instruction), by key. length: most tokens of an
    answer. file: stores the answers; one about the same images and instruction by the same judge is reused if it has
    ratings.
    """
    marks = {
        key: [digest_of(before), digest_of(after), text, judge.name] for key, (before, after, text) in asked.items()
    }
    kept = kept_in(file, "key")
    kept = {key: one for key, one in kept.items() if one.get("asked") == marks.get(key) and marks_of(one["said"])}
    left = [key for key in keys if key not in kept]

    def say(key: str) -> str:
        before, after, text = asked[key]
        return judge.say([text, open_image(before), open_image(after)], length)

    with (
        tqdm(total=len(left), desc=judge.name, unit="edits", disable=not left) as bar,
        ThreadPoolExecutor(judge.at_once) as pool,
    ):
        for start in range(0, len(left), KEPT_EVERY):
            part = left[start : start + KEPT_EVERY]
            for key, said in zip(part, pool.map(say, part), strict=True):
                kept[key] = {"key": key, "asked": marks[key], "said": said}
                bar.update()
            keep(kept.values(), file)
    return {key: kept[key]["said"] for key in keys}


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark imgedit", description=__doc__.splitlines()[0])
    parser.add_argument("edits", type=Path, help="the folder of KEY.png")
    parser.add_argument("--data", type=Path, required=True, help="basic_edit.json")
    parser.add_argument("--images", type=Path, required=True, help="the folder of ImgEdit's images")
    parser.add_argument("--prompts", type=Path, required=True, help="the official prompts.json")
    parser.add_argument(
        "--judge",
        required=True,
        help="an image-text-to-text model's folder or hub id, or an OpenAI-compatible server's address",
    )
    parser.add_argument("--served", help="what a server calls the judge; its only model if not given")
    parser.add_argument("--length", type=int, default=512, help="tokens of an answer at most")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the JSON file that is written")
    parser.add_argument("--device", help="cuda, cpu, ...")
    return parser.parse_args(argv)


def score(options: argparse.Namespace) -> list[Score]:
    """Judge the edits, write the answers to `options.out`, and return the scores by type of edit and overall."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: give another -o, or remove it")
    rows = read_rows(options.data, "basic_edit.json", ("id", "prompt", "edit_type"))
    instructions = read_instructions(options.prompts, {row["edit_type"] for row in rows.values()})
    asked = {
        key: (
            options.images / row["id"],
            options.edits / f"{key}.png",
            instructions[row["edit_type"]].replace(MARK, row["prompt"]),
        )
        for key, row in rows.items()
    }
    if missing := [path for before, after, _ in asked.values() for path in (before, after) if not path.is_file()]:
        raise ValueError(
            f"{missing[0]}: not there, as {len(missing) - 1} others; make the edits first, with "
            "fusion.evaluation.benchmarks.edit"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    judge = judge_of(options.judge, options.served, options.device)
    said = judged(list(rows), asked, judge, options.length, options.out.with_suffix(".answers.jsonl"))
    figures = by_type_of_edit({key: row["edit_type"] for key, row in rows.items()}, said, judge.name)
    save((json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode(), options.out)
    print(f"ImgEdit, judged by {judge.name}: {len(said)} edits")
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(score, parsed(argv))
