"""Prompts to conditioning: transformers' text encoders, and what each family of pipelines takes from them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from fusion.diffusion.networks.conditioning import Conditioning


@dataclass(frozen=True)
class Read:
    """What an encoder says of a batch of texts: its last layer, all its layers with the embeddings first, one vector
    for each text, and where there is text."""

    tokens: Float[Tensor, "b n d"]
    layers: tuple[Float[Tensor, "b n d"], ...]
    pooled: Float[Tensor, "b p"] | None
    mask: Bool[Tensor, "b n"]


class Reader:
    """A text encoder of a pipeline and its tokenizer, asked as the pipeline asks it (`encoders.TextEncoder` is for
    training)."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer

    @torch.no_grad()
    def read(self, texts: Sequence[str], length: int | None = None, masked: bool = False) -> Read:
        """Texts padded to `length` tokens (None: what the tokenizer names). masked: whether padding is hidden from the
        encoder.

        A longer text is cut, as its model was trained, and a warning says what is lost: diffusers does the same.
        """
        length = length or self.tokenizer.model_max_length
        batch = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        self._warn_of_cuts(texts, length)
        return self.ask(batch.input_ids, batch.attention_mask, masked)

    @torch.no_grad()
    def ask(self, ids: Int[Tensor, "b n"], mask: Int[Tensor, "b n"], masked: bool) -> Read:
        """What the encoder says of tokens, 1 in `mask` where there are any."""
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        out = self.model(ids, attention_mask=mask if masked else None, output_hidden_states=True)
        pooled = out.get("text_embeds", out.get("pooler_output"))
        return Read(out.get("last_hidden_state", out.hidden_states[-1]), out.hidden_states, pooled, mask.bool())

    def _warn_of_cuts(self, texts: Sequence[str], length: int) -> None:
        for text in texts:
            ids = self.tokenizer(text, verbose=False).input_ids
            if len(ids) > length:
                lost = self.tokenizer.decode(ids[length - 1 : -1])  # both ends of a text are marked, and the mark stays
                warnings.warn(
                    f"a text of {len(ids)} tokens is cut to {length}, which its encoder was trained for; lost: {lost}",
                    stacklevel=2,
                )


def load_reader(
    folder: Path, name: str, kinds: Mapping[str, str], dtype: torch.dtype | None, device: str | torch.device | None
) -> Reader:
    """The encoder in the folder `name` of a pipeline, of safetensors, and its tokenizer; `kinds` are their classes by
    folder. Of a processor, which reads images too and needs torchvision for them, the tokenizer alone is loaded.

    ValueError in one line for what is not transformers' or cannot be read.
    """
    import transformers  # takes seconds, and whoever draws classes never needs it

    words = name.replace("text_encoder", "tokenizer")
    model, tokenizer = (getattr(transformers, kinds.get(part) or "", None) for part in (name, words))
    if (kinds.get(words) or "").endswith("Processor"):
        tokenizer = transformers.AutoTokenizer
    elif not _is_a(tokenizer, transformers.PreTrainedTokenizerBase):
        tokenizer = None
    if not _is_a(model, transformers.PreTrainedModel) or tokenizer is None:
        raise ValueError(
            f"{folder}: {name} is {kinds.get(name)} and {words} is {kinds.get(words)}: give a model and a tokenizer of "
            "transformers"
        )
    return _reader(model, folder / name, tokenizer, folder / words, dtype, device, f"{folder}: {name} or {words}")


def load_other(place: str | Path, name: str, dtype: torch.dtype | None, device: str | torch.device | None) -> Reader:
    """A text model with its tokenizer, in a folder or on the hub, as the encoder `name`. ValueError in one line where
    it cannot be read."""
    import transformers

    return _reader(transformers.AutoModel, place, transformers.AutoTokenizer, place, dtype, device, f"{name}, {place},")


def _reader(model, weights, tokenizer, words, dtype, device, said: str) -> Reader:
    try:
        loaded = model.from_pretrained(weights, dtype=dtype or "auto", use_safetensors=True)
        return Reader(loaded.to(device), tokenizer.from_pretrained(words))
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{said} cannot be read ({' '.join(str(error).split())[:200]})") from None


def _is_a(kind, parent: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, parent)


@dataclass(frozen=True)
class Readers:
    """What a pipeline reads prompts with: encoders by folder, class numbers by name, and the config of the network that
    is told."""

    encoders: dict[str, Reader]
    labels: dict[str, int]
    network: object


def labels(readers: Readers, prompts: Sequence[str | int]) -> Conditioning:
    """DiT: classes by number or name; "" is no class. ValueError for a class that is not there."""
    classes = readers.network.classes
    numbers = [classes if prompt == "" else readers.labels.get(prompt, prompt) for prompt in prompts]
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number <= classes:
            raise ValueError(
                f"no class is called {number!r}: give a number below {classes}, or a name of id2label in "
                "model_index.json"
            )
    return Conditioning(label=torch.tensor(numbers))


def pixart(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """PixArt-alpha: the prompt cleaned as its captions were, 120 tokens of T5 with their mask."""
    read = readers.encoders["text_encoder"].read(cleaned(prompts), 120, masked=True)
    return Conditioning(read.tokens, read.mask)


def sd3(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """SD3: the last layer but one of two CLIPs side by side, padded to T5's width, then 256 tokens of T5; pooled: of
    both CLIPs.

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


def sana(readers: Readers, prompts: Sequence[str], instructed: bool = True) -> Conditioning:
    """SANA: 300 tokens of Gemma's last layer with their mask, the first and the last 299 of a prompt behind its
    instruction."""
    from diffusers import SanaPipeline

    reader, length, prompts = readers.encoders["text_encoder"], 300, [prompt.lower().strip() for prompt in prompts]
    if not instructed:
        read = reader.read(prompts, length, masked=True)
        return Conditioning(read.tokens, read.mask)
    instruction = "\n".join(signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
    told = len(reader.tokenizer.encode(instruction))
    read = reader.read([instruction + prompt for prompt in prompts], told + length - 2, masked=True)
    kept = [0, *range(-length + 1, 0)]
    return Conditioning(read.tokens[:, kept], read.mask[:, kept])


def lumina2(readers: Readers, prompts: Sequence[str], instructed: bool = True) -> Conditioning:
    """Lumina 2: 256 tokens of Gemma's last layer but one with their mask, a prompt behind its instruction."""
    from diffusers import Lumina2Pipeline

    if instructed:
        instruction = Lumina2Pipeline(*[None] * 5).system_prompt
        prompts = [f"{instruction} <Prompt Start> {prompt}" for prompt in prompts]
    read = readers.encoders["text_encoder"].read(prompts, 256, masked=True)
    return Conditioning(read.layers[-2], read.mask)


def flux2(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """Flux.2: 512 tokens of Mistral's layers 10, 20 and 30 side by side, the padding among them; the prompt is a
    user's, behind a system message."""
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input

    reader = readers.encoders["text_encoder"]
    chat = {"add_generation_prompt": False, "tokenize": True, "return_dict": True}
    batch = reader.tokenizer.apply_chat_template(
        format_input(prompts), **chat, padding="max_length", truncation=True, max_length=512, return_tensors="pt"
    )
    return Conditioning(
        side_by_side(reader.ask(batch["input_ids"], batch["attention_mask"], masked=True), (10, 20, 30))
    )


def flux2_klein(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """Flux.2 klein: 512 tokens of Qwen 3's layers 9, 18 and 27 side by side, the padding among them; the prompt is a
    user's, to be answered without thinking."""
    reader = readers.encoders["text_encoder"]
    chat = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
    said = [reader.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **chat) for prompt in prompts]
    return Conditioning(side_by_side(reader.read(said, 512, masked=True), (9, 18, 27)))


def side_by_side(read: Read, layers: Sequence[int]) -> Float[Tensor, "b n d"]:
    """The chosen layers of every token as one vector."""
    return torch.cat([read.layers[layer] for layer in layers], dim=-1)


def hidream(readers: Readers, prompts: Sequence[str]) -> Conditioning:
    """HiDream: 128 tokens of T5, those of all layers of Llama, the padding among them, and the pooled vectors of two
    CLIPs."""
    encoders = readers.encoders
    llama = encoders["text_encoder_4"]
    llama.tokenizer.pad_token = llama.tokenizer.eos_token
    pooled = [encoders[name].read(prompts, 128).pooled for name in ("text_encoder", "text_encoder_2")]
    layers = llama.read(prompts, 128, masked=True).layers[1:]
    tokens = encoders["text_encoder_3"].read(prompts, 128, masked=True).tokens
    return Conditioning(tokens, pooled=torch.cat(pooled, dim=-1), layers=torch.stack(layers))


def cleaned(prompts: Sequence[str]) -> list[str]:
    """Prompts as DeepFloyd IF cleans captions, whose sixty expressions diffusers keeps; without bs4 or ftfy, lower case
    alone."""
    from diffusers import PixArtAlphaPipeline

    return PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)._text_preprocessing(list(prompts), clean_caption=True)
