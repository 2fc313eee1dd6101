"""A run as the doctor loads it: config, metrics, model, held-out data, and the images requested there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fusion.codecs.codec import Codec
from fusion.common.config import load_config
from fusion.data.curriculum import HELD_OUT_SEED, TRAINING_SEED, Curriculum, Stage, open_data
from fusion.data.formats import BadSample, Sample, Source, WorldSource
from fusion.data.packing import Batch, documents
from fusion.data.pairs import PairBatch, fixed_pairs
from fusion.diffusion import load_text_to_image
from fusion.doctor.finding import Missing
from fusion.generation import api
from fusion.recipes.demo import Demo
from fusion.recipes.diffusion import Diffusion, TextToImageLearner
from fusion.recipes.unified import Unified, attention_here, first_samples
from fusion.sequence.document import blocks
from fusion.sequence.images import to_image, to_pixels
from fusion.sequence.packed import pack
from fusion.training import checkpoint
from fusion.training.learner import Learner, UnifiedLearner
from fusion.training.metrics import read
from fusion.worlds.shapes import TASKS, Options, World

ROWS = 16  # most documents, or drawn images, of a batch


@dataclass(frozen=True)
class Task:
    """A held-out image and its context.

    sample: ends with the image. truth: the image. source: the last image before it, if it has the same size. kind: of
    the data's source, of editing or not, and of the context's structure; tasks of one kind can exchange their texts.
    """

    sample: Sample
    truth: Image.Image
    source: Image.Image | None
    kind: tuple

    @property
    def prompt(self) -> Any:
        """The context before the image, as a prompt for Fusion."""
        return self.sample.messages[:-1] if self.sample.messages else {"content": self.sample.content[:-1]}

    @property
    def words(self) -> str:
        """All texts that are not the model's, joined by newlines."""
        return "\n".join(block["text"] for block in said(self.sample))


class Patient:
    """A run that is examined.

    run: its folder. words: key=value of its config that hold here, such as data.path where the data has moved. count:
    held-out documents of each source that are examined. Raises ValueError, in one line, where the folder is no run, or
    has neither log nor model.
    """

    def __init__(self, run: str | Path, words: Sequence[str] = (), count: int = 96, device: str | None = None):
        self.run, self.count, self.device = Path(run), count, device
        self.config = _config(self.run, words)
        log = self.run / "metrics.jsonl"
        rows = read(log) if log.is_file() else []
        self.rows = [row for row in rows if isinstance(row, dict) and {"step", "seen"} <= row.keys()]
        self.folder = self._folder()
        if self.folder is None and not self.rows:
            raise ValueError(
                f"{run}: nothing was logged and no model saved yet; let the run come to its first checkpoint"
            )

    def _folder(self) -> Path | None:
        """Return the folder of the finished model, else of the newest checkpoint's, else None."""
        if any((self.run / "model" / name).is_file() for name in ("config.json", "painter.json")):
            return self.run / "model"
        newest = checkpoint.newest(self.run / "checkpoints")
        return newest / "model" if newest else None

    @property
    def paints(self) -> bool:
        """Whether it is a diffusion model, which can generate only images."""
        return isinstance(self.config, Diffusion)

    @property
    def stages(self) -> list[Stage]:
        """The stages of its curriculum, if it has one."""
        return self.config.world.stages if isinstance(self.config, Demo) else self.config.stages

    @cached_property
    def learner(self) -> Learner:
        """The model, as in training; Missing if there is none yet, ValueError where its folder is broken."""
        if self.folder is None:
            raise Missing("there is no model yet")
        if self.paints:
            return TextToImageLearner(load_text_to_image(self.folder, self.device))
        llm = self.config.model.llm
        model = api.load(self.folder, dtype=torch.float32, device=self.device, llm=llm if Path(llm).is_dir() else None)
        model.model.set_attention(attention_here(self.config.model.attention))
        return UnifiedLearner(model)

    @property
    def params(self) -> dict[str, Any]:
        """The sampling parameters with which the run itself draws."""
        if isinstance(self.config, Demo):
            return dict(self.config.scoring.params)
        params = self.config.samples.params
        return {name: value for name, value in params.items() if name not in ("max_images", "max_new_tokens")}

    # ---- data ----

    def sources(self, side: str) -> list[Source]:
        """Open the sources of a side, "train" or "validation"; Missing where they cannot be opened."""
        if isinstance(self.config, Demo):
            if side == "train":
                return [Curriculum([replace(stage, text=0.0) for stage in self.stages], TRAINING_SEED)]
            return [WorldSource(World(Options(tasks={task: 1.0})), HELD_OUT_SEED, task) for task in TASKS]
        try:
            return open_data(self.config.data, self.config.stages, side, self._stride if self.folder else 1)[0]
        except (ValueError, OSError) as error:
            raise Missing(
                f"its data cannot be read ({' '.join(str(error).split())}); say where it is now, data.path=FOLDER"
            ) from None

    @property
    def _stride(self) -> int:
        return self.learner.text_to_image.stride if self.paints else self.learner.fusion.processor.stride

    @cached_property
    def held_out(self) -> dict[str, list[Sample]]:
        """Documents of each source, by its name: the first of those that validation takes, at most `count`."""
        return {source.name: first_samples(source, self.count) for source in self.sources("validation")}

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks of all held-out documents, without those that the model cannot read."""
        found = [task for samples in self.held_out.values() for sample in samples if (task := task_of(sample))]
        return [task for task in found if self.reads(task.sample)]

    @property
    def asked(self) -> list[Task]:
        """The tasks without a source image, requested in words alone; Missing where there is none."""
        if not (asked := [task for task in self.tasks if task.source is None]):
            raise Missing("no held-out document asks in words alone for an image")
        return asked

    @property
    def edits(self) -> list[Task]:
        """The tasks that change a source image of the same size; Missing where there is none."""
        if not (edits := [task for task in self.tasks if task.source is not None]):
            raise Missing("no held-out document asks for a change of an image")
        return edits

    def reads(self, sample: Sample) -> bool:
        """Return whether a document fits the model, and a row of training."""
        try:
            return bool(self.batches([sample]))
        except BadSample:
            return False

    def batches(self, samples: Sequence[Sample]) -> list[Batch] | list[PairBatch]:
        """Build batches of documents, one to a row and in order.

        Whatever their texts, images of the same sizes get the same noise from one generator. Raises BadSample for a
        document that takes more than a row of training.
        """
        if self.paints:
            return fixed_pairs(samples, self._stride, ROWS)
        laid_out = [self._laid_out(sample) for sample in samples]
        parts = [laid_out[start : start + ROWS] for start in range(0, len(laid_out), ROWS)]
        return [Batch(pack([[document] for document in part]), ("",) * len(part), ("",) * len(part)) for part in parts]

    def _laid_out(self, sample: Sample):
        settings = replace(self.config.packing, tail=0.0, noised_copies=1)
        document, *more = documents(sample, self.learner.fusion.processor, settings, Random(0), guidance=False)
        if more:
            raise BadSample(sample.key, "takes more than a row")
        return document

    # ---- drawing ----

    @property
    def codec(self) -> Codec:
        """The codec between images and what the model draws."""
        return self.learner.text_to_image.codec if self.paints else self.learner.fusion.codec

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Float[Tensor, "n c h w"]:
        """Encode images of one size as latents, in float32."""
        device = next(self.learner.model.parameters()).device
        return self.codec.encode(torch.stack([to_pixels(image) for image in images]).to(device)).float()

    @torch.no_grad()
    def given_back(self, image: Image.Image) -> Image.Image:
        """Encode and decode an image by the codec."""
        return to_image(self.codec.decode(self.encode([image]))[0].float().cpu())

    def draw(self, tasks: Sequence[Task], copies: int = 1, seed: int = 0, **params: Any) -> list[list[Image.Image]]:
        """Draw `copies` images for each task, each from its own noise; return a list for each task.

        params: override the run's own sampling parameters.
        """
        numbered = sorted(enumerate(tasks), key=lambda pair: pair[1].truth.size)
        drawn: list[list[Image.Image]] = [[] for _ in tasks]
        for size, group in groupby(numbered, key=lambda pair: pair[1].truth.size):
            rows = [(number, task) for number, task in group for _ in range(copies)]
            for start in range(0, len(rows), ROWS):
                part = rows[start : start + ROWS]
                images = self._images([task for _, task in part], size, seed + start, self.params | params)
                for (number, _), image in zip(part, images, strict=True):
                    drawn[number].append(image)
        return drawn

    def _images(
        self, tasks: Sequence[Task], size: tuple[int, int], seed: int, params: dict[str, Any]
    ) -> list[Image.Image]:
        if self.paints:
            return self.learner.text_to_image.images([task.words for task in tasks], seed, size=size, **params)
        if all(task.source is None for task in tasks):
            params = {**params, "image_guidance": 1.0}  # there is no image to be guided by
        return self.learner.fusion._images([task.prompt for task in tasks], seed, {**params, "image_size": size})


# ---- reading the folder ----


def _config(run: Path, words: Sequence[str]) -> Unified | Demo | Diffusion:
    path = run / "config.yaml"
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; give the folder of a run")
    if not path.is_file():
        raise ValueError(
            f"{run}: no run there (config.yaml is missing); give the folder that train.unified, train.demo or "
            "train.diffusion wrote"
        )
    try:
        keys = set(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} is not YAML ({' '.join(str(error).split())[:100]}); the run's programs write it anew"
        ) from None
    for kind, needed in (
        (Diffusion, {"text_to_image", "run"}),
        (Demo, {"llm", "out"}),
        (Unified, {"model", "run", "packing"}),
    ):
        if needed <= keys:
            return load_config(kind, path, words)
    raise ValueError(
        f"{run}: a run of another kind; the doctor looks at those of train.unified, train.demo and train.diffusion"
    )


# ---- from documents to tasks ----


def task_of(sample: Sample) -> Task | None:
    """Return the last image of a document that can be a task, None where there is none.

    It is the last one that the assistant answers with and nothing else beside it, or the last of a page behind a text.
    """
    if sample.messages:
        ends = [
            number
            for number, turn in enumerate(sample.messages)
            if turn["role"] == "assistant" and _only_an_image(turn)
        ]
        cut = replace(sample, messages=list(sample.messages[: ends[-1] + 1])) if ends and ends[-1] else None
    else:
        cut = _page(sample)
    if cut is None:
        return None
    turns = cut.messages or [{"role": "assistant", "content": cut.content}]
    parts = [(turn["role"], block) for turn in turns for block in blocks(turn["content"])]
    *before, truth = [block["image"] for _, block in parts if block["type"] == "image"]
    source = before[-1] if before and before[-1].size == truth.size else None
    return Task(
        cut, truth, source, (sample.source, source is not None, tuple((role, block["type"]) for role, block in parts))
    )


def _only_an_image(turn: dict) -> bool:
    return [block["type"] for block in blocks(turn["content"])] == ["image"]


def _page(sample: Sample) -> Sample | None:
    """Return the last image of a page right behind a text, with that text alone, or None.

    The whole page may be longer than any row.
    """
    pairs = list(zip(sample.content, sample.content[1:], strict=False))
    found = [[text, image] for text, image in pairs if (text["type"], image["type"]) == ("text", "image")]
    return replace(sample, content=found[-1]) if found else None


def said(sample: Sample) -> list[dict]:
    """Return the text blocks of a task that the model did not write: those of its user, or of its page."""
    if not sample.messages:
        return [block for block in sample.content if block["type"] == "text"]
    return [
        block
        for turn in sample.messages
        if turn["role"] != "assistant"
        for block in blocks(turn["content"])
        if block["type"] == "text"
    ]


def told(sample: Sample, texts: Sequence[str]) -> Sample:
    """Return the document with `texts` in place of those of `said`, in order."""
    left = iter(texts)

    def renewed(content: Any) -> list[dict]:
        return [{**block, "text": next(left)} if block["type"] == "text" else block for block in blocks(content)]

    if not sample.messages:
        return replace(sample, content=renewed(sample.content))
    turns = [
        {**turn, "content": renewed(turn["content"])} if turn["role"] != "assistant" else turn
        for turn in sample.messages
    ]
    return replace(sample, messages=turns)
