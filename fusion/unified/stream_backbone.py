"""Drive an LLM that never sees images and the image stream that reads it, row by row, as `Backbone` drives one decoder.

In training each document's text is looked up among the texts that were read (fusion.unified.text_states) and its rows
of images pass through the stream beside it. In sampling the LLM reads rows of text as they come, behind its cache, and
the keys and values that the stream makes of them, and of images, lie in the same cache behind the LLM's own layers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from fusion.nn.kv_cache import PrefixCache
from fusion.sequence.mask import additive, visible
from fusion.sequence.packed import IGNORE, Packed
from fusion.sequence.rows import Rows
from fusion.unified.backbone import Backbone
from fusion.unified.stream import ImageRows, ImageStream, StreamLayer
from fusion.unified.text_states import ReadText, Text, TextStates


@dataclass(frozen=True)
class StreamMask:
    """Who sees whom: text, in the form that the LLM's attention reads; images, additive (b, 1, q, k)."""

    text: Any
    images: Tensor


@dataclass(frozen=True)
class Documents:
    """The documents of a packed batch side by side: where their rows of text and of images stand in it.

    texts: of each, in order. text, image: index of each row in the flattened batch, -1 where a shorter one is filled
    up. patch: number of each row's patch, 0 in the filling.
    """

    texts: list[Text]
    text: Int[Tensor, "docs t"]
    image: Int[Tensor, "docs n"]
    patch: Int[Tensor, "docs n"]

    @classmethod
    def of(cls, packed: Packed, states: TextStates) -> "Documents":
        """Find them. What a text begins with and nothing is learned at, the preamble, is left out of `text`."""
        device = packed.ids.device
        doc, ids, position, image, labels, order = (
            column.cpu().flatten()
            for column in (packed.doc, packed.ids, packed.position[0], packed.image_index, packed.labels, packed.order)
        )
        number = torch.where(doc >= 0, torch.arange(len(doc)) // packed.doc.shape[1] * (int(doc.max()) + 1) + doc, -1)
        patches = (image >= 0).cumsum(0) - 1
        texts, text_rows, image_rows, patch_rows = [], [], [], []
        for one in number.unique().tolist():
            if one < 0:
                continue
            rows = (number == one).nonzero()[:, 0]
            words, images = rows[image[rows] < 0], rows[image[rows] >= 0]
            words = words[order[words].argsort()]
            begins = states.opens(ids[words].tolist()) and bool((labels[words[: len(states.preamble)]] == IGNORE).all())
            skip = len(states.preamble) if begins else 0
            learned = (labels[words] != IGNORE).nonzero()[:1].flatten().tolist() or [len(words)]
            texts.append(Text(tuple(ids[words].tolist()), tuple(position[words].tolist()), skip, *learned))
            text_rows.append(words[skip:])
            image_rows.append(images)
            patch_rows.append(patches[images])
        padded = [
            torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill).to(device)
            for rows, fill in ((text_rows, -1), (image_rows, -1), (patch_rows, 0))
        ]
        return cls(texts, *padded)


def gathered(rows: Rows, place: Int[Tensor, "docs t"], start: int) -> Rows:
    """Take rows of a batch from where they stand; -1 becomes padding, which sees itself alone. start: number of the
    first one's place among all that are compared."""
    taken = rows.map(lambda column: column.flatten(-2)[..., place.clamp(min=0)])
    empty, own = place < 0, torch.arange(start, start + place.shape[1], device=place.device)
    return replace(
        Rows(*(getattr(taken, name) for name in Rows.__dataclass_fields__)),
        doc=torch.where(empty, -1, 0),
        block=torch.where(empty, own, taken.block),
        noised=taken.noised & ~empty,
    )


@dataclass(frozen=True)
class PackedHidden:
    """What is computed of a packed batch: of patches, and at every row of the flattened batch what the LLM has read
    there (ReadText), zeros at images and preambles."""

    image: Float[Tensor, "n w"]
    last: Float[Tensor, "rows d"]
    partition: Float[Tensor, " rows"]

    @classmethod
    def of(cls, image: Tensor, documents: Documents, read: list[ReadText], rows: int) -> "PackedHidden":
        """Put what was read of the documents' texts into its places."""
        place = documents.text[documents.text >= 0]
        last, partition = (torch.cat([getattr(one, name) for one in read]) for name in ("last", "partition"))
        return cls(
            image,
            last.new_zeros(rows, last.shape[-1]).index_copy(0, place, last),
            partition.new_zeros(rows).index_copy(0, place, partition),
        )


class StreamBackbone:
    """An LLM, and an image stream that reads it; called as `Backbone` is, for any batch of rows behind a cache, and by
    `packed` for training."""

    def __init__(
        self, llm: PreTrainedModel, stream: ImageStream, reads: list[int], preamble: list[int], control: Tensor
    ):
        """Put hooks on the LLM. reads, preamble: as of the settings. control: embeddings of control tokens, which texts
        have too."""
        self.llm, self.stream, self.reads = llm, stream, reads
        self.reader = Backbone(llm, axial=False)
        self.states = TextStates(self.reader, reads, preamble, [control])

    @property
    def family(self):
        """Where the LLM's layers keep what is touched."""
        return self.reader.family

    @property
    def layers(self) -> int:
        """Layers that images pass through."""
        return len(self.reads)

    def unhook(self) -> None:
        """Take the hooks off the LLM."""
        self.reader.unhook()
        self.states.unhook()

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The LLM's own head."""
        return self.reader.logits(hidden)

    # ---- any rows, behind a cache ----

    def mask(self, query: Rows, key: Rows) -> StreamMask:
        """Say who sees whom. query: the last rows of key. Text sees text alone; images see neither the preamble nor,
        as everywhere, noise of others."""
        words = _text_alone(key)
        text = self.reader.mask(words.map(lambda column: column[..., len(key) - len(query) :]), words)
        seen = visible(query, key) & ~self._in_preamble(key)[:, None]
        own = torch.arange(len(query), device=seen.device)
        seen[:, own, own + len(key) - len(query)] = True  # a softmax over nothing would be NaN
        return StreamMask(text, additive(seen, self.llm.dtype))

    def _in_preamble(self, key: Rows) -> Bool[Tensor, "b k"]:
        count = len(self.states.preamble)
        first = key.ids.new_full((len(key.ids), max(count, 1)), -1)
        inside = (key.order < count) & (key.doc >= 0) & (key.image_index < 0)
        row, column = inside.nonzero(as_tuple=True)
        first[row, key.order[row, column]] = key.ids[row, column]
        preamble = torch.tensor(self.states.preamble or (-2,), device=first.device)
        longer = ((key.doc >= 0) & (key.image_index < 0)).sum(1) > count
        return inside & ((first == preamble).all(1) & longer)[:, None]

    def __call__(
        self,
        rows: Rows,
        embed: Callable[[Int[Tensor, "b t"]], Float[Tensor, "b t d"]],
        patches: Float[Tensor, "n w"] | None,
        mask: StreamMask,
        modulation: Float[Tensor, "layers 6 m w"] | None = None,
        cache: PrefixCache | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "n w"] | None]:
        """Return hidden states of rows of text, after the LLM's final norm, and of patches, after the stream's.

        Where all rows are patches behind a frozen cache the LLM is not run, and the first have width 0.

        embed: token ids to rows of the LLM. patches: rows of images, embedded; None where all rows are text that no
        image will read. cache: keys and values before these rows, extended by them.
        """
        if patches is None:
            return self.reader(embed(rows.ids), rows.position, mask.text, None, cache), None
        image = rows.image_index >= 0
        drawing = bool(image.all()) and cache is not None and cache.frozen
        text, states = patches.new_zeros(*image.shape, 0), None
        if not drawing:
            with torch.no_grad(), self.states.taking() as taken:
                text = self.reader(embed(rows.ids), rows.position, mask.text, None, cache)
            states = [one.to(text.device) for one in taken]
        rotation = self.stream.rotation(rows.position)
        keys = _CachedKeys(states, image, rotation, cache, self.llm.config.num_hidden_layers)
        if not len(patches):
            keys.remember(self.stream.each)
            return text, patches
        x = patches.new_zeros(*image.shape, patches.shape[-1]).flatten(0, 1)
        x = x.index_copy(0, rows.patch_rows, patches).view(*image.shape, -1)
        row = rows.image_index.clamp(min=0)
        hidden = self.stream(ImageRows(x, rotation, row), modulation, mask.images, keys)
        return text, hidden.flatten(0, 1)[rows.patch_rows]

    # ---- a packed batch, in training ----

    def packed(self, packed: Packed, embed, patches: Float[Tensor, "n w"], modulation) -> PackedHidden:
        """The same of a packed batch, document by document, with what was read before looked up. embed: token ids to
        rows of the decoder."""
        documents = Documents.of(packed, self.states)
        read = self.states(documents.texts, embed)
        states = torch.nn.utils.rnn.pad_sequence([one.states for one in read], batch_first=True)
        result = patches
        if len(patches):
            text, image = gathered(packed, documents.text, 0), gathered(packed, documents.image, len(documents.text[0]))
            seen = visible(image, Rows.cat([text, image]))
            rotation = self.stream.rotation(image.position)
            rows = ImageRows(patches[documents.patch], rotation, image.image_index.clamp(min=0))
            keys = _GivenKeys(states, self.stream.rotation(text.position))
            hidden = self.stream(rows, modulation, additive(seen, patches.dtype), keys)
            there = documents.image >= 0
            result = torch.zeros_like(patches).index_copy(0, documents.patch[there], hidden[there].to(patches.dtype))
        return PackedHidden.of(result, documents, read, packed.ids.numel())


class _GivenKeys:
    """Keys and values of texts that were read, and of images."""

    def __init__(self, states: Float[Tensor, "b t reads d"], rotation):
        self.states, self.rotation = states, rotation

    def __call__(self, index: int, layer: StreamLayer, k: Tensor, v: Tensor):
        text_k, text_v = layer.words(self.states[:, :, index], self.rotation)
        return torch.cat([text_k.to(k.dtype), k], dim=2), torch.cat([text_v.to(v.dtype), v], dim=2)


class _CachedKeys:
    """Keys and values of rows of text and of images in their places, behind those of the cache."""

    def __init__(self, states: list[Tensor] | None, image: Bool[Tensor, "b t"], rotation, cache, first: int):
        self.states, self.image, self.rotation, self.cache, self.first = states, image, rotation, cache, first

    def __call__(self, index: int, layer: StreamLayer, k: Tensor, v: Tensor):
        if self.states is not None:
            words = layer.words(self.states[index], self.rotation)
            image = self.image[:, None, :, None]
            k, v = (torch.where(image, own, text.to(own.dtype)) for own, text in zip((k, v), words, strict=True))
        return (k, v) if self.cache is None else self.cache.update(k, v, self.first + index)

    def remember(self, layers: Iterable[StreamLayer]) -> None:
        """Put keys and values of rows that are all text into the cache, if there is one."""
        for index, layer in enumerate(layers if self.cache is not None else ()):
            states = self.states[index]  # type: ignore[index]  # text was read
            self.cache.update(*layer.words(states, self.rotation), self.first + index)


def _text_alone(key: Rows) -> Rows:
    """The rows as the LLM is shown them: text in its own order, and each row of an image, like padding, for itself."""
    image = key.image_index >= 0
    place = torch.arange(len(key), device=key.ids.device).expand_as(key.ids)
    return replace(
        key,
        doc=torch.where(image, -1, key.doc),
        block=torch.where(image, place, key.block),
        order=((key.doc >= 0) & ~image).cumsum(-1) - 1,
        noised=key.noised & ~image,
    )
