"""Trains a text-to-image diffusion transformer.

Usage: `accelerate launch -m train.diffusion configs/dit.yaml key=value ...`
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from fusion.common.atomic import save
from fusion.common.html import Section, gallery, paragraph, png
from fusion.common.scores_html import score_table
from fusion.data.curriculum import Stage, open_data
from fusion.data.formats import Mixture
from fusion.data.formats.config import DataConfig
from fusion.data.loader import Loader
from fusion.data.pairs import PairBatch, PairBatches, Pairing, fixed_pairs
from fusion.diffusion.networks.experts import Router, watched
from fusion.diffusion.text_to_image import TextToImage, TextToImageConfig, make_text_to_image
from fusion.evaluation import scorecard
from fusion.evaluation.scorecard import Scorecard
from fusion.evaluation.subjects import Painted
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import LEAST, OVERALL, Drawing, drawing_counts
from fusion.flow.matching import flow_loss, x_error
from fusion.recipes.unified import Validation, first_samples
from fusion.sequence.document import blocks
from fusion.training import program, report
from fusion.training.learner import Learner, compiled
from fusion.training.log import Counts
from fusion.training.processes import this_rank
from fusion.training.samples import ImageSampling, Prompt, ask, from_samples, sheet
from fusion.training.trainer import Summary, Trainer, Training
from fusion.unified.objective import FlowObjective, Losses

SHOWN = 60  # of the scored images, on the page


@dataclass
class TextToImageSamples(ImageSampling):
    """What is drawn at intervals, and how. prompts: texts. held_out: pairs of each source that are drawn again, beside
    the true image. seed: of the first."""

    prompts: list[str] = field(default_factory=list)
    held_out: int = 8
    seed: int = 0


@dataclass
class Scoring:
    """GenEval in miniature of the finished text-to-image model, on the built-in world's prompts. count: prompts, 0 for
    none; split: see fusion.evaluation.suite."""

    count: int = 0
    split: str = "scored"

    def __post_init__(self):
        if self.split not in SPLITS or 0 < self.count < LEAST or self.count < 0:
            rule = f"count is 0 or at least {LEAST}, and split one of {', '.join(SPLITS)}"
            raise ValueError(f"count={self.count}, split={self.split!r}: {rule}")


@dataclass
class Diffusion:
    """A run: the folder it writes, text-to-image model, data, batches, loss, training, validation, samples and scores.

    resume: go on from the newest complete checkpoint in `run`. balance: weight of the loss that keeps experts evenly
    chosen, in networks that have any (fusion.diffusion.networks.experts). stages: the built-in world instead of
    `data.sources`, see fusion.data.curriculum.
    """

    run: str = "out/diffusion"
    resume: bool = False
    text_to_image: TextToImageConfig = field(default_factory=TextToImageConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: list[Stage] = field(default_factory=list)
    pairing: Pairing = field(default_factory=Pairing)
    objective: FlowObjective = field(default_factory=FlowObjective)
    balance: float = 0.01
    training: Training = field(default_factory=Training)
    validation: Validation = field(default_factory=Validation)
    samples: TextToImageSamples = field(default_factory=TextToImageSamples)
    scoring: Scoring = field(default_factory=Scoring)


class TextToImageLearner(Learner):
    """A Text-to-image model that learns from pairs. Text encoders that are not trained along only read."""

    def __init__(self, text_to_image: TextToImage, balance: float = 0.0):
        self.text_to_image, self.balance = text_to_image, balance
        self.model = self.kept = text_to_image

    def to(self, device: torch.device) -> None:
        """Network, text encoders and codec."""
        self.model.to(device=device, dtype=torch.float32)
        self.model.codec.to(device)

    def counts(self, batch: PairBatch) -> Counts:
        """Tokens are patches; nothing is padded."""
        images, _, height, width = batch.pixels.shape
        patches = images * (height // self.text_to_image.stride) * (width // self.text_to_image.stride)
        return Counts(text=0, images=images, documents=images, tokens=patches, padding=0, skipped=len(batch.skipped))

    def losses(self, batch: PairBatch, objective: FlowObjective, generator: torch.Generator) -> Losses:
        """The flow loss of each image."""
        text_to_image, device = self.model, self.model.device
        with torch.no_grad():
            clean = text_to_image.codec.encode(batch.pixels.to(device)).float()
        time = objective.sample_times(len(clean), generator)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        with watched(text_to_image.network) if self.balance else nullcontext() as chosen:
            predicted = text_to_image.network(
                text_to_image.flow_path.mix(clean, noise, time), time, text_to_image.texts(batch.texts)
            )
        rows = (predicted.flatten(1), clean.flatten(1), noise.flatten(1))
        common = (
            time,
            torch.arange(len(clean), device=device),
            len(clean),
            text_to_image.target,
            text_to_image.flow_path,
        )
        with torch.no_grad():
            error = x_error(rows[0].detach(), *rows[1:], *common)
        none, flow = torch.zeros((), device=device), flow_loss(*rows, *common, clamp=objective.clamp).sum()
        if chosen and chosen.shares and torch.is_grad_enabled():
            flow = flow + self.balance * chosen.loss() * len(clean)
        return Losses(
            text=none,
            text_count=0,
            control=none,
            control_count=0,
            flow=flow,
            flow_count=len(clean),
            x_error=error,
            time=time,
            w_text=0.0,
            w_flow=1.0,
        )

    def save_pretrained(self, folder: Path) -> None:
        """A folder for fusion.diffusion.load_text_to_image."""
        self.text_to_image.save_pretrained(folder)

    def units(self) -> list[nn.Module]:
        """The network's blocks. ValueError where text encoders learn along."""
        if any(p.requires_grad for p in self.model.texts.parameters()):
            raise ValueError(
                "training.sharded: text encoders that learn along are not shared out; set trained: false for them, or "
                "sharded: false"
            )
        return [*blocks_of(self.model.network), self.model.network]

    def recomputed(self) -> AbstractContextManager:
        """Each block of the network. ValueError where experts are watched: what they chose would be another thing the
        second time."""
        if any(isinstance(part, Router) for part in self.model.network.modules()):
            raise ValueError("training.recompute: networks with experts keep their activations; set it to false")
        return super().recomputed()

    def compiled(self) -> AbstractContextManager:
        """Each block of the network."""
        return compiled(blocks_of(self.model.network))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """What stands in its lists, and not what stands in lists within those."""
    found = []
    for part in network.children():
        found += part if isinstance(part, nn.ModuleList) else blocks_of(part)
    return found


class Sampler:
    """Writes one sheet per group of prompts into a folder: `sampler(folder)`."""

    def __init__(self, text_to_image: TextToImage, groups: dict[str, list[Prompt]], settings: TextToImageSamples):
        self.text_to_image, self.settings = text_to_image, settings
        self.groups = {name: prompts for name, prompts in groups.items() if prompts}

    def __call__(self, folder: str | Path) -> None:
        """Draw every prompt and write `folder`/<group>.png."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, prompts in self.groups.items():
            texts = ["\n".join(text_of(prompt)) for prompt in prompts]
            images = self.text_to_image.images(texts, self.settings.seed, **self.settings.params)
            save(png(sheet(prompts, [[image] for image in images])), Path(folder, f"{name}.png"))


def text_of(prompt: Prompt) -> list[str]:
    """What the user says."""
    return [block["text"] for message in prompt.messages for block in blocks(message["content"])]


def train(config: Diffusion) -> Summary:
    """The whole run: train, save RUN/model, score it, write RUN/report.html. Raises ValueError and NotFinite, each one
    line."""
    run, ranks = Path(config.run), this_rank()
    program.refuse_another(run, config.resume)
    torch.manual_seed(config.training.seed)
    text_to_image = make_text_to_image(config.text_to_image)
    if ranks.is_main_process:
        program.describe(run, config, "train.diffusion")
    summary = trainer_for(config, text_to_image, ranks.process_index, ranks.num_processes).fit()
    if ranks.is_main_process and not summary.interrupted:
        text_to_image.save_pretrained(run / "model")
        report.write(run, scored(config, text_to_image) if config.scoring.count else [])
    return summary


def trainer_for(config: Diffusion, text_to_image: TextToImage, rank: int = 0, world: int = 1) -> Trainer:
    """Trainer, stream, validation and sampler of a config."""
    stride = text_to_image.stride
    loader = Loader(batches(config, stride, rank, world), config.training.workers)
    held_out, groups = {}, {"prompts": [ask(text) for text in config.samples.prompts]}
    for source in open_data(config.data, config.stages, "validation", stride)[0]:
        samples = first_samples(source, max(config.validation.documents, config.samples.held_out))
        held_out[source.name] = fixed_pairs(samples[: config.validation.documents], stride, config.pairing.rows)
        groups[source.name] = from_samples(samples[: config.samples.held_out])
    sampler = Sampler(text_to_image, groups, config.samples)
    return Trainer(
        TextToImageLearner(text_to_image, config.balance),
        loader,
        config.objective,
        config.training,
        config.run,
        held_out,
        sampler,
        config.resume,
    )


def batches(config: Diffusion, stride: int, rank: int = 0, world: int = 1) -> PairBatches:
    """The stream that a config trains on; sides of images are multiples of `stride`."""
    seed = config.training.seed
    sources, weights = open_data(config.data, config.stages, "train", stride)

    def open_samples(shard: int, shards: int) -> Mixture:
        return Mixture(sources, weights, seed, shard, shards)

    return PairBatches(open_samples, stride, config.pairing, seed, rank, world)


def scored(config: Diffusion, text_to_image: TextToImage) -> list[Section]:
    """GenEval in miniature as sections of the report; also in RUN/scores."""
    card = score(config, text_to_image)
    card.save(Path(config.run, "scores"))
    drawn = card.answers[Drawing.name]
    words = (
        f"{len(drawn)} prompts of the built-in world ({config.scoring.split}); "
        "an image is right when the judge finds all that it asks for."
    )
    shown = ((images[-1], f"{row.asked}: {'right' if row.values['right'] == 1 else 'wrong'}") for row, images in drawn)
    return [
        Section(OVERALL, paragraph(words) + score_table([*card.figures.values(), *card.details])),
        Section("Scored images", gallery(islice(shown, SHOWN))),
    ]


def score(config: Diffusion, text_to_image: TextToImage) -> Scorecard:
    """Ask the text-to-image model for the images of GenEval in miniature."""
    counts, seed = drawing_counts(config.scoring.count), SPLITS[config.scoring.split]
    return scorecard.score(Painted(text_to_image, config.samples.params), counts, seed)


def main(argv: list[str]) -> int:
    """The program; see fusion.training.program.main."""
    return program.main(Diffusion, train, "images", argv)
