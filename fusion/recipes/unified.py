"""Fine-tunes an LLM into a model of text and images.

Usage: `accelerate launch -m train.unified configs/unified.yaml key=value ...`
"""

from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from fusion.codecs.codec import LatentCache
from fusion.common.checked import about, checked
from fusion.common.html import Section
from fusion.data.curriculum import Stage, open_data
from fusion.data.formats import Mixture, Sample, Source, WorldSource
from fusion.data.formats.config import DataConfig
from fusion.data.loader import Loader
from fusion.data.packing import PackedBatches, Packing, fixed_batches
from fusion.evaluation import emoji
from fusion.generation import api
from fusion.generation.api import Fusion
from fusion.sequence.processor import FusionProcessor
from fusion.training import program, report
from fusion.training.learner import UnifiedLearner
from fusion.training.optim import hidden_matrices
from fusion.training.probe_and_trackers import Forgetting, Probe
from fusion.training.processes import this_rank
from fusion.training.samples import Sampler, Samples, ask, from_samples
from fusion.training.trainer import Summary, Trainer, Training
from fusion.unified.objective import Objective
from fusion.unified.settings import Lora, ModelSettings, check_lora
from fusion.worlds.shapes import World

# Each a function of the model, the run's data config and sampling parameters of generation; what it returns becomes
# part of the report.
EVALUATIONS = {"emoji": emoji.sections}


@checked
class Model(ModelSettings):
    """The model that is trained: settings of fusion.from_llm, and what is done with it. Raises SettingError.

    With `start`, of the settings only attention, lora and latents are looked at, and llm as the one that the model came
    from. shrink is for LLMs whose weights keep them from learning what is new (Ash and Adams, arXiv 1910.08475); the
    demo's tiny one tells colours apart with 0.3 (docs/log.md), larger ones were not tried.
    """

    llm: str = field(default="???", metadata=about("folder or hub id of a decoder LLM"))
    start: str | None = field(default=None, metadata=about("folder of a saved model to go on from; None takes the LLM"))
    codec: str = field(default="pixel", metadata=about("pixel, no VAE; or folder or hub id of a diffusers autoencoder"))
    attention: Literal["auto", "sdpa", "eager", "matmul", "flex_attention"] = field(
        default="auto", metadata=about("of the decoder; auto is what is fast on the device")
    )
    shrink: float = field(
        default=1.0, metadata=about("factor on the LLM's hidden matrices before training begins", above=0, most=1)
    )
    lora: Lora | None = field(default=None, metadata=about("adapters of the LLM, which is frozen but for them"))
    latents: str | None = field(
        default=None, metadata=about("folder that keeps latents of training images; None encodes at every step")
    )

    def __post_init__(self):
        super().__post_init__()
        if self.lora and not self.start:
            check_lora(vars(self.lora), self.mode)


@dataclass
class Validation:
    """Held-out documents per source whose losses are followed."""

    documents: int = 64


@dataclass
class Unified:
    """A run: the folder it writes, model, data, how documents are packed, losses, training, validation, the forgetting
    probe and samples.

    resume: go on from the newest complete checkpoint in `run`. world: weight of the built-in world's documents in the
    mixture, beside those of the sources. stages: the built-in world alone, instead of `data.sources`, see
    fusion.data.curriculum. evaluation: what is tried at the end and shown in the report, by its name in EVALUATIONS.
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
    params = {name: getattr(config.samples, name) for name in emoji.SAMPLING_PARAMETERS}
    return EVALUATIONS[config.evaluation](model, config.data, params)


def build(settings: Model) -> Fusion:
    """The extended LLM, or the model to go on from, in fp32."""
    model = api.load(settings.start, dtype=torch.float32) if settings.start else _extended(settings)
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
    model = api.from_llm(settings.llm, settings.codec, dtype=torch.float32, **settings.part(ModelSettings))
    if settings.shrink != 1:
        pretrained = [part for part in (model.model.llm, model.model.twins) if part is not None]
        torch._foreach_mul_([p.data for part in pretrained for p in hidden_matrices(part)], settings.shrink)
    return model


def trainer_for(
    config: Unified, model: Fusion, rank: int = 0, world: int = 1, follow: Callable | None = None
) -> Trainer:
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
    return Trainer(
        learner, loader, config.objective, config.training, config.run, held_out, sampler, config.resume, follow
    )


def batches(config: Unified, processor: FusionProcessor, rank: int = 0, world: int = 1) -> PackedBatches:
    """The stream that a config trains on."""
    seed = config.training.seed
    sources, weights = open_data(
        config.data, config.stages, "train", processor.stride
    )  # read once here, shared by the workers
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
    """The program; see fusion.training.program.main."""
    return program.main(Unified, train, "documents", argv)
