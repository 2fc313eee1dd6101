"""Evaluates anything that draws and writes one page, and all figures as JSON.

Usage: `fusion eval MODEL --suite quick -o out/eval`

An interrupted evaluation resumes. MODEL: a saved unified model, a text-to-image model of any architecture, or a
diffusers pipeline. Several processes share the work with --shard 0/2 and --shard 1/2; the same command without --shard
then merges their results.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm
from transformers.utils import logging

from fusion.common.atomic import new_file, save
from fusion.common.provenance import commit
from fusion.common.renamed import renamed
from fusion.evaluation.results import Result, against, read_result, render
from fusion.evaluation.subjects import Subject, load_subject, with_preset
from fusion.evaluation.suite import SPLITS, Answer, Row, Suite
from fusion.evaluation.suites import COUNTS, SUITES
from fusion.generation.sampling import Sampling
from fusion.training.perplexity import kept_texts
from fusion.worlds.shapes import WORLD_VERSION

SAMPLING_PARAMETERS = {"steps": Sampling.steps, "guidance": Sampling.guidance}  # supported by every subject
RESULTS, SETTINGS = "results.json", "settings.json"


@dataclass(frozen=True)
class Settings:
    """All that the result depends on, besides the model's weights.

    counts: number of items, by suite. prompts: fingerprint of the requests, by suite.
    """

    model: str
    suite: str
    split: str
    seed: int
    params: dict[str, Any]
    counts: dict[str, int]
    prompts: dict[str, str]


def settings_of(model: str, suite: str, split: str, params: dict[str, Any]) -> Settings:
    """Build the settings of an evaluation, with a fingerprint of each suite's prompts.

    params: override SAMPLING_PARAMETERS. Raises ValueError for an unknown suite or split.
    """
    if suite not in COUNTS or split not in SPLITS:
        raise ValueError(
            f"suite={suite}, split={split}: suites are {', '.join(COUNTS)}, and splits {', '.join(SPLITS)}"
        )
    counts = {one.name: COUNTS[suite](one) for one in SUITES}
    prompts = {one.name: fingerprint(one, counts[one.name], SPLITS[split]) for one in SUITES}
    return Settings(str(model), suite, split, SPLITS[split], SAMPLING_PARAMETERS | params, counts, prompts)


def fingerprint(suite: Suite, count: int, seed: int) -> str:
    """Hash the world's version and the requests of all items (BLAKE2b, 8 bytes, hexadecimal)."""
    digest = hashlib.blake2b(str(WORLD_VERSION).encode(), digest_size=8)
    for item in suite.items(count, seed):
        digest.update(suite.text(item).encode() + b"\0")
    return digest.hexdigest()


# ---- asking ----


def asked(subject: Subject, settings: Settings) -> list[Suite]:
    """Return the suites that have items to evaluate, and that the subject supports."""
    return [suite for suite in SUITES if settings.counts[suite.name] and suite.needs <= subject.can]


def ask(subject: Subject, settings: Settings, out: Path, shard: tuple[int, int] = (0, 1)) -> None:
    """Evaluate the items of a shard that have no row in `out` yet, and save each batch when it is done.

    shard: (i, n), every n-th item from number i on.
    """
    work = []
    for suite in asked(subject, settings):
        known = {row.number for row in rows_of(out, suite)}
        mine = suite.numbered(settings.counts[suite.name], settings.seed)[shard[0] :: shard[1]]
        work.append((suite, [one for one in mine if one.number not in known]))
    total = sum(len(items) for _, items in work)
    with tqdm(total=total, unit="items", disable=not total) as bar:
        for suite, items in work:
            bar.set_description(suite.name)
            for answers in suite.answers(subject, items):
                keep(out, suite, answers)
                bar.update(len(answers))


def keep(out: Path, suite: Suite, answers: Sequence[Answer]) -> None:
    """Save a batch: images as PNG files, then all rows in one file, written atomically and named by the first row."""
    place, rows = out / "samples" / slug(suite), []
    place.mkdir(parents=True, exist_ok=True)
    for row, images in answers:
        names = [
            f"{row.number:04}{ascii_lowercase[number] if len(images) > 1 else ''}.png" for number in range(len(images))
        ]
        for name, image in zip(names, images, strict=True):
            with new_file(place / name) as aside:
                image.save(aside, format="PNG")
        rows.append(asdict(row) | {"images": [f"samples/{slug(suite)}/{name}" for name in names]})
    save(("".join(json.dumps(row) + "\n" for row in rows)).encode(), place / f"{rows[0]['number']:04}.jsonl")


def rows_of(out: Path, suite: Suite) -> list[Row]:
    """Load all rows of a suite from disk, by number."""
    files = sorted((out / "samples" / slug(suite)).glob("*.jsonl"))
    return sorted(
        (Row(**json.loads(line)) for file in files for line in file.read_text(encoding="utf-8").splitlines()),
        key=lambda row: row.number,
    )


def slug(suite: Suite) -> str:
    """Return the suite's name as a folder's name, with hyphens for spaces."""
    return suite.name.replace(" ", "-")


# ---- figures ----


def result(subject: Subject, settings: Settings, out: Path, text: dict | None) -> Result:
    """Assemble the result from the rows on disk; ValueError while a suite is incomplete.

    text: the figures of text perplexity, None if they were not measured.
    """
    rows = {suite.name: rows_of(out, suite) for suite in asked(subject, settings)}
    for name, found in rows.items():
        if len(found) < settings.counts[name]:
            raise ValueError(
                f"{out}: {len(found)} of {settings.counts[name]} items of {name} are there; run the other shards, then "
                "this again"
            )
    scores = {suite.name: suite.scores(rows[suite.name]) for suite in SUITES if suite.name in rows}
    facts = {
        "kind": subject.kind,
        "commit": commit(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "versions": {name: version(name) for name in ("torch", "transformers", "diffusers")},
        "world": str(WORLD_VERSION),
    }
    return Result(out, asdict(settings), facts, scores, rows, text)


def begin(settings: Settings, out: Path) -> None:
    """Create the folder, or check that it holds results of the same settings.

    Raises ValueError otherwise; nothing is overwritten.
    """
    file, told = out / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n"
    if file.is_file():
        if renamed(json.loads(file.read_text(encoding="utf-8"))) != json.loads(told):
            raise ValueError(f"{out} holds results of another model or other settings: give another folder with -o")
        return
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds something else: give another folder with -o")
    out.mkdir(parents=True, exist_ok=True)
    save(told.encode(), file)


def evaluate(
    model: str,
    out: Path,
    suite: str = "quick",
    split: str = "scored",
    params: dict | None = None,
    shard: tuple[int, int] = (0, 1),
    llm: str | None = None,
    other: Path | None = None,
    device: str | None = None,
) -> Result | None:
    """Run the whole evaluation and write results.json and report.html; return None if this is one of several shards.

    llm: the language model from which the model was made, to compare text perplexity. other: the folder of another
    evaluation, to compare item by item.
    """
    settings = settings_of(model, suite, split, with_preset(model, params or {}))
    other = read_result(other) if other else None
    begin(settings, out)
    subject = load_subject(model, settings.params, device)
    ask(subject, settings, out, shard)
    if shard[1] > 1:
        return None
    text = kept_texts(llm, model) if llm and "answer" in subject.can else None
    found = result(subject, settings, out, text)
    paired = against(found, other) if other else []
    save((json.dumps(found.figures(paired), indent=1) + "\n").encode(), out / RESULTS)
    save(render(found, paired, other).encode(), out / "report.html")
    return found


# ---- the program ----


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion eval", description=__doc__.splitlines()[0])
    parser.add_argument(
        "model",
        help="folder of a unified model (or a bundled one's name) or text-to-image model, or of a diffusers pipeline",
    )
    parser.add_argument("--suite", choices=COUNTS, default="quick", help="how many items are asked")
    parser.add_argument("--split", choices=SPLITS, default="scored", help="development while anything is being tuned")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that is written, or gone on with")
    parser.add_argument(
        "--against",
        type=Path,
        help="a folder that this program wrote, of another model: both are compared item by item",
    )
    parser.add_argument("--llm", help="the language model that the model was made of: its perplexity, before and after")
    parser.add_argument("--shard", default="0/1", help="i/n: this process asks for every n-th item, from number i on")
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument(
        "params",
        nargs="*",
        metavar="name=value",
        help="of the sampler: steps=20 guidance=3 solver=heun ..., or preset=fast",
    )
    return parser.parse_intermixed_args(argv)


def shard_of(words: str) -> tuple[int, int]:
    """Parse "i/n" into (i, n); ValueError unless 0 <= i < n."""
    first, _, last = words.partition("/")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(f"--shard {words}: give i/n with i from 0 to n - 1")
    return int(first), int(last)


def params_of(words: Sequence[str]) -> dict[str, Any]:
    """Parse "name=value" words into sampling parameters, each value as YAML; ValueError for a word of another form."""
    if wrong := [word for word in words if "=" not in word]:
        raise ValueError(f"{wrong[0]}: sampling parameters are given as name=value")
    return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))


def main(argv: Sequence[str]) -> int:
    """Run the program: print the scores and the page's path and return 0, or one line on stderr and return 1."""
    options = parsed(argv)
    logging.disable_progress_bar()  # of loading weights
    try:
        params, shard = params_of(options.params), shard_of(options.shard)
        found = evaluate(
            options.model,
            options.out,
            options.suite,
            options.split,
            params,
            shard,
            options.llm,
            options.against,
            options.device,
        )
    except (ValueError, TypeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if found is None:
        print(f"shard {options.shard} is done; the same command without --shard puts all of them together")
        return 0
    print(found.as_text())
    print(options.out / "report.html")
    return 0
