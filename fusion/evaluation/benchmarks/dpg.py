"""DPG-Bench (Hu et al., arXiv 2403.05135): its prompts, its grids, its questions, and its score.

    fusion benchmark dpg IMAGES --questions dpg_bench.csv -o results.json --judge MODEL

IMAGES has one PNG for each prompt, four images as 2 x 2 (as `fusion.evaluation.benchmarks.draw` writes it). With
--judge a model that answers questions about images is queried, and its answers go into a file, from which an
interrupted run resumes; without it such a file is scored. The official judge is mPLUG-large; scores of any other, as
all here are, are not comparable to published ones.

Scores are those of `dpg_bench/compute_dpg_bench.py` in github.com/TencentQQGYLab/ELLA, without its bugs, which
--official reproduces: the file's first question is skipped, and with it the whole prompt if another question depends on
that one; shares by category are of the last of a prompt's images alone; of a prompt whose questions are not contiguous
in the file, only the last group is asked.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.statistics import Score, mean_score
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.detections import digest_of
from fusion.evaluation.benchmarks.common.image_grid import complete, files_in, grid, save_png
from fusion.evaluation.benchmarks.dpg_questions import (
    Question,
    Questions,
    Verdict,
    lacks_a_parent,
    read_questions,
    verdict,
)
from fusion.evaluation.benchmarks.judges.server import judge_of
from fusion.evaluation.benchmarks.judges.vqa import Judge
from fusion.sequence.images import open_image

KEPT_EVERY = 16  # prompts judged between two writes of the answers


# ---- prompts ----


@dataclass(frozen=True)
class Prompt:
    """A prompt, and its id, which is the name of its image."""

    id: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """Load DPG-Bench's prompts.

    path: a folder of texts named by their ids, as in the official repository, or a file of JSON lines {"id", "prompt"}.
    Raises ValueError, in one line, for anything else.
    """
    try:
        if path.is_dir():
            prompts = [
                Prompt(file.stem, file.read_text(encoding="utf-8").strip()) for file in sorted(path.glob("*.txt"))
            ]
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            prompts = [Prompt(str(row["id"]), str(row["prompt"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not DPG's prompts ({error!r:.80}); give a folder of ID.txt, or JSON lines of id and prompt"
        ) from None
    if not prompts:
        raise ValueError(f"{path}: no prompts in it; give a folder of ID.txt, or JSON lines of id and prompt")
    ids = [prompt.id for prompt in prompts]
    if wrong := [one for one in ids if not re.fullmatch(r"[\w-]+", one) or ids.count(one) > 1]:
        raise ValueError(
            f"{path}: an image is named by its prompt's id, and {wrong[0]!r} is no name, or one of two prompts"
        )
    return prompts


# ---- images ----


class Folder:
    """DPG-Bench's folder of images: ID.png, the images of a prompt in one grid, written when all are drawn.

    n: images for each prompt, 1 or 4, else ValueError. size: (width, height) of one image in pixels.
    """

    def __init__(self, root: Path, prompts: Sequence[Prompt], n: int, size: tuple[int, int]):
        if n not in (1, 4):
            raise ValueError(f"--n {n}: DPG's images are of one drawing, or of four as 2 x 2")
        self.root, self.asked, self.n = root, prompts, n
        self.size = (size[0] * 2, size[1] * 2) if n == 4 else size
        self.prompts = [prompt.text for prompt in prompts]
        self._drawn: dict[int, list[Image.Image]] = {}

    def missing(self, number: int) -> list[int]:
        """Return all samples of a prompt, or none where its grid is complete; ValueError for a grid of another size."""
        return [] if complete(self.root / f"{self.asked[number].id}.png", self.size) else list(range(self.n))

    def put(self, number: int, sample: int, image: Image.Image) -> None:
        """Add an image to its prompt's grid, which is saved when complete; samples have to come in their order."""
        drawn = self._drawn.setdefault(number, [])
        drawn.append(image)
        if len(drawn) == self.n:
            save_png(grid(self._drawn.pop(number)), self.root / f"{self.asked[number].id}.png")


def read_folder(root: Path, questions: Questions) -> list[Path]:
    """Return the paths of all grids, in the questions' order.

    Raises ValueError, in one line, where an image is missing, or has a name that no question is about.
    """
    there = {path.stem: path for path in files_in(root)}
    if wrong := [path for name, path in there.items() if name not in questions or path.suffix != ".png"]:
        raise ValueError(
            f"{wrong[0]}: no question is about it; images are PNGs named by the prompts' ids, such as "
            f"{next(iter(questions))}.png"
        )
    if missing := [name for name in questions if name not in there]:
        raise ValueError(
            f"{root}: {len(missing)} of {len(questions)} images are missing, {missing[0]}.png among them: draw "
            "them first"
        )
    return [there[name] for name in questions]


def images(path: Path, n: int) -> list[Image.Image]:
    """Split a grid into its n images, 1 or 4, in reading order; ValueError unless the file can be such a grid."""
    whole = open_image(path)
    if n == 1:
        return [whole]
    side = whole.width // 2
    if whole.size != (2 * side, 2 * side):
        raise ValueError(
            f"{path} is {whole.width}x{whole.height}: four images as 2 x 2 are as wide as high, of an even number "
            "of pixels"
        )
    return [whole.crop((left, top, left + side, top + side)) for top in (0, side) for left in (0, side)]


# ---- answers ----


@dataclass(frozen=True)
class Answers:
    """The judge's answers about each image of a grid, unparsed, by the question's number.

    name: of the grid's file. questions: the texts asked, by number. digest: of the grid's file. judge: its name. These
    three are None if they are not known.
    """

    name: str
    answers: list[dict[int, str]]
    questions: dict[int, str] | None = None
    digest: str | None = None
    judge: str | None = None

    def fits(self, asked: Mapping[int, Question], path: Path) -> bool:
        """Return whether the answers are about this image and these questions, as far as is known."""
        texts = {number: question.text for number, question in asked.items()}
        return self.digest in (None, digest_of(path)) and (
            self.questions is None or texts.items() <= self.questions.items()
        )


def read_answers(path: Path) -> dict[str, Answers]:
    """Load answers by the name of the grid's file; ValueError that names the line that cannot be used."""
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            said, asked = [_by_number(one) for one in row["answers"]], row.get("questions")
            found[row["name"]] = Answers(
                row["name"], said, asked and _by_number(asked), row.get("digest"), row.get("judge")
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = f", line {len(found) + 1}" if path.is_file() else ""
        raise ValueError(f"{path}{line}: no answers ({error!r:.80}); give what --judge wrote") from None
    return found


def _by_number(words: Mapping[str, str]) -> dict[int, str]:
    return {int(number): str(said) for number, said in words.items()}


def write_answers(found: Sequence[Answers], path: Path) -> None:
    """Write answers as JSON lines, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save("".join(json.dumps(asdict(one)) + "\n" for one in found).encode(), path)


def ask(paths: Sequence[Path], questions: Questions, judge: Judge, n: int, file: Path) -> dict[str, Answers]:
    """Query the judge about all grids, and return its answers by the name of the grid's file.

    n: images of a grid. file: stores the answers; grids that it has by the same judge are skipped, unless they or the
    questions changed.
    """
    known = read_answers(file) if file.is_file() else {}
    found = {}
    for count, path in enumerate(tqdm(paths, unit="prompts"), 1):
        before, asked = known.get(path.name), questions[path.stem]
        if before is None or (before.judge, len(before.answers)) != (judge.name, n) or not before.fits(asked, path):
            texts = {number: question.text for number, question in asked.items()}
            said = [
                dict(zip(texts, judge.answers(image, list(texts.values())), strict=True)) for image in images(path, n)
            ]
            before = Answers(path.name, said, texts, digest_of(path), judge.name)
        found[path.name] = before
        if count % KEPT_EVERY == 0 or count == len(paths):
            write_answers(list((known | found).values()), file)
    return found


# ---- scores ----


def judged(
    paths: Sequence[Path], questions: Questions, found: Mapping[str, Answers], n: int, official: bool
) -> dict[str, Verdict]:
    """Score the answers, by prompt.

    official: leave out prompts whose first question was skipped though another depends on it, since the official code
    ignores every error. Raises ValueError where an image has no answers, or it or its questions changed since.
    """
    verdicts = {}
    for path in paths:
        if path.name not in found or len(found[path.name].answers) != n:
            raise ValueError(f"{path.name}: no answers about {n} images of it; ask with --judge")
        if not found[path.name].fits(questions[path.stem], path):
            raise ValueError(
                f"{path.name}: another image, or other questions, since the judge was asked; ask again, with --judge"
            )
        try:
            verdicts[path.stem] = verdict(questions[path.stem], found[path.name].answers)
        except KeyError as error:
            if not (official and lacks_a_parent(questions[path.stem])):
                raise ValueError(f"{path.name}: question {error} was not answered; ask with --judge") from None
    return verdicts


def scores(verdicts: Mapping[str, Verdict], questions: Questions, official: bool) -> list[Score]:
    """Compute the DPG-Bench score, the mean over prompts; then the share of yes by category, of both levels.

    Shares by category disregard dependencies. official: they are of the last of a prompt's images alone.
    """
    shares: dict[str, dict[str, list[bool]]] = {"broad": {}, "detailed": {}}
    for name, one in verdicts.items():
        for said_yes in one.said_yes[-1:] if official else one.said_yes:
            for number, question in questions[name].items():
                broad = question.category.split("-")[0].strip()
                shares["broad"].setdefault(broad, []).append(said_yes[number])
                shares["detailed"].setdefault(question.category, []).append(said_yes[number])
    by_category = [mean_score(name, values) for level in shares.values() for name, values in sorted(level.items())]
    return [mean_score("DPG-Bench", [one.value for one in verdicts.values()]), *by_category]


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark dpg", description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="the benchmark's folder: ID.png, ...")
    parser.add_argument("--questions", type=Path, required=True, help="dpg_bench.csv of the official repository")
    parser.add_argument("-o", "--out", type=Path, required=True, help="results.json")
    parser.add_argument(
        "--judge", help="folder or hub id of an image-text-to-text model, or the address of an OpenAI-compatible server"
    )
    parser.add_argument("--served", help="what a server calls the judge; its only model if not given")
    parser.add_argument("--answers", type=Path, help="where its words go, or lie; OUT.answers.jsonl if not given")
    parser.add_argument("--n", type=int, choices=(1, 4), default=4, help="images in each PNG")
    parser.add_argument("--official", action="store_true", help="the official code's slips, too")
    parser.add_argument("--device", help="cuda, cpu, ...")
    return parser.parse_args(argv)


def score(options: argparse.Namespace) -> list[Score]:
    """Score a folder of images, write the results to `options.out`, and return the scores."""
    out, file = options.out, options.answers or options.out.with_suffix(".answers.jsonl")
    if out.exists():
        raise ValueError(f"{out} is there already: give another -o, or remove it")
    if options.judge is None and not file.is_file():
        raise ValueError(f"{file}: no answers there; give --judge (a folder, hub id or address), or --answers FILE")
    if options.judge is None and options.served is not None:
        raise ValueError("--served names a model of a server: give its address with --judge")
    questions = read_questions(options.questions, options.official)
    paths = read_folder(options.images, questions)
    found = (
        ask(paths, questions, judge_of(options.judge, options.served, options.device), options.n, file)
        if options.judge
        else read_answers(file)
    )
    verdicts = judged(paths, questions, found, options.n, options.official)
    figures = scores(verdicts, questions, options.official)
    judges = sorted({found[path.name].judge or "another judge" for path in paths})
    rows = {name: {"value": one.value, "images": one.images} for name, one in verdicts.items()}
    told: dict[str, Any] = {
        "benchmark": "DPG-Bench",
        "judges": judges,
        "official": options.official,
        "scores": [asdict(one) for one in figures],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save((json.dumps(told | {"prompts": rows}, indent=1) + "\n").encode(), out)
    print(
        f"DPG-Bench{' (official slips)' if options.official else ''}, judged by {'; '.join(judges)}: "
        f"{len(verdicts)} prompts"
    )
    return figures


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(score, parsed(argv))
