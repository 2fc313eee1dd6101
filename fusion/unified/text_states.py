"""Hidden states of texts that a frozen LLM has read: computed once for each distinct text, without gradients, and kept.

A text is a tuple of token ids. Nothing that is kept depends on images, on noise or on what is trained, so that noised
copies, epochs and validation share it. The constant start of a chat template, the preamble, is read once for all.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fusion.nn.kv_cache import PrefixCache
from fusion.sequence.rows import Rows, padding
from fusion.unified.backbone import Backbone, layers_of

MOST_BYTES = 2**30
"""Memory that kept texts take at most; the ones that were not asked for longest go first."""
TOKENS_AT_ONCE = 4096
"""Tokens, padding included, that the LLM reads in one call."""
ROWS_AT_ONCE = 512
"""Rows whose logits over the whole vocabulary are in memory at once."""


@dataclass(frozen=True)
class ReadText:
    """What is kept of a text, one row a token, the preamble left out.

    states: output of the chosen layers. last: output of the final norm, which the LLM's head reads. partition: log of
    the sum of exponentials of the logits that the head answers, fp32, from the first learned row on: against it a new
    token's logit is a probability.
    """

    states: Float[Tensor, "t reads d"]
    last: Float[Tensor, "t d"]
    partition: Float[Tensor, " t"]

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.states, self.last, self.partition))


@dataclass(frozen=True)
class Text:
    """A text to be read: its token ids and their positions, which images between them move on by one each.

    skip: rows at its beginning that nobody reads; the preamble's, or none. learned: the first row at which a next token
    is learned; before it no partition is computed.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    skip: int = 0
    learned: int = 0


class _Take:
    """A forward hook that keeps the output of a decoder layer while texts are read."""

    def __init__(self, owner: "TextStates"):
        self.owner = owner

    def __call__(self, module: nn.Module, args, output) -> None:
        if self.owner.taken is not None:
            self.owner.taken.append(output[0] if isinstance(output, tuple) else output)


class TextStates:
    """Read texts with an LLM that never changes, each distinct one once.

    reads: numbers of the decoder layers, from 1, whose output is wanted, ascending. preamble: ids that texts may begin
    with. others: further weights that what is kept depends on. most_bytes: of memory. What is kept is forgotten when
    the LLM moves, changes its precision, or a weight is written to; a model's copy begins with nothing.
    """

    def __init__(
        self,
        reader: Backbone,
        reads: Sequence[int],
        preamble: Sequence[int] = (),
        others: Sequence[Tensor] = (),
        most_bytes: int = MOST_BYTES,
    ):
        self.reader, self.reads, self.preamble, self.others = reader, tuple(reads), tuple(preamble), others
        self.most_bytes, self.bytes, self.texts_read = most_bytes, 0, 0
        self.kept: OrderedDict[Text, ReadText] = OrderedDict()
        self.start: PrefixCache | None = None  # the preamble's keys and values
        self.taken: list[Tensor] | None = None
        self.made: tuple | None = None  # by what everything that is kept was computed
        layers = layers_of(reader.llm)
        self.handles = [layers[number - 1].register_forward_hook(_Take(self)) for number in self.reads]

    def __deepcopy__(self, memo):
        """Copy for another model, without what was read."""
        copied = memo[id(self)] = copy.copy(self)
        copied.reader, copied.others = copy.deepcopy((self.reader, self.others), memo)
        copied.handles = []
        copied.forget()
        return copied

    def forget(self) -> None:
        """Drop everything that is kept."""
        self.kept, self.start, self.taken, self.bytes = OrderedDict(), None, None, 0

    def unhook(self) -> None:
        """Take the hooks off the LLM."""
        for handle in self.handles:
            handle.remove()

    @property
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Where the LLM is and in which precision it computes."""
        weight = self.reader.llm.get_input_embeddings().weight
        return weight.device, weight.dtype  # type: ignore[return-value]  # it is a tensor

    def opens(self, ids: Sequence[int]) -> bool:
        """Whether a text begins with the preamble and has more behind it."""
        return len(ids) > len(self.preamble) > 0 and tuple(ids[: len(self.preamble)]) == self.preamble

    @torch.no_grad()
    def __call__(
        self, texts: Sequence[Text], embed: Callable[[Int[Tensor, "b t"]], Float[Tensor, "b t d"]]
    ) -> list[ReadText]:
        """Return what the LLM has made of each text, in order; those that are not kept are read now. embed: token ids
        to rows of the decoder."""
        self._check_made()
        found = {text: self.kept[text] for text in texts if text in self.kept}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for skip in sorted({text.skip for text in missing}):
            group = sorted((text for text in missing if text.skip == skip), key=lambda one: len(one.ids))
            for some in _batches(group):
                found |= zip(some, self._read(some, skip, embed), strict=True)
        for text in dict.fromkeys(texts):
            self._keep(text, found[text])
        return [found[text] for text in texts]

    def _check_made(self) -> None:
        """Forget what another device, another precision or other weights have computed: weights that are written to
        count their versions."""
        weights = (*self.reader.llm.parameters(), *self.others)
        made = (*self.place, sum(weight._version for weight in weights))
        if self.made != made:
            self.forget()
            self.made = made

    def _keep(self, text: Text, read: ReadText) -> None:
        if text not in self.kept:
            self.bytes += read.bytes
        self.kept[text] = read
        self.kept.move_to_end(text)
        while self.bytes > self.most_bytes and self.kept:
            self.bytes -= self.kept.popitem(last=False)[1].bytes

    def _read(self, texts: Sequence[Text], skip: int, embed) -> list[ReadText]:
        """Read a batch of texts that all begin with the preamble (skip: its length), or with anything (skip: 0)."""
        rows = _rows([(text.ids[skip:], text.positions[skip:]) for text in texts], skip, self.place[0])
        key, cache = rows, None
        if skip:
            key = Rows.cat([_preamble_rows(self.preamble, len(texts), self.place[0]), rows])
            cache = PrefixCache.stack([self._start(embed)], [[0] * len(texts)])
        with self.taking() as taken:
            last = self.reader(embed(rows.ids), rows.position, self.reader.mask(rows, key), None, cache)
        states = torch.stack([one.to(last.device) for one in taken], dim=2)
        self.texts_read += len(texts)
        there = rows.doc >= 0
        counts = [len(text.ids) - skip for text in texts]
        partition = last.new_zeros(there.shape, dtype=torch.float32)
        first = torch.tensor([text.learned - skip for text in texts], device=there.device)[:, None]
        asked = there & (torch.arange(there.shape[1], device=there.device) >= first)
        partition[asked] = self._partition(last[asked])
        parts = (part.split(counts) for part in (states[there], last[there], partition[there]))
        return [ReadText(*(part.clone() for part in one)) for one in zip(*parts, strict=True)]

    def _partition(self, last: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Compute ReadText.partition, a part of the rows at a time, for vocabularies are large."""
        parts = last.split(ROWS_AT_ONCE) if len(last) else ()
        return torch.cat(
            [
                last.new_zeros(0, dtype=torch.float32),
                *(self.reader.logits(part).float().logsumexp(-1) for part in parts),
            ]
        )

    @contextmanager
    def taking(self) -> Iterator[list[Tensor]]:
        """Collect the outputs of the chosen layers while the block runs the LLM."""
        taken: list[Tensor] = []
        self.taken = taken
        try:
            yield taken
        finally:
            self.taken = None

    def _start(self, embed) -> PrefixCache:
        """Return keys and values of the preamble, computed once."""
        if self.start is None:
            rows, self.start = _preamble_rows(self.preamble, 1, self.place[0]), PrefixCache()
            self.reader(embed(rows.ids), rows.position, self.reader.mask(rows, rows), None, self.start)
        return self.start


def _preamble_rows(ids: Sequence[int], batch: int, device: torch.device) -> Rows:
    return _rows([(ids, range(len(ids)))] * batch, 0, device)


def _rows(texts: Sequence[tuple[Sequence[int], Sequence[int]]], start: int, device: torch.device) -> Rows:
    """Lay out ids and positions of texts as rows of text alone, padded at the end. start: rows before them."""
    rows = Rows.of(torch.from_numpy(padding(len(texts), max(len(ids) for ids, _ in texts), start)))
    for row, (ids, positions) in enumerate(texts):
        count = len(ids)
        rows.ids[row, :count] = torch.tensor(ids)
        rows.doc[row, :count] = 0
        rows.order[row, :count] = torch.arange(start, start + count)
        rows.position[:, row, :count] = torch.tensor(positions)
    return rows.map(lambda column: column.to(device))


def _batches(texts: Sequence[Text]) -> list[list[Text]]:
    """Cut texts, sorted by length, into batches of at most TOKENS_AT_ONCE tokens, padding counted."""
    batches: list[list[Text]] = []
    for text in texts:
        if batches and (len(batches[-1]) + 1) * len(text.ids) <= TOKENS_AT_ONCE:
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches
