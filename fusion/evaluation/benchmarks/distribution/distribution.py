"""Distances of generated to real images: FID, KID, precision, recall, FD-DINO, CMMD; and CLIP score to prompts.

    fusion benchmark distribution FOLDER --against FOLDER -o out/distances.json \\
        --weights inception=weights-inception-2015-12-05-6726825d.pth dino=facebook/dinov2-large \\
        clip=openai/clip-vit-large-patch14-336

Weights are given for each network; metrics without theirs are skipped, and a line says so. Prompts are JSON lines
{"file_name", "text"}, as Hugging Face's image folders have them: FOLDER/metadata.jsonl, or --prompts. Figures depend on
the number of images: compare only equal numbers.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fusion.common.atomic import save
from fusion.data.formats.split import SUFFIXES
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.distribution.distances import clip_score, cmmd, frechet, kid, precision_recall
from fusion.evaluation.benchmarks.distribution.features import Clip, features, load_clip, load_dino, load_inception

NETWORKS = {
    "inception": ("FID, KID, precision, recall", "inception=FILE"),
    "dino": ("FD-DINO", "dino=facebook/dinov2-large"),
    "clip": ("CMMD, CLIP score", "clip=openai/clip-vit-large-patch14-336"),
}
PROMPTS = "metadata.jsonl"


@dataclass(frozen=True)
class Figure:
    """A metric's value; spread: the standard deviation, of KID over subsets and of CLIP score over images."""

    name: str
    value: float
    spread: float | None = None


@dataclass(frozen=True)
class ImageSets:
    """Two sets of image files: generated (`drawn`) and real (`true`, which may be empty).

    prompts: of generated images, by file.
    """

    drawn: list[Path]
    true: list[Path]
    prompts: dict[Path, str]


# ---- what there is ----


def images_in(folder: Path) -> list[Path]:
    """Return all image files below a folder, by name; ValueError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder}: no images there")
    return found


def read_prompts(file: Path, folder: Path, drawn: Sequence[Path]) -> dict[Path, str]:
    """Load prompts by image from JSON lines {"file_name", "text"}, with names relative to `folder`.

    Raises ValueError that names the line that cannot be used, or an image of `drawn` without a prompt.
    """
    found: dict[Path, str] = {}
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[folder / row["file_name"]] = str(row["text"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        line = f", line {len(found) + 1}" if file.is_file() else ""
        raise ValueError(
            f'{file}{line}: no prompts ({error!r:.80}); lines are {{"file_name": ..., "text": ...}}'
        ) from None
    if missing := [path for path in drawn if path not in found]:
        raise ValueError(
            f"{file}: {len(missing)} of {len(drawn)} images have no prompt, {missing[0].relative_to(folder)} among them"
        )
    return found


def weights_of(words: Sequence[str]) -> dict[str, str]:
    """Parse "network=place" words; ValueError, in one line, for any other word."""
    pairs = [word.partition("=") for word in words]
    if wrong := ["".join(pair) for pair in pairs if pair[0] not in NETWORKS or not pair[2]]:
        raise ValueError(f"--weights {wrong[0]}: give {', '.join(example for _, example in NETWORKS.values())}")
    return {name: place for name, _, place in pairs}


# ---- figures ----


def by_inception(images: ImageSets, place: str, batch: int, device: str) -> list[Figure]:
    """Compute FID, KID, precision and recall, all of the same features; place: the weights' file."""
    network = load_inception(place, device)
    drawn, true = (features(paths, network, batch) for paths in (images.drawn, images.true))
    precision, recall = precision_recall(drawn, true)
    return [
        Figure("FID", frechet(drawn, true)),
        Figure("KID", *kid(drawn, true)),
        Figure("precision", precision),
        Figure("recall", recall),
    ]


def by_dino(images: ImageSets, place: str, batch: int, device: str) -> list[Figure]:
    """Compute FD-DINO; place: the weights' folder or hub id."""
    network = load_dino(place, device)
    return [Figure("FD-DINO", frechet(*(features(paths, network, batch) for paths in (images.drawn, images.true))))]


def by_clip(images: ImageSets, place: str, batch: int, device: str) -> list[Figure]:
    """Compute CMMD if there are real images, CLIP score if there are prompts; place: the weights' folder or hub id."""
    clip, found = load_clip(place, device), []
    if images.true:
        found.append(
            Figure("CMMD", cmmd(*(features(paths, clip.whole, batch) for paths in (images.drawn, images.true))))
        )
    if images.prompts:
        prompts = [images.prompts[path] for path in images.drawn]
        scores = clip_score(features(images.drawn, clip.middle, batch), directions(clip, prompts, batch))
        found.append(Figure("CLIP score", scores.mean().item(), scores.std().item() if len(scores) > 1 else None))
    return found


def directions(clip: Clip, texts: list[str], batch: int) -> torch.Tensor:
    """Compute CLIP embeddings of texts, of unit length, a batch at a time."""
    return torch.cat([clip.words(texts[start : start + batch]) for start in range(0, len(texts), batch)])


def figures(images: ImageSets, weights: dict[str, str], batch: int, device: str) -> tuple[list[Figure], list[str]]:
    """Compute every metric that weights and images allow, and a line for each that is skipped.

    weights: file, folder or hub id, by network. Raises ValueError where given weights cannot be used.
    """
    found, skipped = [], []
    asks = {"inception": by_inception, "dino": by_dino, "clip": by_clip}
    for name, (metrics, example) in NETWORKS.items():
        if name not in weights:
            skipped.append(f"skipped: {metrics}, for there are no weights; give --weights {example}")
        elif name != "clip" and not images.true:
            skipped.append(f"skipped: {metrics}, for there is no --against")
        else:
            found += asks[name](images, weights[name], batch, device)
    if "clip" in weights and not images.true:
        skipped.append("skipped: CMMD, for there is no --against")
    if "clip" in weights and not images.prompts:
        skipped.append(
            f"skipped: CLIP score, for there are no prompts; give --prompts FILE, or {PROMPTS} beside the images"
        )
    return found, skipped


def as_text(found: Sequence[Figure], skipped: Sequence[str]) -> str:
    """Format the metrics and the skipped ones for a terminal, one a line."""
    lines = [
        f"{one.name:<10}  {one.value:.5g}" + ("" if one.spread is None else f"  (std {one.spread:.2g})")
        for one in found
    ]
    return "\n".join([*lines, *skipped])


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark distribution", description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder of drawn images, in whatever folders below it")
    parser.add_argument("--against", type=Path, help="a folder of true images")
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NETWORK=PLACE",
        help="inception=FILE dino=FOLDER clip=FOLDER, or hub ids",
    )
    parser.add_argument(
        "--prompts", type=Path, help=f"what the drawn images should show; IMAGES/{PROMPTS} if that is there"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="figures as JSON")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", help="cuda, cpu, ...")
    return parser.parse_args(argv)


def measure(options: argparse.Namespace) -> str:
    """Compute the metrics, write them to `options.out` as JSON, and return the table."""
    if options.out.exists():
        raise ValueError(f"{options.out} is there already: give another -o, or remove it")
    if options.batch < 1:
        raise ValueError("--batch is at least 1")
    weights, drawn = weights_of(options.weights), images_in(options.images)
    file = options.prompts or options.images / PROMPTS
    prompts = read_prompts(file, options.images, drawn) if options.prompts or file.is_file() else {}
    images = ImageSets(drawn, images_in(options.against) if options.against else [], prompts)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    found, skipped = figures(images, weights, options.batch, device)
    told = {
        "images": str(options.images),
        "count": len(drawn),
        "against": options.against and str(options.against),
        "against count": len(images.true),
        "weights": weights,
        "figures": [asdict(one) for one in found],
        "skipped": skipped,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save((json.dumps(told, indent=1) + "\n").encode(), options.out)
    return as_text(found, skipped)


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program."""
    return program.run(measure, parsed(argv))
