"""A run of train.unified, imagined: a decoder of any size, extended, and packed documents of its data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice

import torch
from PIL import Image
from torch import Tensor, nn

from fusion.codecs.codec import Codec, load_codec
from fusion.generation.api import fusion_config, llm_config
from fusion.planning.planned_run import BATCHES, Shares, Subject
from fusion.recipes.unified import Model, Unified, batches
from fusion.sequence.images import fit_size
from fusion.sequence.inspect import draw_packed
from fusion.sequence.packed import IGNORE, Control, ImagePiece, Packed, Tokens, layout, pack
from fusion.sequence.processor import CHAT_TOKENS, IMAGE_TOKENS, FusionProcessor
from fusion.sequence.tokens import find_tokenizer
from fusion.unified.backbone import layers_of
from fusion.unified.model import FusionModel
from fusion.unified.objective import latents, losses

SIZE = (0,) * 5  # tokens of a size text that is assumed
LLM = ("LLM embeddings", "LLM layers", "LLM norms", "LLM head", "LoRA")
OURS = {
    "twins": "weights for images",
    "control": "new tokens",
    "patch": "images in",
    "time": "time",
    "modulation": "time",
    "flow": "images out",
}
"""Parts by how the names of their parameters begin."""


class UnifiedSubject(Subject):
    """The model of a config. processor: None where the LLM's folder has no tokenizer. attention: where the config says
    auto. What a folder of latents would save is not looked at: images are encoded. ValueError in one line for what
    cannot be imagined."""

    def __init__(self, config: Unified, attention: str):
        settings = config.model
        if settings.start:
            raise ValueError(
                "model.start: a saved model is not imagined: leave it out, and give the settings that it was made with"
            )
        self.config, self.text_config = config, llm_config(settings.llm)
        self.codec: Codec = load_codec(settings.codec, device="meta")
        self.processor = _processor(settings, self.text_config.vocab_size, self.codec)
        base, control = self.text_config.vocab_size, len(IMAGE_TOKENS) + len(CHAT_TOKENS)
        if self.processor:
            base, control = self.processor.vocab_base, len(self.processor.control_tokens)
        self.control = self.processor.control if self.processor else Control(base, base + 1, base + 2)
        made = fusion_config(self.text_config, self.codec, settings, base, control)
        with torch.device("meta"):
            self.model = FusionModel(made)
            if any(".experts." in name for name, _ in self.model.named_parameters()):
                kind = self.text_config.model_type
                raise ValueError(
                    f"{settings.llm}: which experts of {kind} compute depends on its weights, so that it cannot "
                    "be planned"
                )
            if settings.lora:
                self.model.add_lora(settings.lora)
        self.attention = attention if settings.attention == "auto" else settings.attention
        # FlexAttention has no backward pass on CPUs, where all this is imagined.
        self.imagined_attention = "sdpa" if self.attention == "flex_attention" else self.attention
        self.model.set_attention(self.imagined_attention)
        self.embody()
        self.taken, self.source = packed_batches(config, self)
        self.shares = Shares.mean([counts(packed) for packed in self.taken])

    @property
    def title(self) -> str:
        """LLM, mode and attention."""
        model = self.config.model
        instead = "" if self.attention == self.imagined_attention else f" (imagined as {self.imagined_attention})"
        return f"{model.llm} ({self.text_config.model_type}), mode {model.mode}, attention {self.attention}{instead}"

    @property
    def stride(self) -> int:
        """Pixels along the side of a patch."""
        return self.model.config.stride

    def step(self) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """The fullest batch: pixels, and the columns of its mask, which is large, are imagined too."""
        packed = fullest(self.taken)
        with self.imagined.fake:
            columns = {name: torch.empty_like(getattr(packed, name)) for name in ("doc", "order", "block")}
        packed = replace(packed, pixels=tuple(map(self.imagined.like, packed.pixels)), **columns)

        def loss() -> Tensor:
            clean = latents(packed, self.codec, self.model.config.patch_size)
            return losses(self.model, clean, self.config.objective, torch.Generator().manual_seed(0)).total(1, 1)

        given = [
            tensor for tensor in (getattr(packed, field.name) for field in fields(packed)) if isinstance(tensor, Tensor)
        ]
        return [*given, *packed.pixels], loss

    def layers(self) -> list[nn.Module]:
        """Those of the decoder."""
        return layers_of(self.model.llm)

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """The LLM's, and then ours."""
        found = [(self._part(name, p), p) for name, p in self.model.named_parameters()]
        order = {part: place for place, part in enumerate([*LLM, *OURS.values()])}
        yield from sorted(found, key=lambda pair: order[pair[0]])

    def _part(self, name: str, p: Tensor) -> str:
        if not name.startswith("llm."):
            return OURS[name.partition(".")[0].partition("_")[0]]
        if "lora_" in name:
            return "LoRA"
        if p is self.model.get_input_embeddings().weight:
            return "LLM embeddings"
        if p is self.model.get_output_embeddings().weight:
            return "LLM head"
        return "LLM layers" if any(p is q for q in layers_of(self.model.llm).parameters()) else "LLM norms"

    def drawing(self) -> Image.Image:
        """The first packed row, and its mask."""
        if self.processor is None:
            raise ValueError(
                f"{self.config.model.llm} has no tokenizer here, without which there is nothing to draw: leave "
                "--out away"
            )
        return draw_packed(self.taken[0], self.processor)


def _processor(settings: Model, vocabulary: int, codec: Codec) -> FusionProcessor | None:
    tokenizer = find_tokenizer(settings.llm)
    if tokenizer is None:
        return None
    return FusionProcessor.from_tokenizer(
        tokenizer, vocabulary, codec.downsample * settings.patch_size, settings.max_side, settings.max_patches
    )


def packed_batches(config: Unified, subject: UnifiedSubject) -> tuple[list[Packed], str]:
    """A few batches, and where they are from: of the run's data, or, where that is not here, of texts and images that
    fill the rows."""
    if subject.processor is None:
        return [assumed_batch(config, subject)], f"assumed, for {config.model.llm} has no tokenizer here"
    try:
        taken = [batch.packed for batch in islice(iter(batches(config, subject.processor)), BATCHES)]
    except (OSError, ValueError) as error:
        return [
            assumed_batch(config, subject)
        ], f"assumed, for the data cannot be read here: {' '.join(str(error).split())}"
    return taken, f"{BATCHES} batches of the data"


def assumed_batch(config: Unified, subject: UnifiedSubject, words: int = 32) -> Packed:
    """Full rows of documents with one image to draw, as large as the data's may be (256 x 256 where that is not
    said), after 32 tokens."""
    data, packing = config.data, config.packing
    side = data.max_side or 256
    width, height = data.size or fit_size(side, side, subject.stride, data.max_pixels, config.model.max_side)
    words = min(words, packing.length // 4)
    room = max(1, (packing.length - words - len(SIZE) - 1) // packing.noised_copies)  # patches
    rows = min(height // subject.stride, room)
    grid = rows, min(width // subject.stride, room // rows)
    pixels = torch.zeros(3, grid[0] * subject.stride, grid[1] * subject.stride)
    pieces = [Tokens((0,) * words, loss=True), ImagePiece(pixels, SIZE, grid, target=True, clean=False)]
    document = layout(pieces, subject.control, noised_copies=packing.noised_copies)
    return pack([[document] * (packing.length // len(document))] * packing.rows, packing.length)


def fullest(taken: Sequence[Packed]) -> Packed:
    """The batch with the most to learn: the one that takes most memory."""
    return max(taken, key=lambda packed: int((packed.labels != IGNORE).sum()) + int(packed.noised.sum()))


def counts(packed: Packed) -> tuple[int, int, int, int, int]:
    """Rows by what they are, and documents; see Shares."""
    image, padding = packed.image_index >= 0, packed.doc < 0
    noised = int((image & packed.noised).sum())
    clean = int(image.sum()) - noised
    return packed.ids.numel() - clean - noised - int(padding.sum()), clean, noised, int(padding.sum()), packed.documents
