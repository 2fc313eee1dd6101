"""Finds the best sampling parameters at every cost: `fusion tune MODEL --budget 20m -o out/tune --save`

It searches steps, solver, shift, guidance, its interval and image guidance on the built-in world's development prompts,
never on the scored ones, and writes one page with the front of quality against cost (forward passes an image, counted)
and three presets. --save puts these into the model's folder, where `model.draw(..., preset="fast")` finds them. It goes
on where it was stopped, and with a larger budget from where it ended.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging

from fusion.common.atomic import save
from fusion.common.provenance import commit
from fusion.common.tensor_cache import bytes_of
from fusion.evaluation.run import RESULTS, begin, fingerprint
from fusion.evaluation.subjects import Subject, Unified, load_subject
from fusion.evaluation.suite import SPLITS
from fusion.generation import presets
from fusion.generation.api import Fusion, place
from fusion.tuning.pareto_front import chosen
from fusion.tuning.results import Found, in_words, render
from fusion.tuning.search import DEPTHS, FRESH, OPTIONS, PARTS, Budget, Ledger, Search
from fusion.worlds.shapes import WORLD_VERSION

LEDGER, PAGE, SPLIT = "tried.jsonl", "tune.html", "development"
SUITES = {"draw": ("draw",), "edits": ("edits",), "both": ("draw", "edits")}


@dataclass(frozen=True)
class Settings:
    """What comes of a trial depends on it. weights: a fingerprint of the model's flow head, which no training leaves as
    it was."""

    model: str
    weights: str
    suite: str
    split: str
    seed: int
    world: str
    prompts: dict[str, str]
    options: dict[str, tuple]


def settings_of(model: str, loaded: Fusion, suite: str) -> Settings:
    """With fingerprints of weights and prompts."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in loaded.model.flow_head.state_dict().values():
        digest.update(bytes_of(tensor))
    prompts = {
        part.name: fingerprint(part.suite, part.size * (DEPTHS[-1] + FRESH), SPLITS[SPLIT])
        for part in map(PARTS.get, SUITES[suite])
    }
    return Settings(str(model), digest.hexdigest(), suite, SPLIT, SPLITS[SPLIT], str(WORLD_VERSION), prompts, OPTIONS)


def find(settings: Settings, subject_of: Callable[[dict], Subject], out: Path, budget: Budget) -> Found:
    """Search, going on with what OUT holds. ValueError where that is of something else: nothing is written over."""
    begin(settings, out)
    parts = [PARTS[name] for name in SUITES[settings.suite]]
    with tqdm(total=budget.amount, bar_format="{percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} " + budget.unit) as bar:

        def advance(took: float) -> None:
            bar.total = max(bar.total, bar.n + took)  # judging has its least
            bar.update(took)

        search = Search(subject_of, parts, Ledger(out / LEDGER), budget, settings.seed, advance)
        judged = search.run()
    searched = tuple(search.options)
    tried = [(search.cost(one), search.quality(one), in_words(one, searched)) for one in search.results]
    facts = {"budget": f"{budget.amount:g} {budget.unit}", "commit": commit()}
    return Found(
        asdict(settings),
        facts,
        searched,
        SUITES[settings.suite],
        tried,
        judged,
        chosen(judged, search.cost(search.default)),
    )


def tune(model: str, out: Path, suite: str, budget: Budget, keep: bool = False, device: str | None = None) -> Found:
    """The whole of it. keep: put the presets into the model's folder, beside those of other names. Raises ValueError in
    one line."""
    subject = load_subject(model, {}, device)
    if not isinstance(subject, Unified):
        raise ValueError(f"{model} is a {subject.kind}: only unified models have presets")
    others = presets.read(place(model))  # what is wrong with them is said before anything is searched

    def subject_of(params: dict) -> Subject:
        return Unified(subject.model, params)

    found = find(settings_of(model, subject.model, suite), subject_of, out, budget)
    save((json.dumps(found.figures(), indent=1) + "\n").encode(), out / RESULTS)
    save(render(found, subject_of).encode(), out / PAGE)
    if keep:
        presets.write(place(model), others | found.presets)
    return found


# ---- the program ----


def budget_of(words: str) -> Budget:
    """`20m` is minutes, `3000` is images. ValueError for anything else."""
    minutes = words.endswith("m")
    try:
        amount = 60 * float(words.removesuffix("m")) if minutes else int(words)
    except ValueError:
        amount = 0
    if not 0 < amount < float("inf"):
        raise ValueError(f"--budget {words}: give minutes (20m) or a number of images (3000)")
    return Budget(amount, "seconds" if minutes else "images")


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fusion tune", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a unified model, or a bundled one's name")
    parser.add_argument(
        "--budget",
        default="10m",
        help="minutes of drawing (10m) or a number of images (3000); more goes on from where less ended",
    )
    parser.add_argument("--suite", choices=SUITES, default="both", help="what is to be drawn well (default both)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the folder that is written, or gone on with")
    parser.add_argument("--save", action="store_true", help="put the presets into the model's folder")
    parser.add_argument("--device", help="cuda, cpu, ...")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """0 with the page's path, 1 with one line on stderr, or 130 when interrupted."""
    options = parsed(argv)
    logging.disable_progress_bar()  # of reading weights
    try:
        found = tune(options.model, options.out, options.suite, budget_of(options.budget), options.save, options.device)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    print(found.as_text())
    print(options.out / PAGE)
    return 0
