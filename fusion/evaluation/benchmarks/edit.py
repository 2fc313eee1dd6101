"""Makes the edits that a benchmark asks for, in its official layout.

Usage: `fusion benchmark edit MODEL BENCHMARK --data DATA -o OUT`

    imgedit    --data basic_edit.json --images FOLDER          OUT/{key}.png
    gedit      --data the data set's folder                    OUT/{model}/fullset/{task}/{language}/{key}.png,
                                                               and its source as {key}_SRCIMG.png
    kris       --data KRIS_Bench                               OUT/{model}/{category}/{id}.jpg

An image is read and edited at the nearest size that the model supports, and the result is resized to the image's own,
as `model.edit` does. Edit i has the seed + i. An interrupted run resumes, and several processes share the work with
--shard 0/2 and --shard 1/2.

ImgEdit: Ye et al., arXiv 2505.20275; GEdit-Bench: Liu et al., arXiv 2504.17761; KRIS-Bench: Wu et al., arXiv
2505.16707.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from tqdm import tqdm

from fusion.common.atomic import save
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.image_grid import save_png
from fusion.evaluation.benchmarks.common.provenance import Asked, begin, fingerprint
from fusion.evaluation.run import params_of, shard_of
from fusion.evaluation.subjects import Subject, load_subject
from fusion.sequence.images import open_image

QUALITY = 95  # of JPEG, where the official judge reads JPEG
Load = Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class Edit:
    """An edit that a benchmark asks for.

    name: path of the result below the benchmark's folder. words: the instruction. sources: loads the source images, of
    which the last determines the result's size. beside: path of a copy of that source, None for no copy.
    """

    name: str
    words: str
    sources: Load
    beside: str | None = None


# ---- the edits of each benchmark ----


def read_imgedit(data: Path, images: Path | None) -> list[Edit]:
    """Load ImgEdit's edits from basic_edit.json: {key: {"id": image below `images`, "prompt", ...}}."""
    if images is None:
        raise ValueError("ImgEdit's images lie apart from basic_edit.json: give their folder with --images")
    rows = read_rows(data, "basic_edit.json", ("id", "prompt"))
    return [Edit(f"{key}.png", row["prompt"], partial(_opened, [images / row["id"]])) for key, row in rows.items()]


def read_gedit(data: Path, model: str) -> list[Edit]:
    """Load GEdit-Bench's edits; model: its name in the results' paths.

    data: a folder with the Parquet files of stepfun-ai/GEdit-Bench below it, or one that `datasets` saved. Raises
    ValueError, in one line, for anything else.
    """
    rows = _table(data)
    if missing := {"task_type", "key", "instruction", "instruction_language", "input_image_raw"} - set(
        rows.column_names
    ):
        raise ValueError(f"{data}: GEdit-Bench has a column {min(missing)}, and these images have none")
    for column in [name for name in ("input_image", "input_image_raw") if name in rows.column_names]:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    table = rows.remove_columns([name for name in rows.column_names if name.startswith("input_image")])
    found = []
    for number, row in enumerate(table):
        place = f"{model}/fullset/{row['task_type']}/{row['instruction_language']}/{row['key']}"
        found.append(
            Edit(f"{place}.png", row["instruction"], partial(_illustrated, rows, number), f"{place}_SRCIMG.png")
        )
    return found


def read_kris(data: Path, model: str) -> list[Edit]:
    """Load KRIS-Bench's edits; model: its name in the results' paths.

    data: KRIS_Bench, with {category}/annotation.json: {id: {"ori_img": a name or several, "ins_en", ...}}. Raises
    ValueError, in one line, for anything else.
    """
    found = []
    for file in sorted(data.glob("*/annotation.json")):
        for key, row in read_rows(file, "KRIS_Bench's annotations", ("ori_img", "ins_en")).items():
            names = row["ori_img"] if isinstance(row["ori_img"], list) else [row["ori_img"]]
            found.append(
                Edit(
                    f"{model}/{file.parent.name}/{key}.jpg",
                    row["ins_en"],
                    partial(_opened, [file.parent / name for name in names]),
                )
            )
    if not found:
        raise ValueError(f"{data}: no CATEGORY/annotation.json in it; give the folder KRIS_Bench")
    return found


def read_rows(path: Path, wanted: str, keys: Sequence[str]) -> dict[str, Any]:
    """Load {name: {key: value, ...}, ...} from a JSON file, where every row has non-empty `keys`.

    wanted: what the file should be, for the ValueError, in one line, for anything else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows.values():
            if not all(row[key] for key in keys):
                raise KeyError(keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not {wanted} ({error!r:.80})") from None
    return rows


def _table(path: Path) -> datasets.Dataset:
    files = sorted(map(str, path.rglob("*.parquet")))
    try:
        whole = datasets.Dataset.from_parquet(files) if files else datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no data set there ({' '.join(str(error).split())[:80]}); give a folder with GEdit-Bench's "
            "Parquet files"
        ) from None
    return whole["train"] if isinstance(whole, datasets.DatasetDict) else whole


def _opened(paths: list[Path]) -> list[Image.Image]:
    return [open_image(path) for path in paths]


def _illustrated(rows: datasets.Dataset, number: int) -> list[Image.Image]:
    return [open_image(rows[number]["input_image_raw"]["bytes"], name=f"GEdit-Bench, row {number}")]


# ---- edits ----


def missing(edits: Sequence[Edit], out: Path, shard: tuple[int, int] = (0, 1)) -> list[int]:
    """Return the numbers of a shard's edits whose result does not exist; files are written atomically.

    shard: (i, n), the i-th of n contiguous parts of the edits.
    """
    part, parts = shard
    numbers = range(len(edits) * part // parts, len(edits) * (part + 1) // parts)
    return [number for number in numbers if not (out / edits[number].name).is_file()]


Loaded = tuple[int, list[Image.Image]]


def together(
    loaded: Iterator[Loaded], fitted: Callable[[Image.Image], tuple[int, int]], most: int
) -> Iterator[list[Loaded]]:
    """Split loaded edits into batches of at most `most`, with consecutive numbers and results of one size.

    loaded: (number, source images). fitted: returns the size at which the model reads an image.
    """
    batch: list[Loaded] = []
    for number, images in loaded:
        if batch and (
            number != batch[-1][0] + 1 or len(batch) == most or fitted(images[-1]) != fitted(batch[0][1][-1])
        ):
            yield batch
            batch = []
        batch.append((number, images))
    if batch:
        yield batch


def run(
    subject: Subject, edits: Sequence[Edit], out: Path, seed: int, most: int, shard: tuple[int, int] = (0, 1)
) -> int:
    """Make the missing edits of a shard, and return how many they were.

    Edit i uses seed + i. most: edits of a batch.
    """
    numbers = missing(edits, out, shard)
    with tqdm(total=len(numbers), unit="edits", disable=not numbers) as bar:
        for batch in together(((number, edits[number].sources()) for number in numbers), subject.fitted, most):
            words = [edits[number].words for number, _ in batch]
            drawn = subject.compose([images for _, images in batch], words, [seed + number for number, _ in batch])
            for (number, images), image in zip(batch, drawn, strict=True):
                source = images[-1]
                if edits[number].beside:
                    write(source, out / edits[number].beside)
                write(
                    image if image.size == source.size else image.resize(source.size, Image.Resampling.LANCZOS),
                    out / edits[number].name,
                )
            bar.update(len(batch))
    return len(numbers)


def write(image: Image.Image, path: Path) -> None:
    """Write an image atomically, as PNG, or as JPEG where the path does not end in .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        return save_png(image, path)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY, subsampling=0)
    return save(data.getvalue(), path)


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark edit", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a unified model, or a bundled one's name")
    parser.add_argument("benchmark", choices=("imgedit", "gedit", "kris"))
    parser.add_argument(
        "--data", type=Path, required=True, help="basic_edit.json, the folder of GEdit-Bench's data set, or KRIS_Bench"
    )
    parser.add_argument("--images", type=Path, help="of ImgEdit: the folder of its images")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that is written, or gone on with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=4, help="edits made at once, where their images have one size")
    parser.add_argument("--shard", default="0/1", help="i/n: this process makes the i-th of n parts")
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument(
        "params",
        nargs="*",
        metavar="name=value",
        help="of the sampler: steps=20 guidance=3 image_guidance=1.5 ...",
    )
    return parser.parse_intermixed_args(argv)


def edits_of(options: argparse.Namespace) -> list[Edit]:
    """Load a benchmark's edits and check the results' paths; ValueError, in one line, for what cannot be used."""
    if options.batch < 1:
        raise ValueError("--batch is at least 1")
    if options.images is not None and options.benchmark != "imgedit":
        raise ValueError("--images is of ImgEdit; the others have their images in --data")
    model = Path(options.model).name
    edits = {
        "imgedit": lambda: read_imgedit(options.data, options.images),
        "gedit": lambda: read_gedit(options.data, model),
        "kris": lambda: read_kris(options.data, model),
    }[options.benchmark]()
    root = options.out.resolve()
    if wrong := [edit.name for edit in edits if not (root / edit.name).resolve().is_relative_to(root)]:
        raise ValueError(f"{options.data}: {wrong[0]} would lie outside of {options.out}")
    if len({edit.name for edit in edits}) < len(edits):
        raise ValueError(f"{options.data}: two edits have one name")
    return edits


def fill(options: argparse.Namespace) -> str:
    """Make all missing edits of the shard, and return a summary line."""
    datasets.disable_progress_bars()
    params, shard, edits = params_of(options.params), shard_of(options.shard), edits_of(options)
    subject = load_subject(options.model, params, options.device)
    if "edit" not in subject.can:
        raise ValueError(f"{options.model}: a {subject.kind} cannot edit; give a unified model")
    said = fingerprint([f"{edit.name}\n{edit.words}" for edit in edits])
    # size=0: each result has the size of its source.
    begin(
        Asked(options.benchmark, options.model, len(edits), said, n=1, size=0, seed=options.seed, params=dict(params)),
        options.out,
    )
    made, left = run(subject, edits, options.out, options.seed, options.batch, shard), len(missing(edits, options.out))
    return f"{made} edits made; {left} of {len(edits)} are missing" + ("" if left else ": the folder is complete")


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program.

    It reports TypeError, too: a sampling parameter that the model's sampler does not have.
    """
    return program.run(fill, parsed(argv), (ValueError, TypeError))
