"""How prompts become conditions: text encoders of transformers, and for each family of pipelines what it takes from them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from fusion.architectures.conditioning import Conditioning


@dataclass(frozen=True)
class Read:
    """What an encoder says of a batch of texts: its last layer, all its layers with the embeddings first, one vector for each text, and where
    there is text."""

    tokens: Float[Tensor, "b n d"]
    layers: tuple[Float[Tensor, "b n d"], ...]
    pooled: Float[Tensor, "b p"] | None
    mask: Bool[Tensor, "b n"]


class Reader:
    """A text encoder of a pipeline and its tokenizer, asked as the pipeline asks it (`encoders.TextEncoder` is for training)."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer

    @torch.no_grad()
    def read(self, texts: Sequence[str], length: int | None = None, masked: bool = False) -> Read:
        """Texts padded to `length` tokens (None: what the tokenizer names). masked: whether padding is hidden from the encoder.

        A longer text is cut, as its model was trained, and a warning says what is lost: diffusers does the same.
        """
        length = length or self.tokenizer.model_max_length
        batch = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        self._warn_of_cuts(texts, length)
        ids, mask = batch.input_ids.to(self.model.device), batch.attention_mask.to(self.model.device)
        out = self.model(ids, attention_mask=mask if masked else None, output_hidden_states=True)
        pooled = out.get("text_embeds", out.get("pooler_output"))
        return Read(out.last_hidden_state, out.hidden_states, pooled, mask.bool())

    def _warn_of_cuts(self, texts: Sequence[str], length: int) -> None:
        for text in texts:
            ids = self.tokenizer(text, verbose=False).input_ids
            if len(ids) > length:
                lost = self.tokenizer.decode(ids[length - 1 : -1])  # both ends of a text are marked, and the mark stays
                warnings.warn(f"a text of {len(ids)} tokens is cut to {length}, which its encoder was trained for; lost: {lost}", stacklevel=2)


def load_reader(folder: Path, name: str, kinds: Mapping[str, str], dtype: torch.dtype | None, device: str | torch.device | None) -> Reader:
    """The encoder in the folder `name` of a pipeline, of safetensors, and its tokenizer; `kinds` are their classes by folder.

    ValueError in one line for what is not transformers' or cannot be read.
    """
    import transformers  # takes seconds, and whoever draws classes never needs it

    words = name.replace("text_encoder", "tokenizer")
    model, tokenizer = (getattr(transformers, kinds.get(part) or "", None) for part in (name, words))
    if not _is_a(model, transformers.PreTrainedModel) or not _is_a(tokenizer, transformers.PreTrainedTokenizerBase):
        raise ValueError(f"{folder}: {name} is {kinds.get(name)} and {words} is {kinds.get(words)}: give a model and a tokenizer of transformers")
    try:
        loaded = model.from_pretrained(folder / name, dtype=dtype or "auto", use_safetensors=True)
        return Reader(loaded.to(device), tokenizer.from_pretrained(folder / words))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: {name} or {words} cannot be read ({' '.join(str(error).split())[:200]})") from None


def _is_a(kind, parent: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, parent)


@dataclass(frozen=True)
class Readers:
    """What a pipeline reads prompts with: encoders by folder, class numbers by name, and the config of the network that is told."""

    encoders: dict[str, Reader]
    labels: dict[str, int]
    network: object


def labels(readers: Readers, prompts: Sequence[str | int]) -> Conditioning:
    """DiT: classes by number or name; "" is no class. ValueError for a class that is not there."""
    classes = readers.network.classes
    numbers = [classes if prompt == "" else readers.labels.get(prompt, prompt) for prompt in prompts]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number <= classes:
            raise ValueError(f"no class is called {number!r}: give a number below {classes}, or a name of id2label in model_index.json")
    return Conditioning(label=torch.tensor(numbers))


def pixart(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """PixArt-alpha: the prompt cleaned as its captions were, 120 tokens of T5 with their mask."""
    read = readers.encoders["text_encoder"].read(cleaned(prompts), 120, masked=True)
    return Conditioning(read.tokens, read.mask)


def sd3(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """SD3: the last layer but one of two CLIPs side by side, padded to T5's width, then 256 tokens of T5; pooled: of both CLIPs.

    Without T5 its tokens are zeros. Padding counts everywhere, as in training.
    """
    clips = [readers.encoders[name].read(prompts) for name in ("text_encoder", "text_encoder_2")]
    pair = torch.cat([clip.layers[-2] for clip in clips], dim=-1)
    if "text_encoder_3" in readers.encoders:
        t5 = readers.encoders["text_encoder_3"].read(prompts, 256).tokens
    else:
        t5 = pair.new_zeros(len(prompts), 256, readers.network.text_width)
    tokens = torch.cat([pad(pair, (0, t5.shape[-1] - pair.shape[-1])), t5.to(pair)], dim=1)
    return Conditioning(tokens, pooled=torch.cat([clip.pooled for clip in clips], dim=-1))


def flux(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """Flux.1: 512 tokens of T5, the padding among them, and the pooled vector of CLIP."""
    pooled = readers.encoders["text_encoder"].read(prompts).pooled
    return Conditioning(readers.encoders["text_encoder_2"].read(prompts, 512).tokens, pooled=pooled)


def cleaned(prompts: Sequence[str]) -> list[str]:
    """Prompts as DeepFloyd IF cleans captions, whose sixty expressions diffusers keeps; without bs4 or ftfy, lower case alone."""
    from diffusers import PixArtAlphaPipeline

    return PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)._text_preprocessing(list(prompts), clean_caption=True)
