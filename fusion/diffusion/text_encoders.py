"""Text encoders: hidden states of a language model, T5 or CLIP as conditioning of a diffusion transformer."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fusion.common.llm_files import llm_folder
from fusion.common.tensor_cache import bytes_of, entry, read_entry, write_entry
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.sequence.tokens import find_tokenizer

CLIP = ("clip", "clip_text_model")
# Whose half that reads is a class of its own; all others are decoders, and AutoModel is one without its head.
CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"} | dict.fromkeys(
    CLIP, "CLIPTextModelWithProjection"
)
KEPT = 2**29  # bytes of conditions that stay in memory, beside the network


@dataclass
class EncoderConfig:
    """One text encoder.

    path: folder or hub id of a decoder LLM, a T5 or a CLIP. layer: whose hidden states are the tokens, as in
    `hidden_states` of transformers (-1: the last, after the final norm). pooled: what the one vector is: the mean over
    tokens, the last token, or own, CLIP's projected one. layers: hidden states that networks read one by one (HiDream),
    of one encoder. length: most tokens; what is longer is refused. trained: whether it learns along with the network.
    """

    path: str = "???"
    layer: int = -1
    pooled: Literal["mean", "last", "own"] = "mean"
    layers: list[int] = field(default_factory=list)
    length: int = 128
    trained: bool = False


class TextEncoder(nn.Module):
    """A pretrained text model. width: of its tokens; pooled_width: of the one vector."""

    def __init__(self, model: nn.Module, tokenizer, config: EncoderConfig):
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        sizes = model.config
        self.width = sizes.hidden_size
        self.pooled_width = sizes.projection_dim if config.pooled == "own" else self.width
        tokenizer.padding_side = "right"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.model.requires_grad_(config.trained)
        self.train(False)

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stays as it is used unless it is trained."""
        return super().train(mode and self.config.trained)

    def forward(self, texts: Sequence[str]) -> Conditioning:
        """Tokens (b, n, width) with their mask, pooled (b, pooled_width), and layers (k, b, n, width) if it has any.
        Raises ValueError for a text that is too long."""
        ids, mask = self.tokens(texts)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trained):
            out = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        tokens = out.hidden_states[self.config.layer]
        layers = torch.stack([out.hidden_states[layer] for layer in self.config.layers]) if self.config.layers else None
        return Conditioning(
            tokens, mask, self._pooled(out, tokens, mask), layers=layers, layers_mask=None if layers is None else mask
        )

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Bool[Tensor, "b n"]]:
        """Ids and which of them count; an empty text is one token, so that there is something to attend to."""
        rows = [self.tokenizer(text, add_special_tokens=True)["input_ids"] or [self._empty()] for text in texts]
        if long := next((i for i, row in enumerate(rows) if len(row) > self.config.length), None):
            raise ValueError(
                f"a text of {len(rows[long])} tokens is longer than the {self.config.length} of this encoder: "
                f"{texts[long][:60]!r}..."
            )
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        ids = pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.tokenizer.pad_token_id
        ).to(device)
        return ids, torch.arange(ids.shape[1], device=device) < lengths[:, None]

    def _empty(self) -> int:
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        return next(token for token in known if token is not None)

    def _pooled(self, out, tokens: Tensor, mask: Tensor) -> Float[Tensor, "b pooled_width"]:
        match self.config.pooled:
            case "own":
                return out.text_embeds
            case "last":
                return tokens[torch.arange(len(tokens), device=tokens.device), mask.sum(1) - 1]
            case _:
                return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def fingerprint(self) -> str:
        """A short name for everything that its answers depend on."""
        digest = hashlib.blake2b(repr(asdict(replace(self.config, path="", trained=False))).encode(), digest_size=10)
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + bytes_of(tensor))
        return digest.hexdigest()

    def save_pretrained(self, folder: Path) -> None:
        """Model and tokenizer as transformers write them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_encoder(config: EncoderConfig, dtype: torch.dtype = torch.float32, weights: bool = True) -> TextEncoder:
    """The encoder in a folder or on the hub, without dropout. weights: False reads the configuration alone, puts them
    on "meta", and where there is no tokenizer each word is a token. Raises ValueError in one line where there is none,
    or it has no such layer."""
    try:
        path = llm_folder(config.path)
        kind = transformers.AutoConfig.from_pretrained(path).model_type
        loaded = getattr(transformers, CLASSES.get(kind, "AutoModel"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(path) if weights else find_tokenizer(path) or Words()
        with _without_report():
            model = (
                loaded.from_pretrained(path, dtype=dtype, use_safetensors=True)
                if weights
                else _without_weights(loaded, path)
            )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{config.path}: no text encoder can be loaded from there ({' '.join(str(error).split())[:200]})"
        ) from None
    if config.pooled == "own" and kind not in CLIP:
        raise ValueError(f"{config.path}: pooled=own is CLIP's; a {kind} has mean or last")
    layers = getattr(model.config, "num_hidden_layers", None) or model.config.num_layers
    if wrong := [layer for layer in (config.layer, *config.layers) if not -layers - 1 <= layer <= layers]:
        raise ValueError(
            f"{config.path}: layer={wrong[0]}, and it has {layers} (hidden states 0 to {layers}, or -1 to "
            f"{-layers - 1})"
        )
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return TextEncoder(model, tokenizer, config)


def _without_weights(loaded: type, path: str) -> nn.Module:
    if loaded is transformers.AutoModel:
        with torch.device("meta"):
            return loaded.from_config(transformers.AutoConfig.from_pretrained(path))
    sizes = loaded.config_class.from_pretrained(path)  # of CLIP's two halves, the one that reads
    with torch.device("meta"):
        return loaded(sizes)


class Words:
    """Where a tokenizer is not there: every word is a token."""

    bos_token_id, eos_token_id, pad_token_id = 0, 0, 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers would list the weights of the head, which is left where it is."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


class TextEncoders(nn.ModuleList):
    """Several encoders as one: their tokens one behind the other, narrow ones filled up with zeros (SD3, arXiv
    2403.03206), and their pooled vectors side by side."""

    def __init__(self, encoders: Sequence[TextEncoder], folder: str | Path | None = None):
        """folder: where conditions are kept for other runs, too; in memory the latest are kept in any case. Trained
        encoders keep none."""
        super().__init__(encoders)
        if not len(self):
            raise ValueError("no text encoder: give at least one, such as {path: out/demo/llm}")
        self.width = max(encoder.width for encoder in self)
        self.pooled_width = sum(encoder.pooled_width for encoder in self)
        self.layered = next((number for number, encoder in enumerate(self) if encoder.config.layers), None)
        if sum(bool(encoder.config.layers) for encoder in self) > 1:
            raise ValueError("two text encoders have layers: a network reads those of one")
        self._folder = None if folder is None else Path(folder)
        self._kept: OrderedDict[tuple[int, str], dict[str, Tensor]] = OrderedDict()
        self._held = 0  # bytes of them
        self._names: dict[int, str] = {}

    @property
    def sees(self) -> dict[str, int]:
        """What a network sees of texts: fields of fusion.diffusion.registry.Sees."""
        layered = None if self.layered is None else self[self.layered]
        layers = {} if layered is None else {"layers": len(layered.config.layers), "layer_width": layered.width}
        return {"text_width": self.width, "pooled_width": self.pooled_width, **layers}

    def forward(self, texts: Sequence[str]) -> Conditioning:
        """The condition of each text; tokens (b, n, width), pooled (b, pooled_width), layers those of the one encoder
        that has them."""
        parts = [self._one(number, texts) for number in range(len(self))]
        tokens = torch.cat(
            [nn.functional.pad(part.tokens, (0, self.width - part.tokens.shape[-1])) for part in parts], dim=1
        )
        mask, pooled = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("mask", "pooled"))
        read = (
            {}
            if self.layered is None
            else {name: getattr(parts[self.layered], name) for name in ("layers", "layers_mask")}
        )
        return Conditioning(tokens, mask, pooled, **read)

    def _one(self, number: int, texts: Sequence[str]) -> Conditioning:
        encoder = self[number]
        if encoder.config.trained:
            return encoder(texts)
        rows = dict(self._known(number, texts))
        if new := [text for text in dict.fromkeys(texts) if text not in rows]:
            for text, row in zip(new, _apart(encoder(new)), strict=True):
                rows[text] = row
                self._keep(number, text, row)
                if self._folder is not None:
                    write_entry(self._file(number, text), row)
        return _together([rows[text] for text in texts], next(encoder.parameters()).device)

    def _known(self, number: int, texts: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for text in dict.fromkeys(texts):
            if (number, text) in self._kept:
                self._kept.move_to_end((number, text))
                yield text, self._kept[number, text]
            elif self._folder is not None and (row := read_entry(self._file(number, text))):
                self._keep(number, text, row)
                yield text, row

    def _keep(self, number: int, text: str, row: dict[str, Tensor]) -> None:
        self._kept[number, text] = row
        self._held += _size(row)
        while self._held > KEPT and len(self._kept) > 1:
            self._held -= _size(self._kept.popitem(last=False)[1])

    def _file(self, number: int, text: str) -> Path:
        if number not in self._names:
            self._names[number] = self[number].fingerprint()
        return entry(self._folder / self._names[number], text.encode())


def _apart(cond: Conditioning) -> list[dict[str, Tensor]]:
    """Text by text: its tokens and layers without padding, and its pooled vector."""
    rows = []
    for number, length in enumerate(cond.mask.sum(1).tolist()):
        rows.append({"tokens": cond.tokens[number, :length].clone(), "pooled": cond.pooled[number].clone()})
        if cond.layers is not None:
            rows[-1]["layers"] = cond.layers[:, number, :length].transpose(0, 1).clone()
    return rows


def _size(row: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in row.values())


def _together(rows: Sequence[dict[str, Tensor]], device: torch.device) -> Conditioning:
    """The texts as a batch."""
    found = {name: [row[name].to(device) for row in rows] for name in rows[0]}
    tokens = pad_sequence(found["tokens"], batch_first=True)
    mask = (
        torch.arange(tokens.shape[1], device=device)
        < torch.tensor([len(row) for row in found["tokens"]], device=device)[:, None]
    )
    layers = pad_sequence(found["layers"], batch_first=True).permute(2, 0, 1, 3) if "layers" in found else None
    return Conditioning(
        tokens, mask, torch.stack(found["pooled"]), layers=layers, layers_mask=None if layers is None else mask
    )
