"""Answers questions about images with a model, from JSON lines to JSON lines.

Usage: `fusion benchmark understanding MODEL FILE.jsonl -o OUT.jsonl`

Lines of FILE are {"text": ..., "images": [paths]}, paths relative to the folder of FILE, and may have other entries,
such as an id or the right answer. Images come before the text, or where it says `<image>` or `<image 2>`. OUT has the
same lines in the same order, each with the model's "response". An interrupted run resumes.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.renamed import renamed
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.provenance import file_of, fingerprint
from fusion.evaluation.benchmarks.understanding.asking import answers, prompt_of
from fusion.evaluation.run import params_of
from fusion.generation import api
from fusion.generation.api import Fusion
from fusion.generation.sampling import Sampling
from fusion.sequence.images import open_image

RESPONSE = "response"
SAMPLING_PARAMETERS = {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0}
FORM = 'lines are {"text": ..., "images": [paths]}'


@dataclass(frozen=True)
class Question:
    """A line of the questions' file: its number, its JSON object, and the paths of its images."""

    line: int
    row: dict[str, Any]
    images: tuple[Path, ...]

    @property
    def prompt(self) -> list:
        """The user's turn with its images loaded; ValueError naming the line whose image cannot be used."""
        try:
            return prompt_of(self.row["text"], [open_image(path) for path in self.images])
        except ValueError as error:
            raise ValueError(f"line {self.line}: {error}") from None


# ---- questions ----


def read_questions(file: Path) -> list[Question]:
    """Load all questions of a file of JSON lines, except empty lines.

    Raises ValueError, in one line that names every line which cannot be used, before anything is answered.
    """
    try:
        lines = (
            file.read_bytes().decode("utf-8-sig").split("\n")
        )  # splitlines would cut at characters that JSON may have in its strings
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); {FORM}") from None
    found, wrong = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(question_of(number, line, file.parent))
            except ValueError as error:
                wrong.append((number, error))
    if wrong:
        numbers = ", ".join(str(number) for number, _ in wrong[:20]) + (
            f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        )
        raise ValueError(
            f"{file}, line{'s' * (len(wrong) > 1)} {numbers} cannot be used: line {wrong[0][0]} {wrong[0][1]}; {FORM}"
        )
    if not found:
        raise ValueError(f"{file}: no questions in it; {FORM}")
    return found


def question_of(number: int, line: str, folder: Path) -> Question:
    """Parse one line, whose image paths are relative to `folder`; ValueError saying what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise ValueError('has no "text"')
    paths = row.get("images", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError('has "images" that are no list of paths')
    if RESPONSE in row:
        raise ValueError(f'has a "{RESPONSE}" already, which is what the model\'s answer is called')
    if missing := [path for path in paths if not (folder / path).is_file()]:
        raise ValueError(f"names {missing[0]}, and there is no such file")
    return Question(number, row, tuple(folder / path for path in paths))


# ---- answers ----


def begin(out: Path, asked: Mapping[str, Any], questions: Sequence[Question]) -> int:
    """Return the number of answers in the file `out`, which is created if there is none.

    asked: the settings, stored beside it. A partial line at its end is removed. Raises ValueError for a file of
    anything else, or of another model or settings; nothing is overwritten.
    """
    beside, told = file_of(out), json.dumps(asked, indent=1) + "\n"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        save(told.encode(), beside)
        save(b"", out)
        return 0
    if not (out.is_file() and beside.is_file()):
        raise ValueError(
            f"{out} holds something else, for there is no {beside.name} beside it: give another file with -o"
        )
    before = renamed(json.loads(beside.read_text(encoding="utf-8")))
    if unlike := [name for name, value in json.loads(told).items() if before.get(name) != value]:
        raise ValueError(
            f"{out} was answered with another {' and '.join(unlike)} ({beside.name}): give another file with -o"
        )
    return whole_lines(out, questions)


def whole_lines(out: Path, questions: Sequence[Question]) -> int:
    """Return the number of complete lines of a file of answers, after removing a partial one at its end.

    Raises ValueError where a line is not the answer to its question.
    """
    data = out.read_bytes()
    lines = data.splitlines(keepends=True)
    done = lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
    for number, line in enumerate(done):
        try:
            row = json.loads(line)
            fits = isinstance(row.pop(RESPONSE), str) and row == questions[number].row
        except (ValueError, KeyError, AttributeError, TypeError, IndexError):
            fits = False
        if not fits:
            raise ValueError(f"{out}, line {number + 1}: not the answer to that question: give another file with -o")
    if len(done) < len(lines):
        with out.open("r+b") as file:
            file.truncate(sum(map(len, done)))
    return len(done)


def answer(
    model: Fusion,
    questions: Sequence[Question],
    out: Path,
    first: int,
    seed: int,
    params: Mapping[str, Any],
    batch: int,
) -> None:
    """Answer the questions from index `first` on, and append each batch's answers to `out` when it is done.

    Question i uses seed + i. params: sampling parameters. batch: most questions at once.
    """
    with (
        out.open("ab") as file,
        tqdm(total=len(questions), initial=first, unit="questions", disable=first == len(questions)) as bar,
    ):
        for start in range(first, len(questions), batch):
            part = questions[start : start + batch]
            said = answers(model, [one.prompt for one in part], seed + start, params)
            rows = [one.row | {RESPONSE: text} for one, text in zip(part, said, strict=True)]
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(part))


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark understanding", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a unified model, or a bundled one's name")
    parser.add_argument("file", type=Path, help=f"questions as JSON lines; {FORM}")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the file that is written, or gone on with")
    parser.add_argument(
        "--seed", type=int, default=0, help="question i is answered with seed + i; matters with temperature=..."
    )
    parser.add_argument("--batch", type=int, default=8, help="questions asked at once")
    parser.add_argument("--dtype", help="bf16, fp16 or fp32; as the model was saved unless given")
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument(
        "params",
        nargs="*",
        metavar="name=value",
        help="of the sampler: max_new_tokens=64 temperature=0 top_p=1",
    )
    return parser.parse_intermixed_args(argv)


def text_params(words: Sequence[str]) -> dict[str, Any]:
    """Parse "name=value" words into sampling parameters of text, with their defaults.

    Raises ValueError for a parameter that does not affect text, and for an invalid value.
    """
    params = SAMPLING_PARAMETERS | params_of(words)
    if unknown := sorted(set(params) - set(SAMPLING_PARAMETERS)):
        raise ValueError(
            f"{', '.join(unknown)}: answers are words; their sampling parameters are {', '.join(SAMPLING_PARAMETERS)}"
        )
    try:
        Sampling(**params)
    except TypeError:
        raise ValueError(f"{', '.join(words)}: sampling parameters of words are numbers") from None
    return params


def measure(options: argparse.Namespace) -> str:
    """Answer the questions that have no answer yet, and return a summary line."""
    if options.batch < 1:
        raise ValueError("--batch is at least 1")
    params, questions = text_params(options.params), read_questions(options.file)
    model = api.load(options.model, dtype=options.dtype, device=options.device)
    words = fingerprint([json.dumps(one.row, sort_keys=True) for one in questions])
    asked = {
        "model": str(options.model),
        "questions": words,
        "seed": options.seed,
        "params": params,
        "dtype": options.dtype,
    }
    there = begin(options.out, asked, questions)
    answer(model, questions, options.out, there, options.seed, params, options.batch)
    return f"{len(questions) - there} of {len(questions)} questions answered" + (
        f"; {there} were there already" if there else ""
    )


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(measure, parsed(argv))
