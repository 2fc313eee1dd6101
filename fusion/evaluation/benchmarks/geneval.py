"""GenEval (Ghosh et al., arXiv 2310.11513): its prompts, its folders, and its score.

    fusion benchmark geneval IMAGES -o results.jsonl --detector MASK2FORMER --clip CLIP

IMAGES lies as the official code has it (`fusion.evaluation.benchmarks.draw` writes it so), and OUT is what its
`summary_scores.py` reads. With --detector and --clip the images are looked at and what was found goes into a file of
detections, which is gone on with after a stop; without them such a file, anybody's, is scored. OUT.summary.json has the
scores with their intervals. Options of the official code are given by their names, as in `max_overlap=0.8
bgcolor=original`.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.config import load_config
from fusion.common.statistics import Score, mean_of, wilson
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.detections import Detections, digest_of, read_detections, write_detections
from fusion.evaluation.benchmarks.common.image_grid import complete, files_in, grid, save_png
from fusion.evaluation.benchmarks.common.provenance import count_asked
from fusion.evaluation.benchmarks.judges.detector import Judge, load_judge
from fusion.evaluation.benchmarks.judges.geneval_rules import CLASSES, Rules, kept, mistakes
from fusion.sequence.images import open_image

KEPT_EVERY = 64  # images that are judged between two writings of what was found
NAME = re.compile(r"\d+\.png")


# ---- prompts ----


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The lines of `evaluation_metadata.jsonl`, or of prompts of one's own. ValueError naming the line that cannot be
    used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give GenEval's evaluation_metadata.jsonl") from None
    prompts = [read_metadata(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: no prompts in it; give GenEval's evaluation_metadata.jsonl")
    return prompts


def read_metadata(text: str, where: str) -> dict[str, Any]:
    """What a prompt asks for. ValueError, which begins with `where`, unless it can be scored."""
    try:
        asked = json.loads(text)
        words = isinstance(asked["prompt"], str) and isinstance(asked["tag"], str)
        clauses = [*asked["include"], *asked.get("exclude", [])]
        named = all(
            clause["class"] in CLASSES and isinstance(clause["count"], int) and clause["count"] > 0
            for clause in clauses
        )
        placed = all(
            0 <= clause["position"][1] < number
            for number, clause in enumerate(asked["include"])
            if "position" in clause
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{where}: not a prompt of GenEval ({error!r:.80}); a line has tag, include and prompt"
        ) from None
    if not (words and named and placed):
        raise ValueError(
            f"{where}: not a prompt of GenEval: of COCO's classes, counts above 0, and positions relative to an "
            "earlier object"
        )
    return asked


# ---- folders ----


class Folder:
    """Where drawings go: 00000/metadata.jsonl and 00000/samples/00000.png, as `generation/diffusers_generate.py` writes
    them."""

    def __init__(self, root: Path, prompts: Sequence[Mapping[str, Any]], n: int, size: tuple[int, int]):
        self.root, self.asked, self.n, self.size = root, prompts, n, size
        self.prompts = [asked["prompt"] for asked in prompts]

    def place(self, number: int) -> Path:
        """Of a prompt."""
        return self.root / f"{number:05}"

    def sample(self, number: int, sample: int) -> Path:
        """Of an image."""
        return self.place(number) / "samples" / f"{sample:05}.png"

    def missing(self, number: int) -> list[int]:
        """Samples of a prompt that are yet to be drawn. ValueError where what is there is not of this prompt or not of
        this size."""
        metadata = self.place(number) / "metadata.jsonl"
        if (
            metadata.is_file()
            and read_metadata(metadata.read_text(encoding="utf-8"), str(metadata)) != self.asked[number]
        ):
            raise ValueError(f"{metadata} belongs to another prompt than number {number}: give another folder with -o")
        return [sample for sample in range(self.n) if not complete(self.sample(number, sample), self.size)]

    def put(self, number: int, sample: int, image: Image.Image) -> None:
        """Keep an image."""
        place = self.place(number)
        (place / "samples").mkdir(parents=True, exist_ok=True)
        if not (place / "metadata.jsonl").is_file():
            save(json.dumps(self.asked[number]).encode(), place / "metadata.jsonl")
        save_png(image, self.sample(number, sample))

    def write_grids(self) -> None:
        """All samples of a prompt in 00000/grid.png, too, where all are there."""
        for number in range(len(self.prompts)):
            if not (file := self.place(number) / "grid.png").is_file() and not self.missing(number):
                save_png(grid([open_image(self.sample(number, sample)) for sample in range(self.n)]), file)


@dataclass(frozen=True)
class Sample:
    """An image to be scored. name: relative to the benchmark's folder."""

    path: Path
    name: str
    metadata: dict[str, Any]


def read_folder(root: Path) -> list[Sample]:
    """All images, in order. ValueError in one line where folders or samples are missing, or a file has a name that
    the official code would pass over."""
    folders = sorted(
        (path for path in root.glob("*") if path.is_dir() and path.name.isdecimal()), key=lambda path: int(path.name)
    )
    if not folders:
        raise ValueError(
            f"{root}: no folders 00000, 00001, ... in it; draw with fusion.evaluation.benchmarks.draw first"
        )
    names = {int(path.name): _samples(path) for path in folders}
    most = max(map(len, names.values()))
    for number in range(max([*names, count_asked(root) - 1]) + 1):
        if len(there := names.get(number, [])) < most:
            raise ValueError(
                f"{root / f'{number:05}'} has {len(there)} samples and others {most}: draw the rest with "
                "fusion.evaluation.benchmarks.draw first"
            )
    return [sample for path in folders for sample in _read_samples(root, path, names[int(path.name)])]


def _samples(folder: Path) -> list[str]:
    names = [path.name for path in files_in(folder / "samples")]
    if wrong := [name for name in names if not NAME.fullmatch(name)]:
        raise ValueError(
            f"{folder / 'samples' / wrong[0]}: samples are PNGs named by numbers, such as 00000.png; rename or "
            "remove it"
        )
    return names


def _read_samples(root: Path, folder: Path, names: Sequence[str]) -> Iterator[Sample]:
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} is missing: it is the prompt's line of evaluation_metadata.jsonl")
    metadata = read_metadata(file.read_text(encoding="utf-8"), str(file))
    for name in names:
        yield Sample(folder / "samples" / name, f"{folder.name}/samples/{name}", metadata)


# ---- scores ----


def look(samples: Sequence[Sample], judge: Judge, rules: Rules, file: Path) -> dict[str, Detections]:
    """What the judge finds. Images that it has seen, as the file says, are not looked at again, unless they
    changed."""
    known, label = read_detections(file) if file.is_file() else {}, judge_label(judge.name, rules)
    found = {}
    for count, sample in enumerate(tqdm(samples, unit="images"), 1):
        digest, before = digest_of(sample.path), known.get(sample.name)
        if before is None or (before.digest, before.judge) != (digest, label):
            before = Detections(sample.name, judge(open_image(sample.path), sample.metadata, rules), digest, label)
        found[sample.name] = before
        if count % KEPT_EVERY == 0 or count == len(samples):
            write_detections((known | found).values(), file)
    return found


def judge_label(name: str, rules: Rules) -> str:
    """Who judged, with the options that are not the official defaults."""
    unlike = {name: value for name, value in asdict(rules).items() if value != getattr(Rules(), name)}
    return " ".join([name, *(f"{name}={value}" for name, value in unlike.items())])


def result(sample: Sample, detections: Detections, rules: Rules) -> dict[str, Any]:
    """An image's row, in the columns of the official results.jsonl. Boxes in `details` are those that count: four
    numbers and the score."""
    tag = sample.metadata["tag"]
    objects = {name: kept(detections.objects.get(name, []), tag, rules) for name in CLASSES}
    objects = {name: several for name, several in objects.items() if several}
    try:
        wrong = mistakes(sample.metadata, objects, rules)
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from None
    details = {name: [[*one.box, one.score] for one in several] for name, several in objects.items()}
    return {
        "filename": str(sample.path),
        "tag": tag,
        "prompt": sample.metadata["prompt"],
        "correct": not wrong,
        "reason": "\n".join(wrong),
        "metadata": json.dumps(sample.metadata),
        "details": json.dumps(details),
    }


def results(samples: Sequence[Sample], found: Mapping[str, Detections], rules: Rules) -> list[dict[str, Any]]:
    """All rows. ValueError where an image was not looked at, or changed since."""
    for sample in samples:
        if sample.name not in found:
            raise ValueError(f"{sample.name}: no detections of it; look at the images with --detector and --clip")
        if found[sample.name].digest not in (None, digest_of(sample.path)):
            raise ValueError(
                f"{sample.name}: another image since it was looked at; look again, with --detector and --clip"
            )
    return [result(sample, found[sample.name], rules) for sample in samples]


def scores(rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """The overall score, which is the mean over tags, then each tag's share of right images. Intervals take prompts
    for the independent trials: images of one prompt are right or wrong together."""
    tags = []
    for tag in dict.fromkeys(row["tag"] for row in rows):
        mine = [row for row in rows if row["tag"] == tag]
        share, prompts = sum(row["correct"] for row in mine) / len(mine), len({row["metadata"] for row in mine})
        tags.append(Score(tag, share, *wilson(share, prompts), prompts))
    return [mean_of("overall", tags), *tags]


def summary(rows: Sequence[Mapping[str, Any]], judges: Sequence[str], rules: Rules) -> dict[str, Any]:
    """For the file beside the results."""
    prompts = {}
    for row in rows:
        prompts.setdefault(row["metadata"], []).append(row["correct"])
    return {
        "benchmark": "GenEval",
        "judges": list(judges),
        "rules": asdict(rules),
        "images": len(rows),
        "prompts": len(prompts),
        "correct images": sum(row["correct"] for row in rows) / len(rows),
        "prompts with a correct image": sum(map(any, prompts.values())) / len(prompts),
        "scores": [asdict(score) for score in scores(rows)],
    }


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark geneval", description=__doc__.splitlines()[0])
    parser.add_argument(
        "images", type=Path, help="the benchmark's folder: 00000/metadata.jsonl, 00000/samples/00000.png, ..."
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="results.jsonl, as the official code writes it")
    parser.add_argument(
        "--detector", help="folder or hub id of a Mask2Former: facebook/mask2former-swin-small-coco-instance"
    )
    parser.add_argument("--clip", help="folder or hub id of a CLIP: openai/clip-vit-large-patch14")
    parser.add_argument(
        "--detections", type=Path, help="where what was found goes, or lies; OUT.detections.jsonl if not given"
    )
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="option=value",
        help="of the official code: threshold counting_threshold max_overlap ...",
    )
    return parser.parse_intermixed_args(argv)


def score(options: argparse.Namespace) -> list[Score]:
    """The whole program."""
    out, file = options.out, options.detections or options.out.with_suffix(".detections.jsonl")
    if out.exists():
        raise ValueError(f"{out} is there already: give another -o, or remove it")
    if (options.detector is None) != (options.clip is None):
        raise ValueError("--detector and --clip go together: give both, or neither to score what --detections has")
    if options.detector is None and not file.is_file():
        raise ValueError(
            f"{file}: no detections there; give --detector and --clip (folders or hub ids), or --detections FILE"
        )
    rules, samples = load_config(Rules, None, options.options), read_folder(options.images)
    judge = load_judge(options.detector, options.clip, options.device) if options.detector else None
    found = look(samples, judge, rules, file) if judge else read_detections(file)
    rows = results(samples, found, rules)
    judges = sorted({found[sample.name].judge or "another detector" for sample in samples})
    out.parent.mkdir(parents=True, exist_ok=True)
    save((json.dumps(summary(rows, judges, rules), indent=1) + "\n").encode(), out.with_suffix(".summary.json"))
    save("".join(json.dumps(row) + "\n" for row in rows).encode(), out)
    print(
        f"GenEval, judged by {'; '.join(judges)}: {len(rows)} images of "
        f"{len({row['metadata'] for row in rows})} prompts"
    )
    return scores(rows)


def main(argv: Sequence[str]) -> int:
    """The program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(score, parsed(argv))
