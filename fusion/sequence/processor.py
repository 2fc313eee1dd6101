"""What people write to what the model reads: messages, text and images to tokens and images, and ids back to text.

The tokenizer stays as it is, for a resized vocabulary changes the LLM's logits: the control tokens around images, and
those of our own chat template where a tokenizer brings none, live here, with ids beyond the LLM's vocabulary.
"""

from functools import cached_property
from itertools import takewhile
from typing import Any, no_type_check

import numpy as np
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from fusion.sequence import document as documents
from fusion.sequence.document import Document, Image, Text
from fusion.sequence.images import fit, open_image, to_pixels
from fusion.sequence.packed import Control, ImagePiece, Piece, Tokens
from fusion.sequence.sizes import SizeGrammar
from fusion.sequence.tokens import SafeTokenizer

IMAGE_TOKENS = ("<|image_start|>", "<|image_patch|>", "<|image_end|>")
TURN_END = "<|turn_end|>"  # behind an image, where the LLM is frozen and cannot learn to end its turn there
CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
IMAGE = IMAGE_TOKENS[1]  # stands for a whole image in rendered chat templates

# For LLMs without a chat template. A text begins with the token that begins all of the tokenizer's texts, if it has
# one.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}<|system|>{% elif message.role == 'user' %}<|user|>{% else %}<|assistant|>{% "
    "endif %}"
    "{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class FusionProcessor(ProcessorMixin):
    """Tokenizer, control tokens, chat template and image sizes of a model; saved in the model's folder.

    control_tokens: string -> id. stride: pixels along the side of a patch. max_side: longest side of an image in
    pixels. max_patches: patches of an image.

    Attributes beside those: `control` (ids for sequence.py), `vocab_base` (the first new id), `total_vocab` (the LLM's
    ids and the new ones), `stop_ids` (what ends an assistant turn), `sizes` (the grammar of image sizes).
    """

    # transformers looks up the names of the arguments, which a type checker's wrapper would hide from it.
    @no_type_check
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        control_tokens: dict[str, int],
        stride: int,
        max_side: int,
        max_patches: int,
        chat_template: str = TEMPLATE,
    ):
        super().__init__(tokenizer, chat_template=chat_template)
        self.control_tokens = dict(control_tokens)
        self.stride, self.max_side, self.max_patches = stride, max_side, max_patches
        self.control = Control(*(control_tokens[token] for token in IMAGE_TOKENS))
        self.vocab_base = min(control_tokens.values())
        self.total_vocab = max(control_tokens.values()) + 1
        if any(token in control_tokens for token in CHAT_TOKENS):
            tokenizer.chat_template = None  # it found ours in the folder, and cannot read its tokens
        self._rendered: dict[tuple, str] = {}
        self.text = SafeTokenizer(tokenizer, control_tokens, chat_template)
        self.sizes = SizeGrammar(self.text.plain, stride, stride, max_side, max_patches)

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        stride: int,
        max_side: int = 1024,
        max_patches: int = 4096,
        chat_template: str | None = None,
        turn_end: bool = False,
    ) -> "FusionProcessor":
        """A processor for an LLM that has `vocab_size` logits; new ids begin behind both its logits and the tokenizer's
        ids.

        chat_template: Jinja source; without it the tokenizer's own is used, or ours where there is none. turn_end:
        have a control token that ends a turn behind an image.
        """
        template = chat_template or (tokenizer.get_chat_template() if tokenizer.chat_template else TEMPLATE)
        known = tokenizer.get_vocab()
        new = [
            *IMAGE_TOKENS,
            *([TURN_END] if turn_end else []),
            *(token for token in CHAT_TOKENS if token in template and token not in known),
        ]
        base = max(vocab_size, len(tokenizer))
        return cls(tokenizer, {token: base + i for i, token in enumerate(new)}, stride, max_side, max_patches, template)

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds; tokenizer and template have files of their own."""
        names = ("control_tokens", "stride", "max_side", "max_patches")
        return {name: getattr(self, name) for name in names} | {"processor_class": type(self).__name__}

    # Documents

    def document(self, source: Any, prompt: bool = False) -> Document:
        """What a person gives, as a document.

        source: chat messages; or a string, or a list of strings and images (one user turn); or `{"content": [blocks]}`,
        an interleaved document without roles. With `prompt` nothing is learned and it ends where the model is to go on.
        Raises ValueError in one line.
        """
        if isinstance(source, dict) and "role" not in source:
            return self._interleaved(source, prompt)
        messages = _messages(source)
        document = documents.from_messages(messages, lambda plain: self._render(plain, prompt), prompt)
        if prompt and messages[-1]["role"] == "assistant":
            raise ValueError("a prompt ends with the user's turn, not the assistant's: take the last message away")
        return document

    def _interleaved(self, source: dict, prompt: bool) -> Document:
        content = source.get("content")
        _check_filled(content, "the document")
        parts = documents.from_content(content)
        end = self.tokenizer.eos_token or ("<|end|>" if "<|end|>" in self.control_tokens else "")
        framed = (Text(self.tokenizer.bos_token or "", template=True), *parts, Text(end, loss=True, template=True))
        kept = tuple(part for part in framed if not isinstance(part, Text) or part.text)
        return documents.as_context(kept[:-1] if end else kept) if prompt else kept

    def _render(self, plain: list[dict], prompt: bool) -> str:
        """The chat template over messages of marks; these depend on roles and numbers of blocks alone, so few are ever
        rendered."""
        key = (prompt, *((message["role"], message["content"]) for message in plain))
        if key not in self._rendered:
            try:
                # Templates of models that think aloud leave an empty thought in prompts too, as they do in what is
                # learned.
                self._rendered[key] = self.tokenizer.apply_chat_template(
                    plain,
                    chat_template=self.chat_template,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    enable_thinking=False,
                )
            except (TemplateError, TypeError) as error:
                roles = ", ".join(message["role"] for message in plain)
                raise ValueError(
                    f"the model's chat template refuses the turns {roles}: {' '.join(str(error).split())}"
                ) from None
        return self._rendered[key]

    # Pieces

    def pieces(self, document: Document, strict: bool = False, limit: int | None = None) -> list[Piece]:
        """A document as tokens and images, ready for sequence.layout.

        strict: refuse images that are not of an allowed size, instead of fitting them. limit: the most tokens that the
        document may have. Raises ValueError in one line.
        """
        pieces: list[Piece] = []
        after_text, space = False, ""
        for index, part in enumerate(document):
            if isinstance(part, Image):
                pieces.append(self._image(part, strict))
                after_text = False
                continue
            text, space = space + part.text, ""
            # A space between template and text belongs to the text: ` red` is one token, and a prompt ends before it.
            if part.template and text.endswith(" ") and isinstance(_at(document, index + 1), Text):
                text, space = text[:-1], " "
            ids = (self.text.marked if part.template else self.text.plain)(text, after_text)
            if ids:
                pieces += (
                    _until_stop(ids, self.text.special)
                    if part.template and part.loss
                    else [Tokens(ids, part.loss, part.template)]
                )
                after_text = ids[-1] not in self.text.special
        length = clean_length(pieces)
        if limit is not None and length > limit:
            raise ValueError(
                f"the prompt has {length} tokens, the model reads {limit}: shorten the text or shrink the images"
            )
        return pieces

    def _image(self, part: Image, strict: bool) -> ImagePiece:
        image = open_image(part.image)
        if image.size not in self.sizes:
            if strict:
                raise ValueError(
                    f"the image is {image.width}x{image.height}: its sides must be multiples of {self.stride} up to "
                    f"{self.max_side}, "
                    f"with at most {self.max_patches} patches"
                )
            image = fit(image, self.stride, self.max_patches * self.stride**2, self.max_side)
        width, height = image.size
        grid = (height // self.stride, width // self.stride)
        return ImagePiece(to_pixels(image), self.size_ids(width, height), grid, target=part.target)

    def size_ids(self, width: int, height: int) -> tuple[int, ...]:
        """The tokens of a size text."""
        return self.text.plain(f"{width}x{height}")

    # Ids and text

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn: what the chat template puts there, and the tokenizer's end of text."""
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        stops = {self.tokenizer.eos_token_id, self.control_tokens.get(TURN_END)} - {None}
        for messages in (turn, [*turn, turn[0]]):
            closing = next(
                (p.text for p in self.document(messages) if isinstance(p, Text) and p.template and p.loss), ""
            )
            stops.update(next(([index] for index in self.text.marked(closing) if index in self.text.special), ()))
        return tuple(sorted(stops))

    @cached_property
    def preamble(self) -> tuple[int, ...]:
        """Ids that every prompt of one user's turn begins with, before what the user wrote; none where the template
        has nothing there."""
        one, other = (
            [
                i
                for piece in self.pieces(self.document(text, prompt=True))
                if isinstance(piece, Tokens)
                for i in piece.ids
            ]
            for text in ("a", "Z")
        )
        return tuple(i for i, same in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

    def decode(self, ids, skip_special_tokens: bool = False) -> str:
        """Ids as text; control tokens as their strings, or not at all."""
        return self.text.decode(ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids, skip_special_tokens)

    def batch_decode(self, rows, skip_special_tokens: bool = False) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, skip_special_tokens) for row in rows]

    # The interface of Hugging Face processors

    def apply_chat_template(
        self,
        conversation: list,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = False,
    ):
        """Chat messages (or a list of conversations) as a string, as ids, or with `return_dict` as `__call__` returns
        them.

        In the string `<|image_patch|>` stands for each image, whose block need not hold one then, and what people typed
        stands unguarded: to keep their text apart from control tokens, tokenize here and not in a second step.
        """
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        conversations = conversation if batched else [conversation]
        if not tokenize:
            conversations = [[_with_placeholders(message) for message in row] for row in conversations]
        rows = [
            documents.from_messages(
                _messages(row), lambda plain: self._render(plain, add_generation_prompt), prompt=True
            )
            for row in conversations
        ]
        if not tokenize:
            texts = ["".join(part.text if isinstance(part, Text) else IMAGE for part in row) for row in rows]
            return texts if batched else texts[0]
        features = self._features(
            [self.pieces(row) for row in rows], batched or return_tensors is not None, return_tensors, padding
        )
        return features if return_dict else features["input_ids"]

    def __call__(
        self,
        text: str | list[str],
        images=None,
        return_tensors: str | None = None,
        padding: bool | str = False,
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """Rendered text, `<|image_patch|>` for each image, to the model's inputs.

        images: in reading order, or a list of images for each text. Returns input_ids, attention_mask and, where there
        are images, pixel_values (a list of (3, h, w) tensors in [-1, 1], in reading order) and image_sizes (height,
        width).
        """
        texts = [text] if isinstance(text, str) else list(text)
        given = _flat(images)
        counts = [row.count(IMAGE) for row in texts]
        if sum(counts) != len(given):
            raise ValueError(f"{len(given)} images are given for {sum(counts)} {IMAGE} in the text: give one for each")
        feed = iter(given)
        rows = []
        for row in texts:
            begin = self._begin if add_special_tokens and not row.startswith(self._begin or row) else ""
            first, *rest = row.split(IMAGE)
            parts = [Text(begin + first, template=True)]
            for after in rest:
                parts += [Image(next(feed)), Text(after, template=True)]
            rows.append(self.pieces(tuple(parts)))
        return self._features(rows, not isinstance(text, str) or return_tensors is not None, return_tensors, padding)

    @cached_property
    def _begin(self) -> str:
        """The token that the tokenizer itself puts before every text, as a string."""
        begins = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return self.tokenizer.bos_token if begins else ""

    def _features(
        self, rows: list[list[Piece]], batched: bool, return_tensors: str | None, padding: bool | str
    ) -> BatchFeature:
        ids = [[index for piece in row for index in self._ids(piece)] for row in rows]
        masks = [[1] * len(row) for row in ids]
        if padding:
            length = max(map(len, ids))
            pad = next(
                (index for index in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if index is not None), 0
            )
            left = self.tokenizer.padding_side == "left"
            ids = [_pad(row, length, pad, left) for row in ids]
            masks = [_pad(row, length, 0, left) for row in masks]
        data = {"input_ids": ids if batched else ids[0], "attention_mask": masks if batched else masks[0]}
        if return_tensors is not None and len(set(map(len, ids))) > 1:
            raise ValueError("the texts have different lengths: pass padding=True to make one tensor of them")
        images = [piece for row in rows for piece in row if isinstance(piece, ImagePiece)]
        if images:
            data["pixel_values"] = [image.pixels for image in images]
            data["image_sizes"] = [list(image.pixels.shape[1:]) for image in images]
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=["pixel_values"])

    def _ids(self, piece: Piece) -> tuple[int, ...]:
        if isinstance(piece, Tokens):
            return piece.ids
        patches = (self.control.image_patch,) * (piece.grid[0] * piece.grid[1])
        return (self.control.image_start, *piece.size_ids, *patches, self.control.image_end)

    @property
    def model_input_names(self) -> list[str]:
        """What `__call__` returns."""
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes"]


def clean_length(pieces: list[Piece]) -> int:
    """Tokens of a document's clean stream, noised blocks not counted."""
    return sum(len(p.ids) if isinstance(p, Tokens) else 2 + len(p.size_ids) + p.grid[0] * p.grid[1] for p in pieces)


def _messages(source: Any) -> list:
    """Chat messages from messages, a string, or a list of strings and images; checked for what the rest relies on."""
    if isinstance(source, str):
        source = [source]
    if not isinstance(source, list | tuple):
        raise ValueError(
            f"a prompt is a string, a list of strings and images, or chat messages, not {type(source).__name__}"
        )
    if not any(isinstance(item, dict) and "role" in item for item in source):
        blocks = [{"type": "text", "text": item} if isinstance(item, str) else _image_block(item) for item in source]
        source = [{"role": "user", "content": blocks}]
    for message in source:
        role = message.get("role") if isinstance(message, dict) else None
        _check_filled(
            message.get("content") if role else message, f"the {role} message" if len(source) > 1 else "the prompt"
        )
    return list(source)


def _with_placeholders(message: dict) -> dict:
    """A message whose image blocks may be `{"type": "image"}` alone."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    return message | {
        "content": [{"image": None} | b if isinstance(b, dict) and b.get("type") == "image" else b for b in content]
    }


def _image_block(item) -> dict:
    return item if isinstance(item, dict) else {"type": "image", "image": item}


def _check_filled(content, name: str) -> None:
    """Raise ValueError for a message without anything but white space in it."""
    if all(block["type"] == "text" and not block["text"].strip() for block in documents.blocks(content)):
        raise ValueError(f"{name} is empty: write some text or add an image")


def _until_stop(ids: tuple[int, ...], special: frozenset[int]) -> list[Tokens]:
    """What closes an assistant turn: learned up to its first control token, which is where generation stops."""
    stop = next((i + 1 for i, index in enumerate(ids) if index in special), len(ids))
    closing = [Tokens(ids[:stop], loss=True, template=True)]
    return closing if stop == len(ids) else [*closing, Tokens(ids[stop:], template=True)]


def _at(document: Document, index: int):
    return document[index] if index < len(document) else None


def _flat(images) -> list:
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [image for item in images for image in (item if isinstance(item, list | tuple) else [item])]


def _pad(row: list[int], length: int, value: int, left: bool) -> list[int]:
    filler = [value] * (length - len(row))
    return [*filler, *row] if left else [*row, *filler]
