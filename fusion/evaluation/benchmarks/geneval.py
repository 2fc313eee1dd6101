"""GenEval (Ghosh et al., arXiv 2310.11513): its prompts, its folders, and its score.

    fusion benchmark geneval IMAGES -o results.jsonl --detector MASK2FORMER --clip CLIP

IMAGES has the official layout (as `fusion.evaluation.benchmarks.draw` writes it), and OUT is what the official
`summary_scores.py` reads. With --detector and --clip the images are judged, and the detections go into a file, from
which an interrupted run resumes; without them such a file, of any detector, is scored. OUT.summary.json has the scores
with their intervals. Options of the official code are given by their names, as in `max_overlap=0.8 bgcolor=original`.
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

KEPT_EVERY = 64  # images judged between two writes of the detections
NAME = re.compile(r"\d+\.png")


# ---- prompts ----


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Load the lines of `evaluation_metadata.jsonl`, or of your own prompts in that format.

    Raises ValueError that names the line that cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give GenEval's evaluation_metadata.jsonl") from None
    prompts = [read_metadata(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: no prompts in it; give GenEval's evaluation_metadata.jsonl")
    return prompts


def read_metadata(text: str, where: str) -> dict[str, Any]:
    """Parse a prompt's line: its text, its tag, and the objects that it asks for.

    Raises ValueError, which begins with `where`, unless the prompt can be scored.
    """
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
    """GenEval's folder of images: 00000/metadata.jsonl and 00000/samples/00000.png.

    The layout is that of the official `generation/diffusers_generate.py`. prompts: lines of the prompts file. n: images
    for each prompt. size: (width, height) in pixels.
    """

    def __init__(self, root: Path, prompts: Sequence[Mapping[str, Any]], n: int, size: tuple[int, int]):
        self.root, self.asked, self.n, self.size = root, prompts, n, size
        self.prompts = [asked["prompt"] for asked in prompts]

    def place(self, number: int) -> Path:
        """Return the folder of a prompt."""
        return self.root / f"{number:05}"

    def sample(self, number: int, sample: int) -> Path:
        """Return the path of an image: sample number `sample` of prompt number `number`."""
        return self.place(number) / "samples" / f"{sample:05}.png"

    def missing(self, number: int) -> list[int]:
        """Return the samples of a prompt that are not drawn yet.

        Raises ValueError where the existing files are of another prompt or of another size.
        """
        metadata = self.place(number) / "metadata.jsonl"
        if (
            metadata.is_file()
            and read_metadata(metadata.read_text(encoding="utf-8"), str(metadata)) != self.asked[number]
        ):
            raise ValueError(f"{metadata} belongs to another prompt than number {number}: give another folder with -o")
        return [sample for sample in range(self.n) if not complete(self.sample(number, sample), self.size)]

    def put(self, number: int, sample: int, image: Image.Image) -> None:
        """Save an image, and the prompt's metadata if it is not there yet."""
        place = self.place(number)
        (place / "samples").mkdir(parents=True, exist_ok=True)
        if not (place / "metadata.jsonl").is_file():
            save(json.dumps(self.asked[number]).encode(), place / "metadata.jsonl")
        save_png(image, self.sample(number, sample))

    def write_grids(self) -> None:
        """Write all samples of a prompt as 00000/grid.png, too, for the prompts whose samples are complete."""
        for number in range(len(self.prompts)):
            if not (file := self.place(number) / "grid.png").is_file() and not self.missing(number):
                save_png(grid([open_image(self.sample(number, sample)) for sample in range(self.n)]), file)


@dataclass(frozen=True)
class Sample:
    """An image to be scored, with its prompt's metadata; name: its path relative to the benchmark's folder."""

    path: Path
    name: str
    metadata: dict[str, Any]


def read_folder(root: Path) -> list[Sample]:
    """List all images of the benchmark's folder, in order.

    Raises ValueError, in one line, where folders or samples are missing, or a file has a name that the official code
    would skip.
    """
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
    """Detect the objects of all images, by the image's name.

    file: stores the detections; images that it has by the same judge are skipped, unless they changed.
    """
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
    """Return the judge's name with the options that differ from the official defaults."""
    unlike = {name: value for name, value in asdict(rules).items() if value != getattr(Rules(), name)}
    return " ".join([name, *(f"{name}={value}" for name, value in unlike.items())])


def result(sample: Sample, detections: Detections, rules: Rules) -> dict[str, Any]:
    """Score an image as a row with the columns of the official results.jsonl.

    Boxes in `details` are those that count: four numbers and the score.
    """
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
    """Score all images as rows; ValueError where an image has no detections, or changed since."""
    for sample in samples:
        if sample.name not in found:
            raise ValueError(f"{sample.name}: no detections of it; look at the images with --detector and --clip")
        if found[sample.name].digest not in (None, digest_of(sample.path)):
            raise ValueError(
                f"{sample.name}: another image since it was looked at; look again, with --detector and --clip"
            )
    return [result(sample, found[sample.name], rules) for sample in samples]


def scores(rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Compute the overall score, the mean over tags, then each tag's share of right images.

    Intervals treat prompts as the independent trials: images of one prompt are right or wrong together.
    """
    tags = []
    for tag in dict.fromkeys(row["tag"] for row in rows):
        mine = [row for row in rows if row["tag"] == tag]
        share, prompts = sum(row["correct"] for row in mine) / len(mine), len({row["metadata"] for row in mine})
        tags.append(Score(tag, share, *wilson(share, prompts), prompts))
    return [mean_of("overall", tags), *tags]


def summary(rows: Sequence[Mapping[str, Any]], judges: Sequence[str], rules: Rules) -> dict[str, Any]:
    """Return the contents of OUT.summary.json: judges, rules, counts and scores."""
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
    """Parse the command line."""
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
    """Score a folder of images, write the results and the summary, and return the scores."""
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
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(score, parsed(argv))
