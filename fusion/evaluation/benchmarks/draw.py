"""Draws a benchmark's images in its official layout: `fusion benchmark draw MODEL BENCHMARK --prompts FILE -o OUT`

MODEL: a saved unified model, a text-to-image model of any architecture, or a diffusers pipeline. An interrupted run
resumes, and several processes share the work with --shard 0/2 and --shard 1/2. Sample k of prompt i is drawn with
seed + i n + k, whatever its batch.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from tqdm import tqdm

from fusion.evaluation.benchmarks import dpg, geneval
from fusion.evaluation.benchmarks import named_files as named
from fusion.evaluation.benchmarks.common import program
from fusion.evaluation.benchmarks.common.provenance import Asked, begin, fingerprint
from fusion.evaluation.run import params_of, shard_of
from fusion.evaluation.subjects import Subject, load_subject

N = {"geneval": 4, "dpg": 4} | named.N
"""Images of a prompt, by benchmark, as the official code has them."""


@runtime_checkable
class Layout(Protocol):
    """A benchmark's folder of images, with its prompts; n: images for each prompt."""

    prompts: Sequence[str]
    n: int

    def missing(self, number: int) -> list[int]:
        """Return the samples of prompt number `number` that are not drawn yet."""

    def put(self, number: int, sample: int, image: Image.Image) -> None:
        """Save an image as sample number `sample` of prompt number `number`."""


def wanted(layout: Layout, shard: tuple[int, int] = (0, 1)) -> list[int]:
    """Return the missing images of a shard, each as number * n + sample.

    shard: (i, n), the i-th of n contiguous parts of the prompts.
    """
    part, parts = shard
    numbers = range(len(layout.prompts) * part // parts, len(layout.prompts) * (part + 1) // parts)
    return [number * layout.n + sample for number in numbers for sample in layout.missing(number)]


def batches(places: Sequence[int], most: int) -> Iterator[list[int]]:
    """Split ascending places into batches of at most `most` consecutive ones."""
    batch: list[int] = []
    for place in places:
        if batch and (place != batch[-1] + 1 or len(batch) == most):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def draw(
    subject: Subject, layout: Layout, seed: int, size: tuple[int, int], batch: int, shard: tuple[int, int] = (0, 1)
) -> int:
    """Generate the missing images of a shard, and return how many they were.

    Image number * n + sample uses that number plus `seed`. size: (width, height) in pixels. batch: most images at once.
    Raises ValueError where the model generates another size.
    """
    places = wanted(layout, shard)
    with tqdm(total=len(places), unit="images", disable=not places) as bar:
        for together in batches(places, batch):
            prompts = [layout.prompts[place // layout.n] for place in together]
            images = subject.draw(prompts, [seed + place for place in together], size)
            for place, image in zip(together, images, strict=True):
                if image.size != size:
                    raise ValueError(
                        f"the model drew {image.width}x{image.height} for {size[0]}x{size[1]}: give a --size that it "
                        "can draw"
                    )
                layout.put(*divmod(place, layout.n), image)
            bar.update(len(together))
    return len(places)


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion benchmark draw", description=__doc__.splitlines()[0])
    parser.add_argument(
        "model",
        help="folder of a unified model (or a bundled one's name) or text-to-image model, or of a diffusers pipeline",
    )
    parser.add_argument("benchmark", choices=tuple(N), help="whose images; t2i is one category of T2I-CompBench")
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help="the official ones: evaluation_metadata.jsonl, DPG's texts, color_val.txt, ...",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that is written, or gone on with")
    parser.add_argument(
        "--n",
        type=int,
        help=f"images of each prompt: {', '.join(f'{name} {n}' for name, n in N.items())} if not given",
    )
    parser.add_argument("--size", type=int, default=512, help="of an image's sides in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=4, help="images drawn at once")
    parser.add_argument("--grid", action="store_true", help="of GenEval: each prompt's images in one file, too")
    parser.add_argument("--shard", default="0/1", help="i/n: this process draws the i-th of n parts")
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument(
        "params",
        nargs="*",
        metavar="name=value",
        help="of the sampler: steps=20 guidance=3 solver=heun ...",
    )
    options = parser.parse_intermixed_args(argv)
    options.n = N[options.benchmark] if options.n is None else options.n
    return options


def layout_of(options: argparse.Namespace) -> Layout:
    """Read the prompts and return the benchmark's folder; ValueError for options that the benchmark does not allow."""
    if min(options.n, options.size, options.batch) < 1:
        raise ValueError("--n, --size and --batch are at least 1")
    size = (options.size, options.size)
    if options.grid and options.benchmark != "geneval":
        raise ValueError("--grid is of GenEval alone; images of DPG and OneIG are grids, and the others have none")
    if options.benchmark in named.N:
        return named.layout(options.benchmark, options.prompts, options.out, options.n, size, Path(options.model).name)
    if options.benchmark == "dpg":
        return dpg.Folder(options.out, dpg.read_prompts(options.prompts), options.n, size)
    return geneval.Folder(options.out, geneval.read_prompts(options.prompts), options.n, size)


def asked_of(options: argparse.Namespace, layout: Layout, params: Mapping[str, Any]) -> Asked:
    """Return the provenance that is stored beside the folder."""
    said = fingerprint(layout.prompts)
    return Asked(
        options.benchmark, options.model, len(layout.prompts), said, options.n, options.size, options.seed, dict(params)
    )


def fill(options: argparse.Namespace) -> str:
    """Generate all missing images of the shard, and return a summary line."""
    params, shard, layout = params_of(options.params), shard_of(options.shard), layout_of(options)
    subject = load_subject(options.model, params, options.device)
    begin(asked_of(options, layout, params), options.out)
    drawn = draw(subject, layout, options.seed, (options.size, options.size), options.batch, shard)
    if options.grid:
        layout.write_grids()
    missing = len(wanted(layout))
    if not missing and isinstance(layout, named.Folder):
        layout.finish()
    return f"{drawn} images drawn; {missing} of {len(layout.prompts) * layout.n} are missing" + (
        "" if missing else ": the folder is complete"
    )


def main(argv: Sequence[str]) -> int:
    """Run the program; see fusion.evaluation.benchmarks.common.program.

    It reports TypeError, too: a sampling parameter that the model's sampler does not have.
    """
    return program.run(fill, parsed(argv), (ValueError, TypeError))
