"""Soft-TIFA (Kamath et al., arXiv 2512.16853), GenEval 2's score, by any model that answers questions about images.

    fusion benchmark tifa OUT/image_paths.json --data geneval2_data.jsonl --judge VLM -o score_lists.json

Each question of a prompt is asked about its image, and scores the probability that the judge's answer begins with the
right one, in any of its spellings. OUT is what the official evaluation.py writes, a list of probabilities for each
prompt, and `fusion.evaluation.benchmarks.official_scores geneval2` and the official analysis read it. VLM is a local
model, or the address of a server that returns probabilities (vLLM, SGLang): those of the 20 most probable tokens; the
rest count as 0. Questions and probabilities are stored beside OUT, and an interrupted run resumes. The official judge
is Qwen3-VL-8B: scores of other judges are comparable only among themselves.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.statistics import Score
from fusion.evaluation.benchmarks import official_scores as read
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.detections import digest_of
from fusion.evaluation.benchmarks.common.input_files import keep, kept_in
from fusion.evaluation.benchmarks.judges.server import judge_of
from fusion.evaluation.benchmarks.judges.vqa import Judge
from fusion.evaluation.benchmarks.named_files import read_atoms
from fusion.sequence.images import open_image

ASKED = "{question} Answer in one word."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
KEPT_EVERY = 16  # prompts judged between two writes of the probabilities


def spellings(answer: str) -> list[str]:
    """Return an answer in lower case and capitalized, with and without a leading space; a number as a digit, too."""
    words = {answer.lower(), answer.capitalize()}
    if answer.lower() in NUMBERS:
        words.add(str(NUMBERS.index(answer.lower())))
    return sorted(words | {f" {word}" for word in words})


def probabilities(judge: Judge, path: Path, questions: Sequence[Sequence[str]]) -> list[float]:
    """Return the probability of the right answer to each question, (question, answer), about an image."""
    texts = [ASKED.format(question=question) for question, _ in questions]
    return judge.likely(open_image(path), texts, [spellings(answer) for _, answer in questions])


def judged(rows: Sequence[dict], paths: dict[str, Path], judge: Judge, file: Path) -> list[list[float]]:
    """Return the probabilities of the right answers, a list for each prompt.

    rows: lines of geneval2_data.jsonl. paths: of the images, by prompt. file: stores the probabilities; those of the
    same image and questions by the same judge are reused.
    """
    kept = kept_in(file, "prompt")
    found = []
    for number, row in enumerate(tqdm(rows, desc=judge.name, unit="prompts")):
        path, known = paths[row["prompt"]], kept.get(row["prompt"], {})
        asked = {"prompt": row["prompt"], "digest": digest_of(path), "judge": judge.name, "questions": row["vqa_list"]}
        if any(known.get(name) != value for name, value in asked.items()):
            known = asked | {"probabilities": probabilities(judge, path, row["vqa_list"])}
        found.append(known)
        if number % KEPT_EVERY == KEPT_EVERY - 1 or number == len(rows) - 1:
            kept |= {one["prompt"]: one for one in found}
            keep(kept.values(), file)
    return [one["probabilities"] for one in found]


def read_paths(file: Path, rows: Sequence[dict]) -> dict[str, Path]:
    """Load {prompt: image}, the official evaluation.py's image_paths.json; ValueError where a prompt has no image."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        paths = {row["prompt"]: Path(listed[row["prompt"]]) for row in rows if row["prompt"] in listed}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: not a list of images ({error!r:.80}); give image_paths.json") from None
    if missing := [row["prompt"] for row in rows if row["prompt"] not in paths or not paths[row["prompt"]].is_file()]:
        raise ValueError(f"{file}: {len(missing)} of {len(rows)} prompts have no image, {missing[0][:60]!r} among them")
    return paths


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark tifa", description=__doc__.splitlines()[0])
    parser.add_argument(
        "images", type=Path, help="image_paths.json, as fusion.evaluation.benchmarks.draw writes it: {prompt: image}"
    )
    parser.add_argument("--data", type=Path, required=True, help="geneval2_data.jsonl")
    parser.add_argument(
        "--judge",
        required=True,
        help="folder or hub id of an image-text-to-text model, or the address of a server up to /v1",
    )
    parser.add_argument("--served", help="which of a server's models, if it has several")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the JSON file that is written")
    parser.add_argument("--device", help="cuda, cpu, ...")
    return parser.parse_args(argv)


def score(options: argparse.Namespace) -> list[Score]:
    """Judge the images, write the probabilities to `options.out`, and return the scores."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: give another -o, or remove it")
    rows = read_atoms(options.data)
    paths = read_paths(options.images, rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = judged(
        rows, paths, judge_of(options.judge, options.served, options.device), options.out.with_suffix(".answers.jsonl")
    )
    save((json.dumps(found) + "\n").encode(), options.out)
    return read.geneval2([options.out], options.data)


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(score, parsed(argv))
