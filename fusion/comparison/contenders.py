"""Contenders of matched size, each trained with several seeds; one stored record per run, so none runs twice."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from fusion.codecs.codec import load_codec
from fusion.common.atomic import new_file, save
from fusion.diffusion import load_text_to_image
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.experts import evenly
from fusion.diffusion.registry import Sees, matched
from fusion.diffusion.text_encoders import TextEncoders, load_encoder
from fusion.evaluation import scorecard, subjects
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import SIZE, drawing_counts
from fusion.generation import api
from fusion.generation.cost import flops, kept_bytes, parameters
from fusion.generation.sampling import Sampling
from fusion.recipes import diffusion, unified
from fusion.recipes.diffusion import Diffusion, Scoring, TextToImageLearner
from fusion.recipes.unified import Model, Unified
from fusion.training.learner import Learner, UnifiedLearner
from fusion.training.metrics import read
from fusion.training.trainer import Summary

TOKENS = 12  # of a text where operations are matched: about a caption of the built-in world


@dataclass
class Contender:
    """What is compared, and what it is called. architecture: a name of fusion.diffusion.registry, None for the unified
    model; network: its settings but for the width, which is matched. model: settings of the unified model that are
    others than `unified.model` has."""

    name: str
    architecture: str | None = None
    network: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.network if self.architecture is None else self.model:
            raise ValueError(
                f"contender {self.name}: an architecture has a network, and the unified model, which is none, a model"
            )
        if unknown := sorted(set(self.model) - {one.name for one in fields(Model)}):
            raise ValueError(f"contender {self.name}: the unified model has no setting {unknown[0]!r}")

    @property
    def slug(self) -> str:
        """The name as a part of a file's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


@dataclass
class Scored(Scoring):
    """GenEval in miniature of each finished run, with these sampling parameters of whatever draws."""

    count: int = 100
    split: str = "development"
    steps: int = Sampling.steps
    guidance: float = Sampling.guidance

    @property
    def params(self) -> dict:
        """What goes to whatever draws."""
        return {"steps": self.steps, "guidance": self.guidance}


@dataclass
class Comparison:
    """Settings of a comparison.

    out: where runs are trained and the page is written. records: a folder with a JSON per run; runs that it holds, of
    the same settings, are not repeated. match: what is made equal, the number of parameters or the operations of one
    forward pass over an image; target: to what. text_to_image, unified: what all runs of the two programs share; their
    `run` and seed are set here. prompts: drawn for the page, by all from the same noise. pairs: of contenders' names,
    whose differences are shown seed by seed: data, noise and order of a seed are the same for all, so that these say
    more than two intervals.
    """

    out: str = "out/compare"
    records: str = "???"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    match: Literal["parameters", "flops"] = "parameters"
    target: float = 2.5e6
    contenders: list[Contender] = field(default_factory=list)
    text_to_image: Diffusion = field(default_factory=Diffusion)
    unified: Unified = field(default_factory=Unified)
    scored: Scored = field(default_factory=Scored)
    prompts: list[str] = field(default_factory=list)
    pairs: list[list[str]] = field(default_factory=list)
    shard: int = 0
    shards: int = 1

    def __post_init__(self):
        slugs = [one.slug for one in self.contenders]
        if not slugs or len(set(slugs)) < len(slugs) or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a comparison has contenders and seeds, and none of them twice")
        names = [one.name for one in self.contenders]
        if wrong := [pair for pair in self.pairs if len(pair) != 2 or not set(pair) <= set(names)]:
            raise ValueError(
                f"pairs: {wrong[0]} are not two contenders; name two of {', '.join(names)}, or set pairs=[]"
            )
        if not 0 <= self.shard < self.shards:
            raise ValueError(f"shard={self.shard}, shards={self.shards}: give a shard from 0 to {self.shards - 1}")


@dataclass(frozen=True)
class Record:
    """What is known of a finished run.

    settings: a fingerprint of everything it depends on but the code, whose commit stands beside it. parameters: learned
    numbers. forward: operations per image of a forward pass; training: of a step. kept: bytes kept for the backward
    pass per image. seconds: of training. curve: (step, images seen, seconds, validation error of x). scores: those
    of drawing, as fusion.evaluation.scorecard has them.
    """

    contender: str
    seed: int
    settings: str
    commit: str
    device: str
    parameters: int
    forward: float
    training: float
    kept: float
    seconds: float
    seen: int
    steps: int
    curve: list[list[float]]
    scores: dict

    @property
    def x_error(self) -> float:
        """Of held-out images, at the end."""
        return self.curve[-1][-1]

    @property
    def per_image(self) -> float:
        """Seconds of training."""
        return self.seconds / max(self.seen, 1)


# ---- one run ----


def resolve(comparison: Comparison, contender: Contender, seed: int) -> Diffusion | Unified:
    """The config of one run; a text-to-image model's width is the one that matches."""
    run = str(Path(comparison.out, "runs", f"{contender.slug}-{seed}"))
    shared = comparison.unified if contender.architecture is None else comparison.text_to_image
    config = replace(shared, run=run, resume=True, training=replace(shared.training, seed=seed))
    if contender.architecture is None:
        return replace(config, model=type(config.model).of(vars(config.model) | contender.model))
    network = match(comparison, contender)
    return replace(
        config, text_to_image=replace(config.text_to_image, architecture=contender.architecture, network=network)
    )


def match(comparison: Comparison, contender: Contender) -> dict[str, Any]:
    """The contender's settings at the width where it is as large as all others."""
    shared = comparison.text_to_image.text_to_image
    texts, codec = TextEncoders([load_encoder(one) for one in shared.texts]), load_codec(shared.codec)
    sees = Sees(codec.channels, **texts.sees)
    if comparison.match == "parameters":
        return matched(contender.architecture, contender.network, comparison.target, sees)
    width, height = (side // codec.downsample for side in shared.size)

    def operations(network) -> float:
        read = torch.zeros(sees.layers, 1, TOKENS, sees.layer_width) if sees.layers else None
        cond = Conditioning(torch.zeros(1, TOKENS, texts.width), pooled=torch.zeros(1, texts.pooled_width), layers=read)
        with evenly(network):
            return flops(lambda: network(torch.zeros(1, codec.channels, height, width), torch.ones(1), cond))

    return matched(contender.architecture, contender.network, comparison.target, sees, operations)


def fingerprint(config: Diffusion | Unified, scored: Scored) -> str:
    """Of everything that the outcome of a run depends on, the language models' weights included, wherever they lie.
    Settings count where they are not as usual, so that records stay known when the programs learn new ones."""
    settings = {**unusual(config), "run": None, "resume": None, "scored": unusual(scored)}
    settings.pop("probe", None)  # looks on
    texts = [config.model.llm] if isinstance(config, Unified) else [one.path for one in config.text_to_image.texts]
    if isinstance(config, Unified):
        settings["model"].pop("llm", None)
    else:
        settings["text_to_image"]["texts"] = [{**unusual(one), "path": None} for one in config.text_to_image.texts]
    settings["weights"] = [_weights(path) for path in texts]
    return hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def unusual(settings) -> dict[str, Any]:
    """The fields of a dataclass, and of those in it, that are not as they are made."""
    found, made = {}, type(settings)()
    for name, value in vars(settings).items():
        if is_dataclass(value):
            found[name] = unusual(value)
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            found[name] = [unusual(one) for one in value]
        elif value != getattr(made, name):
            found[name] = value
    return found


def _weights(path: str) -> str:
    """A fingerprint of the weights in a folder; the name itself where there is none."""
    files = sorted(Path(path).glob("*.safetensors"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest() if files else path


def perform(comparison: Comparison, contender: Contender, seed: int) -> Record | Summary:
    """Train, measure, score, and keep the record and the sheet of samples; a Summary where a signal stopped it, and the
    next call goes on."""
    config = resolve(comparison, contender, seed)
    program = unified if isinstance(config, Unified) else diffusion
    summary = program.train(config)
    if summary.interrupted:
        return summary
    learner, subject = finished(config, comparison.scored.params)
    counts, split = drawing_counts(comparison.scored.count), SPLITS[comparison.scored.split]
    card = scorecard.score(subject, counts, split, progress=True)
    facts = json.loads(Path(config.run, "run.json").read_text(encoding="utf-8"))
    record = Record(
        contender.name,
        seed,
        fingerprint(config, comparison.scored),
        facts["commit"],
        facts["device"],
        parameters(learner.model, trained=True),
        *costs(config, learner),
        summary.seconds,
        summary.seen,
        summary.steps,
        curve(config),
        card.as_json(),
    )
    prompts = comparison.prompts
    keep(comparison, contender, record, strip(subject.draw(prompts, range(len(prompts)), SIZE)))
    return record


def finished(config: Diffusion | Unified, params: dict) -> tuple[Learner, subjects.Subject]:
    """What came of a run, to be measured and to be asked."""
    folder = Path(config.run, "model")
    if isinstance(config, Diffusion):
        text_to_image = load_text_to_image(folder)
        return TextToImageLearner(text_to_image), subjects.Painted(text_to_image, params)
    model = api.load(folder, dtype=torch.float32)
    return UnifiedLearner(model), subjects.Unified(model, params)


def costs(config: Diffusion | Unified, learner: Learner) -> tuple[float, float, float]:
    """Operations of a forward pass and of a training step, and bytes kept, per image, over one batch of training."""
    program = unified if isinstance(config, Unified) else diffusion
    owner = learner.fusion if isinstance(learner, UnifiedLearner) else learner.text_to_image
    trainer = program.trainer_for(replace(config, run=f"{config.run}/costs"), owner)
    batch = next(trainer.loader)
    trainer.loader.close()
    images = learner.counts(batch).documents

    def forward():
        return learner.losses(batch, config.objective, torch.Generator().manual_seed(0)).total(1, images)

    with torch.no_grad():
        forward()  # frozen encoders read each text once; that is not what is compared
        ahead = flops(forward)
    both = flops(lambda: forward().backward())
    learner.model.zero_grad()
    return ahead / images, both / images, kept_bytes(forward) / images


def curve(config: Diffusion | Unified) -> list[list[float]]:
    """The validation errors of a run's metrics."""
    rows = (row for row in read(Path(config.run, "metrics.jsonl")) if "val/x_error" in row)
    return [[row["step"], row["seen"], round(row["time"], 1), row["val/x_error"]] for row in rows]


def strip(images: list[Image.Image]) -> Image.Image:
    """Images of one size in a row."""
    width, height = images[0].size
    page = Image.new("RGB", (width * len(images), height))
    for place, image in enumerate(images):
        page.paste(image, (place * width, 0))
    return page


# ---- records ----


def keep(comparison: Comparison, contender: Contender, record: Record, samples: Image.Image) -> None:
    """Write the record, and beside it the samples, each whole or not at all; the record last."""
    base = place(comparison, contender, record.seed)
    base.parent.mkdir(parents=True, exist_ok=True)
    with new_file(base.with_suffix(".png")) as aside:
        samples.save(aside, format="PNG")
    save(json.dumps(asdict(record), indent=1) + "\n", base.with_suffix(".json"))


def known(comparison: Comparison, contender: Contender, seed: int) -> Record | None:
    """The record of a run of these settings, if there is one."""
    file = place(comparison, contender, seed).with_suffix(".json")
    if not file.is_file():
        return None
    try:
        record = Record(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{file} is no record of a run: move it away, and the run is repeated") from None
    return record if record.settings == fingerprint(resolve(comparison, contender, seed), comparison.scored) else None


def place(comparison: Comparison, contender: Contender, seed: int) -> Path:
    """Where the record of a run is kept, without its suffix."""
    return Path(comparison.records, f"{contender.slug}-{seed}")
