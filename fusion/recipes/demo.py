"""The demo: pretrains a small LLM and a codec, teaches it to draw, edit and read images, scores it, reports.

Usage: `python -m train.demo [key=value ...]`
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch
from transformers.utils import logging

from fusion.common.config import ConfigError, load, load_config
from fusion.data.curriculum import HELD_OUT_SEED, TRAINING_SEED, Curriculum, Stage, Texts
from fusion.data.formats import Chat, Mixture, WorldSource
from fusion.data.loader import Loader
from fusion.data.packing import PackedBatches, Packing, fixed_batches
from fusion.data.replay import replayed
from fusion.evaluation import scorecard
from fusion.evaluation.overlap import first_documents, seen_in
from fusion.evaluation.scorecard import Scorecard
from fusion.evaluation.subjects import Unified
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import Drawing, counts_of
from fusion.generation import api
from fusion.generation.api import Fusion
from fusion.generation.sampling import Sampling
from fusion.recipes import demo_report as showcase
from fusion.recipes.codec import CodecRun
from fusion.recipes.codec import train as train_codec
from fusion.recipes.llm import Corpus, Pretraining, PretrainingError, pretrain, read_corpus
from fusion.recipes.unified import Model, build, first_samples
from fusion.training import checkpoint, program, report
from fusion.training.checkpoint import steps
from fusion.training.learner import UnifiedLearner
from fusion.training.metrics import read
from fusion.training.perplexity import Kept, kept
from fusion.training.processes import INTERRUPTED, run_ranks
from fusion.training.samples import ImageSampling, Sampler, Samples, ask, from_samples
from fusion.training.trainer import STATE, NotFinite, Summary, Trainer, Training
from fusion.unified.objective import Objective
from fusion.worlds.shapes import TASKS, Options, World

CODEC = Path("codec", "config.json")
"""In the folder of a codec's run: what is written last."""
REPLAY = "replay.jsonl"
"""In the demo's folder: answers of a given language model."""


@dataclass
class WorldConfig:
    """What is learned, in stages: see fusion.data.curriculum."""

    stages: list[Stage] = field(default_factory=lambda: [Stage(text=0.1)])


@dataclass
class Scoring(ImageSampling):
    """How the finished model is scored and shown. count: prompts; split: scored, or development while anything is being
    chosen.

    texts: held-out texts whose perplexity is compared. image_guidance: see fusion.generation.sampling.Sampling.
    targets: by name of fusion.evaluation.scorecard.FIGURES, and text_rise, the largest share by which the perplexity
    may rise.
    """

    count: int = 200
    split: str = "scored"
    texts: int = 160
    image_guidance: float = Sampling.image_guidance
    targets: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: choose one of {', '.join(SPLITS)}")


@dataclass
class Demo:
    """The demo: the folder it writes; how many documents it trains on, and the minutes after which it stops doing so,
    those of the language model and the codec included; and the settings of its parts. codec: null where `model.codec`
    is not made here. processes: that learn to draw together on CPUs, each with packing.rows of its own; on a GPU one
    does it all. held_out: documents of each task for validation.
    """

    out: str = "out/demo"
    documents: int = 100_000
    minutes: float = 15.0
    processes: int = 1
    llm: Pretraining = field(default_factory=lambda: Pretraining(out="${out}/llm"))
    codec: CodecRun | None = None
    model: Model = field(default_factory=lambda: Model(llm="${out}/llm", max_side=64, max_patches=64))
    world: WorldConfig = field(default_factory=WorldConfig)
    packing: Packing = field(default_factory=Packing)
    objective: Objective = field(default_factory=Objective)
    training: Training = field(default_factory=lambda: Training(documents="${documents}", minutes="${minutes}"))
    held_out: int = 16
    samples: Samples = field(default_factory=Samples)
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def given(self) -> bool:
        """Whether the language model is one that is there already, and none is pretrained."""
        return self.model.llm != self.llm.out


class Failed(RuntimeError):
    """Learning to draw failed in one of its processes, which has said why; one line."""


@dataclass(frozen=True)
class Outcome:
    """What came of the demo."""

    card: Scorecard
    kept: Kept
    model: Path
    report: Path


def demo(config: Demo) -> Summary | Outcome:
    """The whole program; a Summary if it was interrupted while learning to draw. Raises ValueError, PretrainingError
    and NotFinite."""
    out = Path(config.out)
    begin(config, out)
    language_model(config)
    if stopped := autoencoder(config):
        return Summary(0, 0, 0.0, stopped)
    corpus = read_corpus(config.llm.data, config.llm.seed)
    summary = learn(config, corpus) if torch.cuda.is_available() or config.processes == 1 else learn_together(config)
    if summary.interrupted:
        return summary
    device = "cuda" if torch.cuda.is_available() else None
    return show(config, api.load(out / "model", dtype=torch.float32, device=device), corpus)


# ---- beginning, and going on ----


def begin(config: Demo, out: Path) -> None:
    """Go on with what the folder holds if it was made with the same settings; otherwise move that aside and begin."""
    before = earlier(out)
    if before is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} holds something that is not a demo of this version: give another folder, out=FOLDER")
    if before and learns_alike(before, config):
        saved = steps(out / "checkpoints")
        print(f"{out}: goes on with the demo there" + (f", from step {saved[-1]}" if saved else ""))
    elif before:
        aside = next(path for number in count(1) if not (path := Path(f"{out}-{number}")).exists())
        out.rename(aside)
        print(f"{out}: begins anew, for the demo there has other settings; it is in {aside} now")
        for part, file in (("llm", "config.json"), ("codec", CODEC)):
            if getattr(before, part) == getattr(config, part) and (aside / part / file).is_file():
                shutil.copytree(aside / part, out / part)
        if before.model.llm == config.model.llm and (aside / REPLAY).is_file():
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(aside / REPLAY, out / REPLAY)
    program.describe(out, config, "train.demo", "Demo: a language model learns to draw")


def earlier(out: Path) -> Demo | None:
    """The settings of the demo that the folder holds, if it holds one."""
    try:
        return load_config(Demo, out / "config.yaml")
    except ConfigError:
        return None


def learns_alike(one: Demo, other: Demo) -> bool:
    """Whether two demos train alike; how the outcome is scored may differ."""
    return replace(one, scoring=other.scoring) == other


# ---- learning ----


def language_model(config: Demo) -> None:
    """Pretrain the LLM, or keep the one that is there; of a given one, ask for what is replayed."""
    if config.given:
        held = replayed(config.model.llm, Path(config.out, REPLAY))
        print(f"{config.model.llm}: {len(held)} of its own answers are replayed")
        return
    out = Path(config.llm.out)
    if (out / "config.json").is_file():
        print(f"{out}: the language model is there")
    else:
        pretrain(replace(config.llm, seconds=min(config.llm.seconds, 60 * config.minutes)))
    last = read(out / "metrics.jsonl")[-1]
    times = last["unigram_perplexity"] / last["perplexity"]
    print(
        f"held-out perplexity {last['perplexity']:.2f}, {times:.1f} times below the {last['unigram_perplexity']:.1f} "
        "of single words"
    )


def autoencoder(config: Demo) -> str | None:
    """Train the codec, or keep the one that is there; the signal that came in between, if one did."""
    if config.codec is None:
        return None
    out = Path(config.codec.out)
    if (out / CODEC).is_file():
        print(f"{out}: the codec is there")
    else:
        left = max(config.minutes - minutes_of(config.llm.out), 1e-6)
        result = train_codec(replace(config.codec, minutes=min(config.codec.minutes or left, left)))
        if result.interrupted:
            shutil.rmtree(out)  # of a codec half trained nothing is gone on with
            return result.interrupted
    print(f"PSNR of held-out images through the codec {read(out / 'metrics.jsonl')[-1]['val/psnr']:.1f} dB")
    return None


def minutes_of(folder: str) -> float:
    """That the run in a folder took; none where there was no run."""
    if not Path(folder, "metrics.jsonl").is_file():
        return 0.0
    return read(Path(folder, "metrics.jsonl"))[-1]["time"] / 60


def learn(config: Demo, corpus: Corpus, rank: int = 0, world: int = 1) -> Summary:
    """Teach it to draw, alone or as one of several ranks, and save the model."""
    model = build(config.model)
    summary = trainer_for(config, model, corpus, rank, world).fit()
    if rank == 0 and not summary.interrupted:
        model.save_pretrained(Path(config.out, "model"))
    return summary


def learn_together(config: Demo) -> Summary:
    """`learn` in several processes. Raises Failed when one of them did."""
    status = run_ranks(config.processes, "fusion.recipes.demo_worker", [str(Path(config.out, "config.yaml"))])
    if status not in (0, INTERRUPTED):
        raise Failed(f"learning to draw ended with status {status}; the same command goes on from its last checkpoint")
    last = checkpoint.newest(Path(config.out, "checkpoints"))
    state = json.loads((last / STATE).read_text(encoding="utf-8"))
    return Summary(state["step"], state["seen"], state["seconds"], "a signal" if status else None)


def trainer_for(config: Demo, model: Fusion, corpus: Corpus, rank: int = 0, world: int = 1) -> Trainer:
    """The trainer on the mixed world and plain text, for the documents and in the time that are left."""
    seed = config.training.seed
    curriculum = curriculum_of(config, corpus)
    open_samples = partial(_mixture, curriculum, seed)  # a partial of a function, for the workers get it by pickling
    batches = PackedBatches(open_samples, model.processor, config.packing, seed, rank, world)
    held_out, groups = watched(config, model, corpus)
    spent = minutes_of(config.llm.out) + (minutes_of(config.codec.out) if config.codec else 0.0)
    settings = replace(config.training, minutes=max(config.training.minutes - spent, 1e-6))
    sampler = Sampler(model, groups, config.samples)
    loader = Loader(batches, config.training.workers)
    return Trainer(
        UnifiedLearner(model), loader, config.objective, settings, config.out, held_out, sampler, resume=True
    )


def curriculum_of(config: Demo, corpus: Corpus) -> Curriculum:
    """The documents that are trained on, by number; beside a given language model its own answers are replayed."""
    texts: Texts | Chat = Texts(corpus.train)
    if config.given:
        texts = replayed(config.model.llm, Path(config.out, REPLAY))
    return Curriculum(config.world.stages, TRAINING_SEED, texts, documents=config.documents)


def _mixture(curriculum: Curriculum, seed: int, shard: int, shards: int) -> Mixture:
    return Mixture([curriculum], [1.0], seed, shard, shards)


def watched(config: Demo, model: Fusion, corpus: Corpus) -> tuple[dict, dict]:
    """Held-out batches by task of any stage, whose losses are followed, and groups of prompts, whose answers are."""
    held_out, groups = {}, {"prompts": [ask(text) for text in config.samples.prompts]}
    drawn = {task for stage in config.world.stages for task, weight in stage.world.options.tasks.items() if weight > 0}
    for task in filter(drawn.__contains__, TASKS):
        samples = first_samples(WorldSource(World(Options(tasks={task: 1.0})), HELD_OUT_SEED, task), config.held_out)
        held_out[task] = fixed_batches(samples, model.processor, config.packing)
        groups[task] = from_samples(samples[: config.samples.held_out])
    held_out["text"] = fixed_batches(
        first_samples(Texts(corpus.held_out), config.held_out), model.processor, config.packing
    )
    return held_out, groups


# ---- showing ----


def show(config: Demo, model: Fusion, corpus: Corpus) -> Outcome:
    """Score the model, let it draw, edit, describe and tell, and write the report."""
    out, scoring = Path(config.out), config.scoring
    card = score(scoring, model, progress=True)
    card = replace(card, seen=seen_prompts(config, corpus, [row.asked for row, _ in card.answers[Drawing.name]]))
    card.save(out / "scores")
    text = kept(config.model.llm, out / "model", corpus.held_out[: scoring.texts])
    trained = Path(config.codec.out) if config.codec else None
    extra = showcase.sections(model, card, text, scoring.targets, scoring.params, out / "model", trained)
    return Outcome(card, text, out / "model", report.write(out, extra))


def score(scoring: Scoring, model: Fusion, progress: bool = False) -> Scorecard:
    """Ask the model for images, edits, answers and whether to draw."""
    counts, seed = counts_of(scoring.count), SPLITS[scoring.split]
    return scorecard.score(Unified(model, scoring.params), counts, seed, progress)


def seen_prompts(config: Demo, corpus: Corpus, prompts: Sequence[str]) -> frozenset[str] | None:
    """Which prompts occur verbatim in what the run trained on: the language model's texts, and the world's documents.

    These are drawn again, half a millisecond each, and with them the few that waited for a row when the run ended. None
    for a run that goes on from another model, whose documents are not known.
    """
    if config.model.start:
        return None
    texts, curriculum = Texts(corpus.train), curriculum_of(config, corpus)
    drawn = read(Path(config.out, "metrics.jsonl"))[-1]["seen"] + config.processes * config.packing.lookahead
    pages = (texts.sample(number, None) for number in range(len(texts)))
    return seen_in(prompts, chain(pages, first_documents(curriculum, drawn)))


def summary_of(outcome: Outcome, config: Demo) -> str:
    """What a person at the terminal wants to know."""
    lines = []
    chance = {outcome.card.figures[name].name: level for name, level in outcome.card.chance.items()}
    for figure in outcome.card.with_targets(config.scoring.targets):
        verdict = "met" if figure.target is None or figure.value >= figure.target else "missed"
        target = "" if figure.target is None else f"   target {figure.target:.2f} {verdict}"
        guessed = f"   chance {chance[figure.name]:.2f}" if figure.name in chance else ""
        lines.append(f"{figure.name:<44} {figure.value:.2f}{target}{guessed}")
    text = outcome.kept
    lines.append(f"{'text perplexity':<44} {text.before:.2f} -> {text.after:.2f} ({text.rise:+.1%})")
    last = read(Path(config.out, "metrics.jsonl"))[-1]
    lines.append(f"{last['seen']:,} documents in {last['time'] / 60:.1f} minutes")
    return "\n".join([*lines, f"model   {outcome.model}", f"report  {outcome.report}"])


def main(argv: Sequence[str]) -> int:
    """`python -m train.demo CONFIG.yaml [key=value ...]`: 0 at the end, 1 with one line where it cannot go on, 130 when
    interrupted."""
    config = load(Demo, argv)
    logging.disable_progress_bar()
    try:
        outcome = demo(config)
    except (ValueError, PretrainingError, NotFinite, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on with what {config.out} holds", file=sys.stderr)
        return 130
    if isinstance(outcome, Summary):
        print(f"stopped by {outcome.interrupted} at step {outcome.steps}; the same command goes on from there")
        return 130
    print(summary_of(outcome, config))
    return 0
