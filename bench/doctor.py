"""Test whether the doctor finds injected faults in training runs, and none in healthy runs.

Usage: `python -m bench.doctor OUT [NAME ...] [--seed N]`

Every run starts from the bundled model and trains on the built-in world for a minute or less on one thread, each with
data (or hyperparameters) that are spoiled in one way. The doctor sees only the run's folder, with clean held-out
documents.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers.utils import logging

import fusion
from bench.spoiled_data import (
    Spoil,
    Spoiled,
    always_alike,
    as_it_is,
    in_words,
    misheard,
    softened,
    unchanged,
    write_folder,
)
from fusion.common.config import load_config
from fusion.data.curriculum import Stage
from fusion.data.formats import Mixture, SourceConfig
from fusion.data.formats.config import DataConfig
from fusion.data.loader import Loader
from fusion.data.packing import PackedBatches, Packing
from fusion.doctor.doctor import COUNT, diagnose
from fusion.doctor.finding import UNCLEAR, Finding
from fusion.recipes.unified import Model, Unified, Validation, build, trainer_for
from fusion.training import program
from fusion.training.optim import Optim
from fusion.training.probe_and_trackers import Forgetting, Probe
from fusion.training.samples import Samples
from fusion.training.trainer import Training
from fusion.unified.objective import Objective

VALIDATIONS = 16  # per run, approximately
TASKS = {"text_to_image": 0.45, "edits": 0.35, "chat": 0.2}


# ---- the runs ----


@dataclass(frozen=True)
class Case:
    """A training run and its fault (`illness`; None for a healthy run).

    spoil, share: how documents are spoiled, and the share of documents that are. scrambled: also scramble the prose
    among them. rate: a factor on the learning rate. stop: the share of the run after which it is stopped. fresh: start
    from a language model that was never trained to draw. leaks: the share of a folder's images that are duplicated.
    guidance: the guidance scale of samples. tuned: whether statistics and limits of the doctor were chosen while
    looking at this run.
    """

    name: str
    illness: str | None
    spoil: Spoil = as_it_is
    share: float = 1.0
    scrambled: bool = False
    documents: int = 400
    rate: float = 1.0
    stop: float = 1.0
    fresh: bool = False
    leaks: float | None = None
    guidance: float = 3.0
    tuned: bool = True


CASES = [
    Case("healthy", None, documents=300),
    Case("deaf-all", "not conditioned on text", misheard, documents=2200, rate=2.0),
    Case("copies-all", "copying the source", unchanged),
    Case("copies-most", "copying the source", unchanged, share=0.8, documents=900),
    Case("collapsed-all", "collapsed diversity", always_alike, documents=700),
    Case("guided-7", "over-guided", documents=60, guidance=7.0),
    Case("guided-12", "over-guided", documents=60, guidance=12.0),
    Case("guided-20", "over-guided", documents=60, guidance=20.0),
    Case("blurred-1.5", "blurred", partial(softened, radius=1.5), documents=1500),
    Case("blurred-1", "blurred", partial(softened, radius=1.0), documents=1500),
    Case("forgot-all", "forgetting", scrambled=True, documents=300),
    Case("silent-most", "never draws when asked", in_words, share=0.8, documents=200),
    Case("leaks-half", "leaking validation subjects", documents=60, leaks=0.5),
    Case("stopped-early", "undertrained", documents=40000, stop=0.015, fresh=True),
    Case("guided-9", "over-guided", documents=60, guidance=9.0, tuned=False),
    Case("guided-16", "over-guided", documents=60, guidance=16.0, tuned=False),
    Case("leaks-few", "leaking validation subjects", documents=60, leaks=0.05, tuned=False),
    Case("silent-some", "never draws when asked", in_words, share=0.65, documents=200, tuned=False),
    Case("forgot-half", "forgetting", scrambled=True, share=0.5, documents=300, tuned=False),
    Case("blurred-0.8", "blurred", partial(softened, radius=0.8), documents=1500, tuned=False),
    Case("blurred-2", "blurred", partial(softened, radius=2.0), documents=1500, tuned=False),
    Case("copies-half", "copying the source", unchanged, share=0.5, documents=900, tuned=False),
    Case("copies-some", "copying the source", unchanged, share=0.65, documents=900, tuned=False),
    Case("stopped-later", "undertrained", documents=40000, stop=0.03, fresh=True, tuned=False),
    Case("healthy-again", None, documents=400, rate=0.5, tuned=False),
    Case("collapsed-most", "collapsed diversity", always_alike, share=0.9, documents=700, tuned=False),
    Case("deaf-most", "not conditioned on text", misheard, share=0.95, documents=2200, rate=2.0, tuned=False),
]


def config_of(case: Case, run: Path, llm: Path, seed: int = 0) -> Unified:
    """Return the training config of a case. run: its folder. llm: the folder of its language model."""
    between, leaks = max(1, round(case.documents * case.stop / 20 / VALIDATIONS)), case.leaks is not None
    sources = [SourceConfig("images", prompts=["{text}"], describe=0.0)] if leaks else []
    return Unified(
        run=str(run),
        model=Model(
            llm=str(llm),
            patch_size=16,
            positions="axial+sincos",
            time="added",
            embed="linear",
            head="conv+reference",
            max_side=64,
        ),
        stages=[] if leaks else [Stage(tasks=TASKS, sizes={"32x32": 1.0})],
        data=DataConfig(path=str(run / "data"), held_out=0.25, sources=sources),
        packing=Packing(length=384, short=128, rows=2, lookahead=64, noised_copies=4),
        objective=Objective(mean=1.2, std=1.2, clamp=0.2),
        training=Training(
            seed=seed,
            documents=case.documents,
            ema=0.9,
            workers=0,
            precision="fp32",
            log_every=5,
            validate_every=between,
            sample_every=0,
            save_every=0,
            trackers=[],
            optim=Optim(optimizer="muon", lr=1.5e-3 * case.rate, matrix_lr=4e-3 * case.rate, warmup=5),
        ),
        validation=Validation(16),
        probe=Probe(count=32),
        samples=Samples(steps=10, guidance=case.guidance),
    )


def make(case: Case, run: Path, llm: Path, seed: int = 0) -> None:
    """Train the run of a case and leave its folder."""
    run.mkdir(parents=True)
    if case.leaks is not None:
        write_folder(run / "data", case.leaks, seed)
    config = config_of(case, run, llm, seed)
    torch.manual_seed(seed)
    model = build(config.model) if case.fresh else fusion.load("shapes", dtype=torch.float32)
    model.model.set_attention("matmul")
    program.describe(run, config, "bench.doctor")
    trainer = trainer_for(config, model, follow=Ending(Forgetting(str(llm), config.probe), run, case))
    if case.leaks is None:
        spoiled = Spoiled(config.stages[0].world, case.spoil, case.share, case.scrambled, seed)
        trainer.loader = Loader(
            PackedBatches(partial(_mixture, spoiled, seed), model.processor, config.packing, seed), 0
        )
    if not trainer.fit().interrupted:
        model.save_pretrained(run / "model")


def _mixture(source: Spoiled, seed: int, shard: int, shards: int) -> Mixture:
    return Mixture([source], [1.0], seed, shard, shards)


class Ending:
    """The forgetting probe of a run, which also requests the run's stop where the case says so."""

    def __init__(self, probe: Forgetting, run: Path, case: Case):
        self.probe, self.run, self.left = probe, run, VALIDATIONS if case.stop < 1 else 2**30

    def __call__(self, model) -> dict[str, float]:
        self.left -= 1
        if self.left <= 0:
            (self.run / "stop").touch()
        return self.probe(model)


# ---- the program ----


@dataclass(frozen=True)
class Outcome:
    """The doctor's findings on a case. seconds: taken to train the run, and to diagnose it."""

    case: Case
    findings: list[Finding]
    seconds: tuple[float, float]

    @property
    def named(self) -> list[str]:
        """The illnesses found that are no consequence of others."""
        return [finding.illness for finding in self.findings if finding.ill and finding.follows is None]

    @property
    def right(self) -> bool:
        """True if exactly the case's own illness was named; further illnesses that follow from it are no error."""
        return self.named == ([self.case.illness] if self.case.illness else [])

    def line(self) -> str:
        """Format the outcome as one line for a terminal."""
        shown = {finding.illness: finding for finding in self.findings}
        figure = shown[self.case.illness].measured if self.case.illness else None
        value, tuned = f"{figure.value:.3g}" if figure else "-", "" if self.case.tuned else "new"
        said = ", ".join(f"{name} ({shown[name].verdict})" for name in self.named) or "nothing"
        made, seen = self.seconds
        return (
            f"{'right' if self.right else 'WRONG':<6}{self.case.name:<15}{tuned:<4}{value:>7}  {said:<44} {made:4.0f} "
            f"s {seen:4.0f} s"
        )


def show(case: Case, out: Path, llm: Path, seed: int = 0) -> Outcome:
    """Train a run unless it exists, and diagnose it; where a verdict is unclear, with twice as many held-out documents.

    Raises ValueError for a run that was made with another seed.
    """
    run, start = out / case.name, time.monotonic()
    if (run / "doctor.json").is_file():
        if (made := load_config(Unified, run / "config.yaml").training.seed) != seed:
            raise ValueError(f"{run} was made with seed {made}: give another folder for seed {seed}")
    else:
        shutil.rmtree(run, ignore_errors=True)
        make(case, run, llm, seed)
    made = time.monotonic()
    findings = diagnose(run)
    if any(finding.verdict == UNCLEAR for finding in findings):
        findings = diagnose(run, count=2 * COUNT)
    return Outcome(case, findings, (made - start, time.monotonic() - made))


def base_llm(out: Path) -> Path:
    """Export the language model of the bundled model to `out`, unless it is there, and return its folder.

    All runs record it as their base model.
    """
    if not (out / "llm" / "config.json").is_file():
        fusion.load("shapes", dtype=torch.float32).export_llm(out / "llm")
    return out / "llm"


def main(argv: Sequence[str]) -> int:
    """Run the cases; return 0 if every one was judged correctly, 1 if not, 2 after an error."""
    parser = argparse.ArgumentParser("python -m bench.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder for the runs; those that are there are not made again")
    parser.add_argument("names", nargs="*", default=[""], metavar="NAME", help="only runs whose names begin so")
    parser.add_argument("--seed", type=int, default=0, help="of their training and their data")
    options = parser.parse_args(argv)
    logging.disable_progress_bar()
    llm = base_llm(options.out)
    outcomes = []
    for case in (case for case in CASES if case.name.startswith(tuple(options.names))):
        try:
            outcomes.append(show(case, options.out, llm, options.seed))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(outcomes[-1].line(), flush=True)
    right = sum(outcome.right for outcome in outcomes)
    print(f"{right} of {len(outcomes)} right")
    return 0 if right == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
