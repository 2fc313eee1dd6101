"""A simulated run of train.diffusion: a diffusion transformer of any size, its text encoders, and data pairs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from PIL import Image
from torch import Tensor, nn

from fusion.codecs.codec import load_codec
from fusion.data.pairs import PairBatch
from fusion.diffusion.networks.experts import evenly
from fusion.diffusion.registry import Sees, build
from fusion.diffusion.text_encoders import TextEncoders, load_encoder
from fusion.diffusion.text_to_image import TextToImage, TextToImageConfig
from fusion.planning.planned_run import BATCHES, Shares, Subject
from fusion.recipes.diffusion import Diffusion, TextToImageLearner, batches, blocks_of
from fusion.sequence.images import to_image
from fusion.training.samples import ask, sheet

WORDS = 32  # of a text that is assumed
SHOWN = 24  # images of the first batch


class TextToImageSubject(Subject):
    """The text-to-image model of a config. Experts, where its network has any, share out the rows evenly. ValueError in
    one line for what cannot be imagined."""

    def __init__(self, config: Diffusion):
        self.config = config
        self.model = imagined_text_to_image(config.text_to_image)
        self.codec = self.model.codec
        self.embody()
        self.learner = TextToImageLearner(self.model)  # what keeps experts even is next to nothing
        self.taken, self.source = pair_batches(config, self.model)
        self.shares = Shares.mean([self._counts(batch) for batch in self.taken])

    @property
    def title(self) -> str:
        """Architecture, and what it predicts from what."""
        settings = self.config.text_to_image
        readers = ", ".join(one.path for one in settings.texts)
        return f"{settings.architecture}, texts by {readers}, codec {settings.codec}, target {self.model.target}"

    def step(self) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """The batch of the largest images."""
        batch = max(self.taken, key=lambda batch: (batch.pixels.numel(), self._counts(batch)[0]))
        batch = replace(batch, pixels=self.imagined.like(batch.pixels))

        def loss() -> Tensor:
            with evenly(self.model.network):
                found = self.learner.losses(batch, self.config.objective, torch.Generator().manual_seed(0))
            return found.total(1, 1)

        return [batch.pixels], loss

    def layers(self) -> list[nn.Module]:
        """The network's blocks. ValueError where they cannot be computed again, or shared out."""
        training = self.config.training
        if training.recompute:
            self.learner.recomputed()
        return self.learner.units()[:-1] if training.sharded else blocks_of(self.model.network)

    def whole(self) -> int:
        """The text encoders."""
        return sum(p.nbytes for p in self.model.texts.parameters())

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Text encoders, blocks, and what is around those."""
        for number, encoder in enumerate(self.model.texts):
            yield from ((f"text encoder {number + 1}", p) for p in encoder.parameters())
        blocks = {id(p) for block in blocks_of(self.model.network) for p in block.parameters()}
        for name, inside in (("blocks", True), ("around the blocks", False)):
            yield from ((name, p) for p in self.model.network.parameters() if (id(p) in blocks) == inside)

    def drawing(self) -> Image.Image:
        """The first images and their texts, as the network gets them."""
        batch = self.taken[0]
        pairs = [
            replace(ask(text), truth=(to_image(pixels),))
            for text, pixels in zip(batch.texts[:SHOWN], batch.pixels[:SHOWN], strict=True)
        ]
        return sheet(pairs, [()] * len(pairs))

    def reading(self) -> Callable[[], object] | None:
        """What encoders that are not trained say of the texts of a step."""
        texts = max(self.taken, key=lambda batch: self._counts(batch)[0]).texts
        frozen = [encoder for encoder in self.model.texts if not encoder.config.trained]
        return (lambda: [encoder(list(dict.fromkeys(texts))) for encoder in frozen]) if frozen else None

    def _counts(self, batch: PairBatch) -> tuple[int, int, int, int, int]:
        masks = [encoder.tokens(batch.texts)[1] for encoder in self.model.texts]
        text, patches = sum(int(mask.sum()) for mask in masks), self.learner.counts(batch).tokens
        return text, 0, patches, sum(mask.numel() for mask in masks) - text, len(batch.texts)


def imagined_text_to_image(settings: TextToImageConfig) -> TextToImage:
    """A text-to-image model of which everything is on "meta". What a folder of texts would save is not looked at."""
    texts = TextEncoders([load_encoder(one, weights=False) for one in settings.texts])
    codec = load_codec(settings.codec, device="meta")
    with torch.device("meta"):
        network = build(settings.architecture, settings.network, Sees(codec.channels, **texts.sees))
    return TextToImage(network, texts, codec, settings)


def pair_batches(config: Diffusion, text_to_image: TextToImage) -> tuple[Sequence[PairBatch], str]:
    """A few batches, and where they are from: of the run's data, or, where that is not here, of images as large as
    they are drawn."""
    try:
        return list(islice(iter(batches(config, text_to_image.stride)), BATCHES)), f"{BATCHES} batches of the data"
    except (OSError, ValueError) as error:
        width, height = config.data.size or config.text_to_image.size
        rows = config.pairing.rows
        texts = tuple(f"{row} {'word ' * (WORDS - 1)}" for row in range(rows))  # each is new to the encoders
        batch = PairBatch(torch.zeros(rows, 3, height, width), texts, ("",) * rows)
        return [batch], f"assumed, for the data cannot be read here: {' '.join(str(error).split())}"
