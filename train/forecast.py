"""What a run of train.unified would take, before anything is bought: parameters, tokens, memory, operations, time and money."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from transformers import AutoTokenizer

from eval.cost import flops
from fusion.api import check_settings, fusion_config, llm_config
from fusion.backbone import layers_of
from fusion.codec import Codec, load_codec
from fusion.images import fit_size
from fusion.lora import Lora
from fusion.model import FusionModel
from fusion.objective import latents, losses
from fusion.processor import CHAT_TOKENS, IMAGE_TOKENS, FusionProcessor
from fusion.sequence import IGNORE, Control, Packed, Picture, Tokens, layout, pack
from train.devices import DEVICES, Device
from train.imagine import Imagined, Memory, follow
from train.learner import recomputed
from train.precision import bf16_is_faster
from train.unified import Model, Unified, batches

BATCHES = 4  # that are packed to be looked at
SIZE = (0,) * 5  # tokens of a size text that is assumed


@dataclass(frozen=True)
class Shares:
    """Rows of a batch by what they are, and its documents; means over several batches."""

    text: float
    clean: float
    noised: float
    padding: float
    documents: float

    @classmethod
    def of(cls, batches: Sequence[Packed]) -> "Shares":
        """The means."""
        sums = [sum(column) for column in zip(*map(_counts, batches), strict=True)]
        return cls(*(total / len(batches) for total in sums))

    @property
    def rows(self) -> float:
        """All of them."""
        return self.text + self.clean + self.noised + self.padding


def _counts(packed: Packed) -> tuple[int, int, int, int, int]:
    picture, padding = packed.picture >= 0, packed.doc < 0
    noised = int((picture & packed.noised).sum())
    clean = int(picture.sum()) - noised
    return packed.ids.numel() - clean - noised - int(padding.sum()), clean, noised, int(padding.sum()), packed.documents


class Subject:
    """The model of a config, imagined. processor: None where the LLM's folder has no tokenizer. attention: where the config says auto. What a
    folder of latents would save is not looked at: pictures are encoded."""

    def __init__(self, settings: Model, attention: str):
        names = ("time", "positions", "target", "embed", "head", "path", "mode", "split", "image_width", "deep")
        said = {name: getattr(settings, name) for name in names}
        check_settings(**said)
        self.text_config = llm_config(settings.llm)
        self.codec: Codec = load_codec(settings.codec, device="meta")
        self.processor = _processor(settings, self.text_config.vocab_size, self.codec)
        base, control = self.text_config.vocab_size, len(IMAGE_TOKENS) + len(CHAT_TOKENS)
        if self.processor:
            base, control = self.processor.vocab_base, len(self.processor.control_tokens)
        self.control = self.processor.control if self.processor else Control(base, base + 1, base + 2)
        config = fusion_config(self.text_config, self.codec, base, control, patch_size=settings.patch_size, max_side=settings.max_side, **said)
        with torch.device("meta"):
            self.model = FusionModel(config)
            if any(".experts." in name for name, _ in self.model.named_parameters()):
                kind = self.text_config.model_type
                raise ValueError(f"{settings.llm}: which experts of {kind} compute depends on its weights, so that it cannot be planned")
            if settings.lora:
                self.model.add_lora(Lora(**vars(settings.lora)))
        self.attention = attention if settings.attention == "auto" else settings.attention
        # FlexAttention has no backward pass on CPUs, where all this is imagined.
        self.imagined_attention = "sdpa" if self.attention == "flex_attention" else self.attention
        self.model.set_attention(self.imagined_attention)
        self.imagined = Imagined()
        for module in (self.model, self.codec):
            self.imagined.embody(module)
        self.model.train()

    @property
    def stride(self) -> int:
        """Pixels along the side of a patch."""
        return self.model.config.stride

    def batch(self, packed: Packed) -> Packed:
        """The same batch, so that what its model computes is imagined: pixels, and the columns of the mask, which is large."""
        with self.imagined.fake:
            columns = {name: torch.empty_like(getattr(packed, name)) for name in ("doc", "order", "block")}
        return replace(packed, pixels=tuple(map(self.imagined.like, packed.pixels)), **columns)

    def loss(self, packed: Packed, objective) -> Callable[[], Tensor]:
        """The forward pass of a batch, of `batch`."""

        def run() -> Tensor:
            clean = latents(packed, self.codec, self.model.config.patch_size)
            return losses(self.model, clean, objective, torch.Generator().manual_seed(0)).total(1, 1)

        return run


def _processor(settings: Model, vocabulary: int, codec: Codec) -> FusionProcessor | None:
    folder = Path(settings.llm)
    if folder.is_dir() and not any(file for pattern in ("*token*", "*vocab*", "*.model") for file in folder.glob(pattern)):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.llm)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return FusionProcessor.from_tokenizer(tokenizer, vocabulary, codec.downsample * settings.patch_size, settings.max_side, settings.max_patches)


# ---- batches ----


def packed_batches(config: Unified, subject: Subject) -> tuple[list[Packed], str]:
    """A few batches, and where they are from: of the run's data, or, where that is not here, of texts and pictures that fill the rows."""
    if subject.processor is None:
        return [assumed_batch(config, subject)], f"assumed, for {config.model.llm} has no tokenizer here"
    try:
        taken = [batch.packed for batch in islice(iter(batches(config, subject.processor)), BATCHES)]
    except (OSError, ValueError) as error:
        return [assumed_batch(config, subject)], f"assumed, for the data cannot be read here: {' '.join(str(error).split())}"
    return taken, f"{BATCHES} batches of the data"


def assumed_batch(config: Unified, subject: Subject, words: int = 32) -> Packed:
    """Full rows of documents with one picture to draw, as large as the data's may be (256 x 256 where that is not said), after 32 tokens."""
    data, packing = config.data, config.packing
    side = data.max_side or 256
    width, height = data.size or fit_size(side, side, subject.stride, data.max_pixels, config.model.max_side)
    words = min(words, packing.length // 4)
    room = max(1, (packing.length - words - len(SIZE) - 1) // packing.noised_copies)  # patches
    rows = min(height // subject.stride, room)
    grid = rows, min(width // subject.stride, room // rows)
    pixels = torch.zeros(3, grid[0] * subject.stride, grid[1] * subject.stride)
    pieces = [Tokens((0,) * words, loss=True), Picture(pixels, SIZE, grid, target=True, clean=False)]
    document = layout(pieces, subject.control, noised_copies=packing.noised_copies)
    return pack([[document] * (packing.length // len(document))] * packing.rows, packing.length)


def fullest(taken: Sequence[Packed]) -> Packed:
    """The batch with the most to learn: the one that takes most memory."""
    return max(taken, key=lambda packed: int((packed.labels != IGNORE).sum()) + int(packed.noised.sum()))


# ---- the forecast ----


@dataclass(frozen=True)
class Forecast:
    """What a run takes. parameters: by part, all and trained. source: where the batches are from; packed: the first of them. work: operations of
    a step on each device, forward and backward. mfu: share of the device's speed that is reached. price: dollars per device and hour."""

    config: Unified
    subject: Subject
    precision: str
    parameters: dict[str, tuple[int, int]]
    shares: Shares
    source: str
    packed: Packed
    memory: Memory
    work: int
    gpus: int
    device: Device
    mfu: float
    price: float | None

    @property
    def peak(self) -> float:
        """Operations per second that the data sheet promises."""
        return self.device.speed(self.precision)

    @property
    def batches(self) -> int:
        """Of a step, over all devices."""
        return self.gpus * self.config.training.accumulate

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.work / (self.peak * self.mfu)

    @cached_property
    def steps(self) -> int:
        """Until the run ends, by its documents or by its minutes."""
        training = self.config.training
        ends = [math.ceil(training.documents / (self.shares.documents * self.batches))] if training.documents else []
        ends += [math.ceil(60 * training.minutes / self.step_seconds)] if training.minutes else []
        return min(ends)

    @property
    def seconds(self) -> float:
        """Of all steps; validation, samples and checkpoints come on top."""
        return self.steps * self.step_seconds

    @property
    def cost(self) -> float | None:
        """Dollars."""
        return None if self.price is None else self.price * self.gpus * self.seconds / 3600


def forecast(config: Unified, gpus: int = 1, device: str = "h100", mfu: float = 0.4, price: float | None = None) -> Forecast:
    """Imagine a step of the run that a config describes. ValueError in one line where that is not possible."""
    if gpus < 1 or not 0 < mfu <= 1 or (price is not None and price < 0):
        raise ValueError(f"gpus={gpus}, mfu={mfu}, price={price}: at least one device, a share above 0 and at most 1, and no negative price")
    if config.model.start:
        raise ValueError("model.start: a saved model is not imagined: leave it out, and give the settings that it was made with")
    on = DEVICES[device]()
    precision = config.training.precision
    if precision == "auto":
        precision = "bf16" if device != "cpu" or bf16_is_faster() else "fp32"
    subject = Subject(config.model, "matmul" if device == "cpu" else "sdpa")
    taken, source = packed_batches(config, subject)
    try:
        memory, work = _imagine(subject, fullest(taken), config, precision, gpus)
    except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError) as error:
        raise ValueError(f"{config.model.llm}: what it computes depends on its weights, so that it cannot be planned ({error})") from None
    parts, shares = parameters(subject.model), Shares.of(taken)
    return Forecast(config, subject, precision, parts, shares, source, taken[0], memory, work, gpus, on, mfu, price)


def _imagine(subject: Subject, packed: Packed, config: Unified, precision: str, gpus: int) -> tuple[Memory, int]:
    batch = subject.batch(packed)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    given = [tensor for tensor in (getattr(batch, field.name) for field in fields(batch)) if isinstance(tensor, Tensor)]
    loss = subject.loss(batch, config.objective)

    def run() -> None:
        with autocast:
            total = loss()
        total.backward()

    again = recomputed(layers_of(subject.model.llm)) if config.training.recompute else nullcontext()
    with subject.imagined, again:
        memory = follow(subject.model, subject.codec, [*given, *batch.pixels], loss, config.training, autocast, gpus)
        work = flops(run) * config.training.accumulate
    if config.training.sharded:
        memory = shared_out(memory, subject.model, gpus)
    return memory, work


def shared_out(memory: Memory, model: FusionModel, gpus: int) -> Memory:
    """The memory of each of several devices that share everything out (train.shards), reckoned: beside its share, a device has what the layers do
    not hold as a whole, with gradients, and two layers, one that computes and the next."""
    if gpus == 1:
        raise ValueError("training.sharded: one device has nobody to share with; plan for more (--gpus), or set it to false")
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in layers_of(model.llm)]
    whole = 2 * (memory.weights - sum(layers)) + 3 * max(layers)
    states = ("weights", "optimizer", "average", "gradients")
    share = {name: math.ceil(getattr(memory, name) / gpus) for name in states}
    peak = sum(share.values()) + memory.codec + memory.kept + whole
    return replace(memory, **share, peak=peak, when="between forward and backward pass, reckoned")


def parameters(model: FusionModel) -> dict[str, tuple[int, int]]:
    """All parameters and the trained ones, by part; each once."""
    counts = dict.fromkeys([*LLM, *OURS.values()], (0, 0))
    for part, p in _parts(model):
        counts[part] = counts[part][0] + p.numel(), counts[part][1] + p.numel() * p.requires_grad
    return {part: count for part, count in counts.items() if count[0]}


LLM = ("LLM embeddings", "LLM layers", "LLM norms", "LLM head", "LoRA")
OURS = {
    "twins": "weights for pictures", "control": "new tokens", "patch": "pictures in", "time": "time", "modulation": "time", "flow": "pictures out",
}  # fmt: skip
"""Parts by how the names of their parameters begin."""


def _parts(model: FusionModel) -> Iterator[tuple[str, Tensor]]:
    layers = {id(p) for p in layers_of(model.llm).parameters()}
    embedding, head = (module.weight for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    for name, p in model.named_parameters():
        if not name.startswith("llm."):
            yield OURS[name.partition(".")[0].partition("_")[0]], p
        elif "lora_" in name:
            yield "LoRA", p
        else:
            yield "LLM embeddings" if p is embedding else "LLM head" if p is head else "LLM layers" if id(p) in layers else "LLM norms", p
