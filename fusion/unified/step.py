"""One step of the network, rows in and answers out: embed -> decoder -> flow head. Every call of it is made here.

Training, text, the prefix of a sampler and each of its solver steps differ in their rows, mask and cache; what images
are conditioned on is `Images`, and only `Steps.step` knows where each of its fields enters.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, Seen, TimestepEmbedding
from fusion.sequence.packed import Packed
from fusion.sequence.patches import sincos
from fusion.sequence.rows import Rows
from fusion.unified.backbone import RowModulation
from fusion.unified.config import FusionConfig
from fusion.unified.stream import ImageStream
from fusion.unified.stream_backbone import PackedHidden


class Decoder(Protocol):
    """What a step asks of the decoder between embeddings and heads, and all that it asks
    (fusion.unified.backbone.Backbone)."""

    def mask(self, query: Rows, key: Rows) -> Any:
        """Make the mask of some rows over the keys that they may see, in the form that `__call__` takes."""

    def __call__(
        self,
        embeds: Float[Tensor, "b t d"],
        position: Int[Tensor, "3 b t"],
        mask: Any,
        modulation: RowModulation | None = None,
        cache: DynamicCache | None = None,
        image_index: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Give hidden states behind the final norm. cache: keys before these rows, extended by them. image_index: which
        image each row belongs to, -1 on text; None where all rows are text."""


@dataclass(frozen=True)
class Images:
    """What the network is told of the images among its rows.

    patches: what stands in the patch rows (`Rows.patch_rows`). time: of each image, as `Rows.image_index` numbers them.
    grid: rows and columns of patches of each noised image; None where nothing is to be predicted. reference: for each
    patch of a noised block, that in the same place of the image that is edited, zeros where there is none; asked for
    by models that `looks_back`.
    """

    patches: Float[Tensor, "n p"]
    time: Float[Tensor, " m"]
    grid: Int[Tensor, "k 2"] | None = None
    reference: Float[Tensor, "q p"] | None = None


@dataclass(frozen=True)
class StepOutput:
    """hidden: of every row, behind the final norm. prediction: of the flow head at the patches of noised blocks
    (`Rows.noised_patch`); None without a grid."""

    hidden: Float[Tensor, "b t d"]
    prediction: Float[Tensor, "q p"] | None


class Steps:
    """The part of a FusionModel that runs its parts: `step`, and what it is made of."""

    config: FusionConfig
    llm: PreTrainedModel
    backbone: Any  # a Decoder, or a StreamBackbone beside a stream
    stream: ImageStream | None
    control_embed: nn.Embedding
    patch_embed: PatchEmbed
    time_embed: TimestepEmbedding | None
    modulation: Modulation | None
    modulation_table: nn.Parameter | None
    flow_head: FlowHead
    image_width: int
    sincos: bool

    def step(
        self, rows: Rows, mask: Any, images: Images | None = None, cache: DynamicCache | None = None
    ) -> StepOutput:
        """Run the network over rows. mask: of `backbone.mask`; images: None where all rows are text; cache: keys before
        these rows, extended by them."""
        if self.stream is not None:
            return self._step_beside(rows, mask, images, cache)
        if images is None:
            time = self.embed_time(torch.zeros(0, device=rows.ids.device))
            embeds, image_index = self.embed_tokens(rows.ids), None
        else:
            time = self.embed_time(images.time)
            reference, image_index = self._reference_everywhere(rows, images), rows.image_index
            embeds = self.embed(rows, images.patches, time, reference)
        modulation = self.modulate_rows(time, rows.image_index)
        hidden = self.backbone(embeds, rows.position, mask, modulation, cache, image_index)
        drawn = hidden[rows.noised][:, : self.image_width]
        return StepOutput(hidden, self._predict(drawn, rows, images, time))

    def _step_beside(self, rows: Rows, mask: Any, images: Images | None, cache: DynamicCache | None) -> StepOutput:
        """The same for an image stream of its own width beside an LLM that never sees images."""
        if images is None:
            return StepOutput(self.backbone(rows, self.embed_tokens, None, mask, None, cache)[0], None)
        time, patches, vectors = self.stream_rows(rows, images)
        hidden, drawn = self.backbone(rows, self.embed_tokens, patches, mask, vectors, cache)
        return StepOutput(hidden, self._predict(drawn[rows.noised_patch], rows, images, time))

    def step_packed(self, packed: Packed, images: Images) -> tuple[PackedHidden, Float[Tensor, "q p"]]:
        """Run an image stream over a packed batch, with what the LLM has read of its texts before looked up."""
        time, patches, vectors = self.stream_rows(packed, images)
        hidden = self.backbone.packed(packed, self.embed_tokens, patches, vectors)
        drawn = self._predict(hidden.image[packed.noised_patch], packed, images, time)
        return hidden, drawn  # type: ignore[return-value]  # there is a grid

    def stream_rows(
        self, rows: Rows, images: Images
    ) -> tuple[Float[Tensor, "m w"] | None, Float[Tensor, "n w"], Float[Tensor, "layers 6 m w"] | None]:
        """Time embeddings of images, their patches as they enter the image stream, and what modulates its layers."""
        time, reference = self.embed_time(images.time), self._reference_everywhere(rows, images)
        patches = self.embed_patches(images.patches, time, rows.image_of_patch, rows.cell_of_patch, reference)
        return time, patches, self.modulate(time)

    # ---- rows in ----

    def embed_tokens(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Token embeddings; control tokens have rows of their own."""
        control = ids >= self.config.vocab_base
        embeds = self.llm.get_input_embeddings()(ids.masked_fill(control, 0))
        extra = self.control_embed((ids - self.config.vocab_base).clamp(min=0))
        return torch.where(control[..., None], extra.to(embeds.dtype), embeds.to(extra.device))

    def embed_patches(
        self,
        patches: Float[Tensor, "n p"],
        time: Float[Tensor, "m w"] | None,
        image_index: Int[Tensor, " n"],
        cell: Int[Tensor, "n 2"],
        reference: Float[Tensor, "n p"] | None = None,
    ) -> Float[Tensor, "n w"]:
        """Patch rows, with the position of their cell (where sincos tells it) and their time (`added`)."""
        rows = self.patch_embed(patches, cell, time, image_index, reference)
        if self.sincos:
            features = sincos(cell, rows.shape[-1], self.config.position_base, self.config.position_wave)
            rows = rows + self.config.position_scale * features
        if self.config.time == "added":
            rows = rows + time[image_index]  # type: ignore[index]  # such a model is told the time
        return rows

    def embed(
        self,
        rows: Rows,
        patches: Float[Tensor, "n p"],
        time: Float[Tensor, "m w"] | None,
        reference: Float[Tensor, "n p"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Rows as they enter the decoder: token embeddings, and patches where a row belongs to an image, zeros beyond
        the image stream's width."""
        values = self.embed_patches(patches, time, rows.image_of_patch, rows.cell_of_patch, reference)
        values = F.pad(values, (0, self.control_embed.embedding_dim - self.image_width))
        if len(patches) == rows.ids.numel():  # patches everywhere, as at every step of a solver
            return values.to(self.llm.dtype).view(*rows.ids.shape, -1)
        embeds = self.embed_tokens(rows.ids)
        return embeds.flatten(0, 1).index_copy(0, rows.patch_rows, values.to(embeds.dtype)).view_as(embeds)

    def embed_time(self, t: Float[Tensor, " m"]) -> Float[Tensor, "m d"] | None:
        """Time embedding of each image, fp32; None for a model that is not told the time."""
        return None if self.time_embed is None else self.time_embed(t)

    def modulate(self, time: Float[Tensor, "m w"] | None) -> Float[Tensor, "layers 6 m w"] | None:
        """Scale, shift and gate of attention and feed-forward for every image and layer, fp32; None without adaLN."""
        if self.modulation is None:
            return None
        table = self.modulation_table.float()  # type: ignore[union-attr]  # there is one beside every modulation
        return self.modulation(time).transpose(0, 1) + table[:, :, None]

    def modulate_rows(self, time: Float[Tensor, "m w"] | None, image_index: Int[Tensor, "b t"]) -> RowModulation | None:
        """What the hooks apply to each row; image is -1 on text."""
        if (vectors := self.modulate(time)) is None:
            return None
        vectors = F.pad(vectors, (0, self.control_embed.embedding_dim - self.image_width, 1, 0))
        return RowModulation(vectors, image_index.flatten() + 1)

    # ---- the image that is edited ----

    @property
    def looks_back(self) -> bool:
        """Whether noised patches are looked at beside those of the image that is edited."""
        return self.patch_embed.reference or self.flow_head.reference

    def _reference_everywhere(self, rows: Rows, images: Images) -> Float[Tensor, "n p"] | None:
        """Place the reference among all patches: zeros at clean ones, which are no edits."""
        if images.reference is None or not self.patch_embed.reference:
            return None
        return torch.zeros_like(images.patches).masked_scatter(rows.noised_patch[:, None], images.reference)

    # ---- predictions out ----

    def _predict(
        self, drawn: Float[Tensor, "q w"], rows: Rows, images: Images | None, time: Float[Tensor, "m w"] | None
    ) -> Float[Tensor, "q p"] | None:
        """Answer for the patches of noised blocks, where their images have a grid. drawn: their hidden states."""
        if images is None or images.grid is None:
            return None
        noised = rows.noised_patch
        seen = Seen(images.patches[noised], images.grid, images.reference)
        return self.flow_head(drawn, seen, time, rows.image_of_patch[noised])
