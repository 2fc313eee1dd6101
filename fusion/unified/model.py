"""FusionModel: embed -> backbone -> heads. A Hugging Face model on text, a flow model on images; tensors only.

On `input_ids` alone it is the LLM, V logits and all, so that whatever takes a causal LM takes it. On a packed batch it
also answers for the noised blocks. New tokens have rows of their own (`control_embed`, `control_head`) beside an LLM
whose weights are never resized.
"""

import copy
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import GENERATION_CONFIG_NAME

from fusion.common.llm_files import llm_folder
from fusion.common.tensor_cache import bytes_of
from fusion.nn.conv import ConvEmbed, ConvHead
from fusion.nn.kv_cache import PrefixCache
from fusion.nn.layers import FlowHead, Modulation, PatchEmbed, ReferenceEmbed, TimestepEmbedding, match_rms
from fusion.sequence.packed import IGNORE, Packed
from fusion.sequence.rows import Rows
from fusion.unified.backbone import Backbone, family_of, layers_of
from fusion.unified.config import FusionConfig
from fusion.unified.kv_projection import listen
from fusion.unified.loading import PLACING, Placeable, check_quantised, one_line
from fusion.unified.lora import adapt, merge
from fusion.unified.modality import stream, twins
from fusion.unified.settings import Lora
from fusion.unified.step import Images, Steps
from fusion.unified.stream import ImageStream
from fusion.unified.stream_backbone import PackedHidden, StreamBackbone

IMAGE_END, TURN_END = 2, 3
"""Numbers of two control tokens, as fusion.sequence.processor orders them."""
# Cells of the shortest sincos wave of new models. DiT's 2 pi, with a base of 10,000, turns so slowly that neighbouring
# cells look alike.
SHORTEST_WAVE = 2.0


@dataclass(frozen=True)
class Output:
    """What a packed batch gives.

    logits: at the rows with a label, over the LLM's vocabulary and then the control tokens; where the LLM never sees
    images, its whole vocabulary is one column. labels: theirs, as columns of logits. prediction: of the flow head at
    the patches of noised blocks (`Packed.noised_patch`).
    """

    logits: Float[Tensor, "l v"]
    labels: Int[Tensor, " l"]
    prediction: Float[Tensor, "n p"]


class BaseError(ValueError):
    """The LLM that a model lies beside is not there, or another; the message is one line that says what to do."""


def _of_llm(name: str) -> bool:
    return name.startswith("llm.") and "lora_" not in name


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model's folder."""
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


class FusionModel(Placeable, Steps, PreTrainedModel, GenerationMixin):
    """One decoder for text and images; see the module's docstring. Built by `FusionModel.from_llm` or
    `from_pretrained`."""

    config_class = FusionConfig
    base_model_prefix = "llm"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: FusionConfig, llm: PreTrainedModel | None = None):
        config.check()
        super().__init__(config)
        family = family_of(config.text_config)
        self.llm = AutoModelForCausalLM.from_config(config.text_config) if llm is None else llm
        full = self.llm.get_input_embeddings().embedding_dim
        self.control_embed = nn.Embedding(config.control_tokens, full)
        self.control_head = nn.Linear(full, config.control_tokens, bias=False)
        self.image_width = width = config.image_width or full
        time_width = None if config.time == "none" else width
        if config.embed == "conv":
            self.patch_embed = ConvEmbed(config.channels, config.patch_size, width, time_width)
        elif config.embed == "linear+reference":
            self.patch_embed = ReferenceEmbed(config.patch_width, width)
        else:
            self.patch_embed = PatchEmbed(config.patch_width, width)
        self.time_embed = None if config.time == "none" else TimestepEmbedding(width)
        self.modulation = self.modulation_table = None
        if config.time == "adaln":
            self.modulation = Modulation(width, width)
            self.modulation_table = nn.Parameter(torch.zeros(config.image_layers, 6, width))
        if config.head == "linear":
            self.flow_head = FlowHead(width, config.patch_width, time_width)
        else:
            self.flow_head = ConvHead(
                width, config.channels, config.patch_size, time_width, config.head == "conv+reference"
            )
        self.twins = self.stream = None
        if config.mode == "mot":
            self.twins = twins(self.llm, layers_of(self.llm), family, config.split)
        elif config.see == "none":
            self.stream = ImageStream(width, full, config.image_layers)
        elif config.mode == "frozen":
            self.twins = stream(self.llm, layers_of(self.llm), family, width)
            if config.deep == "hidden":
                listen(layers_of(self.llm), family, self.twins)
        if config.lora:
            adapt(layers_of(self.llm), family.attention, Lora(**config.lora))
        self.backbone = self._driver()
        self.sincos = config.positions != "axial" or family.positions == "learned"
        self.post_init()
        self.hold()

    def hold(self) -> None:
        """Leave what never changes out of training: the LLM of mode frozen, and one that has adapters, but for them."""
        if self.config.mode == "frozen" or self.config.lora:
            for name, p in self.llm.named_parameters():
                p.requires_grad_("lora_" in name)
        if self.stream is not None:  # what the LLM reads is computed once
            self.control_embed.requires_grad_(False)

    def add_lora(self, settings: Lora) -> None:
        """Put adapters into the LLM, which is frozen from now on. ValueError where there are some, and beside weights
        by modality."""
        self.refuse_unless_whole("add_lora")
        if self.config.lora or self.config.mode != "shared":
            has = " and has adapters" if self.config.lora else ""
            raise ValueError(
                f"lora: this model is of mode {self.config.mode!r}{has}; give one of shared weights without any"
            )
        self.config.lora = asdict(settings)
        self._driven_anew(lambda layers: adapt(layers, self.backbone.family.attention, settings))
        self.hold()

    def merge_lora(self) -> None:
        """Make the adapters part of the LLM's weights. ValueError where there are none."""
        if not self.config.lora:
            raise ValueError("lora: this model has no adapters to merge")
        self.refuse_unless_whole("merge_lora")
        self.config.lora = None
        self._driven_anew(merge)
        self.llm.requires_grad_(True)

    def _driven_anew(self, change: Callable[[nn.ModuleList], None]) -> None:
        """Hooks sit on modules that the change replaces."""
        self.backbone.unhook()
        change(layers_of(self.llm))
        self.backbone = self._driver()

    def _driver(self) -> Backbone | StreamBackbone:
        if self.stream is not None:
            return StreamBackbone(
                self.llm, self.stream, self.config.reads, self.config.preamble, self.control_embed.weight
            )
        return Backbone(self.llm, self.config.positions != "shared", self.twins, self.config.deep == "hidden")

    def own_weights(self) -> dict[str, Tensor]:
        """Everything but the LLM's own weights."""
        return {name: tensor for name, tensor in self.state_dict().items() if not _of_llm(name)}

    def llm_weights(self) -> str:
        """A fingerprint of the LLM's own weights as bf16 has them, the same in whatever precision they were loaded;
        adapters do not count."""
        digest = hashlib.blake2b(digest_size=16)
        for name, p in self.llm.named_parameters():
            if _of_llm(f"llm.{name}"):
                digest.update(name.replace(".base_layer", "").encode() + bytes_of(p.detach().bfloat16()))
        return digest.hexdigest()

    def init_weights(self) -> None:
        """Nothing to do: every part initialises itself when it is made, and a given LLM keeps its weights."""

    @classmethod
    def from_pretrained(cls, folder, *args, **kwargs):
        """As every model of Hugging Face is loaded, which makes all weights learn (see `hold`); device_map and
        quantization_config too (fusion.unified.loading). An LLM that is not in the folder is loaded from where the
        config says, or `llm` does, and has to be the one that was left out. ValueError in one line where it is not."""
        llm = kwargs.pop("llm", None)
        config = kwargs.get("config") or FusionConfig.from_pretrained(folder)
        if config.base is None:
            placing = cls._placing(config, kwargs)
            with warnings.catch_warnings(), one_line(placing.get("quantization_config")):
                # A map may name parameters, whatever accelerate thinks.
                warnings.filterwarnings("ignore", message="The following device_map keys do not match")
                loaded = super().from_pretrained(folder, *args, **kwargs | placing)
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            model.hold()
            if "quantization_config" in placing:
                check_quantised(model, placing["quantization_config"])
            return loaded
        loaded = cls._beside(
            config,
            str(llm or config.base),
            llm is not None,
            Path(folder),
            kwargs.get("dtype", "auto"),
            kwargs.get("output_loading_info"),
        )
        model, *info = loaded if isinstance(loaded, tuple) else (loaded,)
        model = model.placed(**{name: kwargs[name] for name in PLACING if name in kwargs})
        return (model, *info) if info else model

    @classmethod
    def _beside(
        cls, config: FusionConfig, base: str, fetch: bool, folder: Path, dtype, output_loading_info: bool | None
    ):
        """The weights in a folder, beside an LLM from elsewhere. fetch: whether somebody typed its name."""
        try:
            place = llm_folder(base, fetch)
            llm = AutoModelForCausalLM.from_pretrained(place, config=copy.deepcopy(config.text_config), dtype=dtype)
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())[:150]
            raise BaseError(
                f"{base}: the LLM of this model cannot be loaded ({said}): say where it is with llm="
            ) from None
        model = cls(config, llm=llm)
        if model.llm_weights() != config.base_weights:
            raise BaseError(f"{base}: this is not the LLM that the model was trained beside: its weights differ")
        config.base = config.base_weights = None  # all of it is here now
        model.to(llm.dtype)
        if (folder / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        missing, unknown = model.load_state_dict(_tensors(folder), strict=False)
        info = {"missing_keys": {name for name in missing if not _of_llm(name)}, "unexpected_keys": set(unknown)}
        return (model.eval(), info) if output_loading_info else model.eval()

    @classmethod
    def from_llm(cls, llm: PreTrainedModel, config: FusionConfig) -> "FusionModel":
        """Extend a loaded LLM: its weights stay as they are, and text passes through the new model unchanged."""
        model = cls(config, llm=llm)
        model.start_from_llm()
        return model.to(device=llm.device, dtype=llm.dtype).eval()

    @torch.no_grad()
    def start_from_llm(self) -> None:
        """Give new rows the scale of the token embeddings as they enter the decoder; modulation and heads already start
        at zero."""
        embedding = self.llm.get_input_embeddings()
        some = torch.arange(min(embedding.num_embeddings, 4096), device=embedding.weight.device)
        tokens = embedding(some).float().cpu()
        scale = tokens.square().mean().sqrt().item()
        self.control_embed.weight.copy_(tokens.mean(0) + scale * torch.randn_like(self.control_embed.weight))
        self.control_head.weight.zero_()
        if self.stream is not None:  # whose layers are its own, and begin with a norm
            scale = 1.0
        # Sincos features have mean square 1/2 before scaling; patch and position share the variance.
        match_rms(self.patch_embed, scale * (0.5**0.5 if self.sincos else 1.0))
        self.config.position_scale = scale

    # ---- rows out ----

    def all_logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The LLM's logits over its own vocabulary, then those of the control tokens, in fp32."""
        text = self.backbone.logits(hidden).to(hidden.device).float()
        return torch.cat([text, self.control_logits(hidden, text)], dim=-1)

    def control_logits(self, hidden: Float[Tensor, "*b d"], text: Float[Tensor, "*b v"]) -> Float[Tensor, "*b c"]:
        """Logits of the control tokens, in fp32. text: those of the LLM, whose offset decides what a probability is."""
        control = self.control_head(hidden).float()
        if self.config.control_start is None:
            return control
        return control + self.config.control_start + text.logsumexp(-1, keepdim=True)

    def column(self, ids: Tensor) -> Tensor:
        """Token ids -> columns of `all_logits` (ids between the LLM's head and the first control token do not
        exist)."""
        return torch.where(ids >= self.config.vocab_base, ids - self.config.vocab_base + self.llm_vocab, ids)

    @property
    def llm_vocab(self) -> int:
        """Columns of the LLM's own head."""
        return self.llm.get_output_embeddings().out_features

    def forward(self, input_ids=None, attention_mask=None, labels=None, packed: Packed | None = None, **kwargs):
        """`packed` -> Output; `input_ids` (b, t) with an optional (b, t) attention_mask -> CausalLMOutputWithPast with
        V logits."""
        if packed is not None:
            return self._forward_packed(packed)
        return self._forward_text(input_ids, attention_mask, labels, **kwargs)

    def _forward_packed(self, packed: Packed) -> Output:
        images = Images(
            packed.patches,
            packed.time,
            packed.grid[packed.noised_image],
            packed.references if self.looks_back else None,
        )
        learned = packed.labels != IGNORE
        if self.stream is not None:
            return self._decided(*self.step_packed(packed, images), packed)
        done = self.step(packed, self.backbone.mask(packed, packed), images)
        return Output(self.all_logits(done.hidden[learned]), self.column(packed.labels[learned]), done.prediction)

    def _decided(self, hidden: PackedHidden, prediction: Float[Tensor, "q p"], packed: Packed) -> Output:
        """The answer of a model whose LLM is frozen and never sees images: all that learns of text is when a control
        token comes, so the LLM's whole vocabulary is one column of the logits, the first. What ends a turn behind an
        image is a control token too."""
        config, ids, labels = self.config, packed.ids.flatten(), packed.labels.flatten()
        learned = labels != IGNORE
        text = hidden.partition[learned][:, None]
        columns = (labels[learned] - config.vocab_base + 1).clamp(min=0)
        if config.stop_ids:
            stops = torch.tensor(config.stop_ids, device=labels.device)
            ends = (ids[learned] == config.vocab_base + IMAGE_END) & torch.isin(labels[learned], stops)
            columns = torch.where(ends, 1 + TURN_END, columns)
        return Output(torch.cat([text, self.control_logits(hidden.last[learned], text)], dim=-1), columns, prediction)

    def _forward_text(
        self,
        ids,
        attention_mask,
        labels,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        logits_to_keep=0,
        **_,
    ):
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        # What transformers' generate prepares for a sliding window forgets rows that our masks still count: it is
        # replaced while empty.
        fresh = seen == 0 and (use_cache or past_key_values is not None)
        cache = PrefixCache() if fresh else past_key_values
        valid = (
            torch.ones(ids.shape[0], seen + ids.shape[1], device=ids.device).long()
            if attention_mask is None
            else attention_mask
        )
        order = (valid.cumsum(1) - 1).clamp(min=0)
        block = torch.arange(valid.shape[1], device=ids.device).expand_as(valid)
        key = Rows(
            ids=F.pad(ids, (seen, 0)),
            labels=torch.full_like(valid, IGNORE),
            doc=valid - 1,
            order=order,
            block=block,
            noised=torch.zeros_like(valid, dtype=torch.bool),
            position=order.expand(3, -1, -1),
            image_index=torch.full_like(valid, -1),
        )
        query = key.map(lambda column: column[..., seen:])
        hidden = self.step(query, self.backbone.mask(query, key), cache=cache).hidden
        kept = hidden[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else hidden[:, logits_to_keep]
        logits = self.backbone.logits(kept)
        loss = None if labels is None else self.llm.loss_function(logits, labels, vocab_size=self.llm_vocab)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    # ---- what Hugging Face asks of a model ----

    def get_input_embeddings(self):
        """The LLM's own token embedding."""
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self):
        """The LLM's own head."""
        return self.llm.get_output_embeddings()

    def set_attention(self, kind: str) -> None:
        """Choose the decoder's attention: sdpa, eager, matmul (fast on CPU at short lengths) or flex_attention."""
        self.llm.set_attn_implementation(kind)
