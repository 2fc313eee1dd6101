"""Fine-tunes an LLM into a model of text and images: `accelerate launch -m train.unified configs/unified.yaml key=value ...`"""

import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

import fusion
from eval import emoji, report
from fusion.api import Fusion
from fusion.codec import LatentCache
from fusion.data.batches import PackedBatches, Packing, fixed_batches
from fusion.data.loader import Loader
from fusion.data.shapes import World
from fusion.data.sources import Mixture, Sample, Source, WorldSource
from fusion.data.sources.config import DataConfig
from fusion.lora import Lora
from fusion.modality import PARTS
from fusion.objective import Objective
from fusion.page import Section
from fusion.processor import FusionProcessor
from train import program
from train.curriculum import Stage, open_data
from train.follow import Forgetting, Probe
from train.learner import UnifiedLearner
from train.loop import Summary, Trainer, Training
from train.optim import hidden_matrices
from train.ranks import this_rank
from train.samples import Sampler, Samples, ask, from_samples

# Each a function of the model, the run's data config and knobs of generation; what it returns becomes part of the report.
EVALUATIONS = {"emoji": emoji.sections}


@dataclass
class Model:
    """The model that is trained: arguments of fusion.from_llm. attention: of the decoder, auto takes what is fast on the device.

    start: the folder of a saved model to go on from; of the settings only attention, lora and latents are then looked at, and llm as the one
    that it came from. null to begin with the LLM.
    shrink: factor on the LLM's hidden matrices before training begins, for LLMs whose weights keep them from learning what is new (Ash and
    Adams, arXiv 1910.08475); the demo's tiny one tells colours apart with 0.3 (docs/log.md), larger ones were not tried.
    lora: adapters of the LLM, which is frozen but for them (fusion.lora), as {rank: 8, alpha: 16, targets: linear}; null for none.
    latents: a folder in which the latents of training images are kept, so that each is encoded once; None encodes at every step.
    """

    llm: str = "???"
    start: str | None = None
    codec: str = "pixel"
    patch_size: int = 8
    time: str = "adaln"
    positions: str = "axial"
    target: str | None = None
    embed: str | None = None
    head: str | None = None
    path: str = "linear"
    mode: str = "shared"
    split: list[str] = field(default_factory=lambda: list(PARTS))
    image_width: int | None = None
    deep: str = "kv"
    max_side: int = 1024
    max_patches: int = 4096
    attention: str = "auto"
    shrink: float = 1.0
    lora: Lora | None = None
    latents: str | None = None

    def __post_init__(self):
        if not 0 < self.shrink <= 1:
            raise ValueError(f"shrink={self.shrink}: a factor above 0, and at most 1, which leaves the LLM as it is")


@dataclass
class Validation:
    """Held-out documents per source whose losses are followed."""

    documents: int = 64


@dataclass
class Unified:
    """A run: the folder it writes, model, data, how documents are packed, losses, training, validation, the forgetting probe and samples.

    resume: go on from the newest complete checkpoint in `run`. world: weight of the built-in world's documents in the mixture, beside
    those of the sources. stages: the built-in world alone, instead of `data.sources`, see train.curriculum. evaluation: what is tried at
    the end and shown in the report, by its name in EVALUATIONS.
    """

    run: str = "out/unified"
    resume: bool = False
    world: float = 0.0
    evaluation: str | None = None
    model: Model = field(default_factory=Model)
    data: DataConfig = field(default_factory=DataConfig)
    stages: list[Stage] = field(default_factory=list)
    packing: Packing = field(default_factory=Packing)
    objective: Objective = field(default_factory=Objective)
    training: Training = field(default_factory=Training)
    validation: Validation = field(default_factory=Validation)
    probe: Probe = field(default_factory=Probe)
    samples: Samples = field(default_factory=Samples)

    def __post_init__(self):
        if self.evaluation is not None and self.evaluation not in EVALUATIONS:
            raise ValueError(f"evaluation={self.evaluation!r}: choose one of {', '.join(EVALUATIONS)}, or null")
        if self.world < 0:
            raise ValueError(f"world={self.world}: the weight of the built-in world is at least 0")


def train(config: Unified) -> Summary:
    """The whole run: train, save RUN/model, write RUN/report.html. Raises ValueError and NotFinite, each one line."""
    run, ranks = Path(config.run), this_rank()
    program.refuse_another(run, config.resume)
    model = build(config.model)
    forgetting = Forgetting(config.model.llm, config.probe) if config.probe.count and ranks.is_main_process else None
    if ranks.is_main_process:
        program.describe(run, config, "train.unified")
    trainer = trainer_for(config, model, ranks.process_index, ranks.num_processes, forgetting)
    summary = trainer.fit()
    if ranks.is_main_process and not summary.interrupted:
        trainer.learner.save_pretrained(run / "model")
        report.write(run, evaluate(config, model))
    return summary


def evaluate(config: Unified, model: Fusion) -> list[Section]:
    """The sections that the run's own evaluation adds to its report."""
    if config.evaluation is None:
        return []
    knobs = {name: getattr(config.samples, name) for name in emoji.KNOBS}
    return EVALUATIONS[config.evaluation](model, config.data, knobs)


def build(settings: Model) -> Fusion:
    """The extended LLM, or the model to go on from, in fp32."""
    model = fusion.load(settings.start, dtype=torch.float32) if settings.start else _extended(settings)
    if settings.lora:
        model.add_lora(**vars(settings.lora))
    if settings.latents:
        model.codec = LatentCache(settings.latents, model.codec)
    model.model.set_attention(attention_here(settings.attention))
    return model


def attention_here(kind: str) -> str:
    """The attention of a config on this machine."""
    # Short rows on CPUs: SDPA's backward is several times slower than two matrix products.
    fast = "sdpa" if torch.cuda.is_available() else "matmul"
    return fast if kind == "auto" else kind


def _extended(settings: Model) -> Fusion:
    names = (
        "codec", "patch_size", "time", "positions", "target", "path", "embed", "head", "mode", "split", "image_width", "deep",
        "max_side", "max_patches",
    )  # fmt: skip
    model = fusion.from_llm(settings.llm, dtype=torch.float32, **{name: getattr(settings, name) for name in names})
    if settings.shrink != 1:
        pretrained = [part for part in (model.model.llm, model.model.twins) if part is not None]
        torch._foreach_mul_([p.data for part in pretrained for p in hidden_matrices(part)], settings.shrink)
    return model


def trainer_for(config: Unified, model: Fusion, rank: int = 0, world: int = 1, follow: Callable | None = None) -> Trainer:
    """Trainer, stream, validation and sampler of a config. follow: of the model, see Trainer."""
    stride = model.processor.stride
    loader = Loader(batches(config, model.processor, rank, world), config.training.workers)
    held_out, groups = {}, {"prompts": [ask(text) for text in config.samples.prompts]}
    for source in open_data(config.data, config.stages, "validation", stride)[0]:
        samples = first_samples(source, max(config.validation.documents, config.samples.held_out))
        held_out[source.name] = fixed_batches(samples[: config.validation.documents], model.processor, config.packing)
        groups[source.name] = from_samples(samples[: config.samples.held_out])
    sampler = Sampler(model, groups, config.samples)
    learner = UnifiedLearner(model, config.model.llm)
    return Trainer(learner, loader, config.objective, config.training, config.run, held_out, sampler, config.resume, follow)


def batches(config: Unified, processor: FusionProcessor, rank: int = 0, world: int = 1) -> PackedBatches:
    """The stream that a config trains on."""
    seed = config.training.seed
    sources, weights = open_data(config.data, config.stages, "train", processor.stride)  # read once here, shared by the workers
    if config.world:
        sources, weights = [*sources, WorldSource(World(), seed)], [*weights, config.world]

    def open_samples(shard: int, shards: int) -> Mixture:
        return Mixture(sources, weights, seed, shard, shards)

    return PackedBatches(open_samples, processor, config.packing, seed, rank, world)


def first_samples(source: Source, count: int) -> list[Sample]:
    """The same samples of a source at every call: `count`, or all that it has."""
    count = min(count, len(source)) if isinstance(source, Sized) else count
    return list(islice(Mixture([source], seed="held out"), count))


def main(argv: list[str]) -> int:
    """The program; see train.program.main."""
    return program.main(Unified, train, "documents", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
