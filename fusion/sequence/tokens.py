"""Text to token ids and back, so that nothing a person types becomes a control token.

Two ways in: `plain` for what people write, where `<|image_patch|>` or `</s>` are characters like any other, and
`marked` for what a chat template writes, where they are tokens. Text goes in piece by piece, yet comes out as if the
tokenizer had read it in one go.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fusion.common.llm_files import llm_folder

CACHE = 65_536  # texts remembered: templates, sizes, questions and short captions return again and again


class SafeTokenizer:
    """A Hugging Face tokenizer together with control tokens that it does not know.

    control: string -> id, ids beyond the tokenizer's own. template: the chat template's source; added tokens that it
    writes are control tokens too, even where the tokenizer does not call them special. special: all ids that `plain`
    never returns (the unknown token excepted: characters that the tokenizer cannot spell become it).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: dict[str, int], template: str):
        self.tokenizer = tokenizer
        self.control = dict(control)
        added = tokenizer.added_tokens_decoder.items()
        own = {index: token.content for index, token in added if token.special}
        own |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self._skipped = frozenset(own) | frozenset(control.values())
        own |= {index: token.content for index, token in added if token.content.strip() and token.content in template}
        self.special = frozenset(own) | frozenset(control.values())
        self._text_of = own | {index: text for text, index in control.items()}
        self._forbidden = self.special - {tokenizer.unk_token_id}
        self._control = _any_of(control)
        self._typed = re.compile(f"(?={_any_of({*own.values(), *control}).pattern})")
        self._cache: dict[tuple[str, bool, bool], tuple[int, ...]] = {}
        # Sentencepiece begins a text with a space of its own; what continues a text must not get another one.
        self._begins_with_space = self._encode("a") != self._continue("a")

    def plain(self, text: str, after_text: bool = False) -> tuple[int, ...]:
        """Ids of what a person wrote. after_text: it continues a text, and no token that begins one is put before
        it."""
        return self._remember(self._read_plain, text, after_text, True)

    def marked(self, text: str, after_text: bool = False) -> tuple[int, ...]:
        """Ids of what a chat template wrote: control tokens in it are read as such."""
        return self._remember(self._read_marked, text, after_text, False)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Ids as text; control tokens and special tokens as their strings, or not at all."""
        text, run = [], []
        for index in ids:
            if index not in self.special:
                run.append(index)
                continue
            text.append(self._decode(run))
            run = []
            if not (skip_special_tokens and index in self._skipped):
                text.append(self._text_of[index])
        return "".join([*text, self._decode(run)])

    def _remember(self, read, text: str, after_text: bool, plain: bool) -> tuple[int, ...]:
        key = (text, after_text, plain)
        ids = self._cache.get(key)
        if ids is None:
            if len(self._cache) >= CACHE:
                self._cache.clear()
            ids = self._cache[key] = tuple(read(text, after_text))
        return ids

    def _read_plain(self, text: str, after_text: bool) -> list[int]:
        # Cut after the first character of each control token: no tokenizer can put two pieces together again.
        cuts = [match.start() + 1 for match in self._typed.finditer(text)]
        ids = self._pieces(text, cuts, after_text)
        if not self._forbidden.isdisjoint(ids):
            # Some normalisations make control tokens of other characters (full-width `＜s＞`): spell those texts letter
            # by letter.
            ids = [
                index for index in self._pieces(text, range(1, len(text)), after_text) if index not in self._forbidden
            ]
        return ids

    def _pieces(self, text: str, cuts: Iterable[int], after_text: bool) -> list[int]:
        ids, start = [], 0
        for end in (*cuts, len(text)):
            ids += self._next(text[start:end], after_text or start > 0)
            start = end
        return ids

    def _read_marked(self, text: str, after_text: bool) -> list[int]:
        ids: list[int] = []
        for piece in self._control.split(text):
            if piece in self.control:
                ids.append(self.control[piece])
            elif piece:
                ids += self._next(piece, ids[-1] not in self.special if ids else after_text)
        return ids

    def _next(self, text: str, after_text: bool) -> list[int]:
        return self._continue(text) if after_text and self._begins_with_space else self._encode(text)

    def _continue(self, text: str) -> list[int]:
        """Encode text behind another character, which is then taken off: one that never joins with what follows."""
        for before in "\n.!|":
            head, ids = self._encode(before), self._encode(before + text)
            if head and ids[: len(head)] == head:
                return ids[len(head) :]
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        if not self.tokenizer.is_fast:
            return self.tokenizer.encode(text, add_special_tokens=False)
        backend = self.tokenizer.backend_tokenizer  # transformers' own wrapper takes half as long again
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        backend.encode_special_tokens = False
        return backend.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""


def _any_of(strings: Iterable[str]) -> re.Pattern:
    """Matches any of the strings, the longest first; `split` keeps them."""
    return re.compile("(" + "|".join(map(re.escape, sorted(strings, key=len, reverse=True))) + ")")


def find_tokenizer(place: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder or on the hub; None where there is only a model's configuration, or nothing."""
    place = llm_folder(place)
    folder = Path(place)
    if folder.is_dir() and not any(
        file for pattern in ("*token*", "*vocab*", "*.model") for file in folder.glob(pattern)
    ):
        return None  # transformers would make one that knows no words
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, TypeError, KeyError):
        return None
