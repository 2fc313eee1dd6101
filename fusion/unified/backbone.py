"""Drive any Hugging Face decoder from outside: mask, axial positions, cache, and a time modulation injected by hooks.

Nothing is forked. The decoder gets `inputs_embeds`, a ready 4-D mask (one per layer type where it wants that) and
position ids; hooks on its rotary module turn three position axes into one rotation, and hooks on its attention and
feed-forward modules scale, shift and gate the rows of images (adaLN as in PixArt: one MLP for all layers plus a
table). On rows of text every hook adds an exact zero.
"""

import copy
import inspect
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import eager_mask

from fusion.sequence.mask import additive, block_mask, visible
from fusion.sequence.rows import Rows
from fusion.unified.kv_projection import route_deep
from fusion.unified.modality import Groups, above, route


@dataclass(frozen=True)
class Family:
    """Where the layers of a family keep what we touch; names of submodules of one decoder layer.

    attention, feed_forward: modules whose input is scaled and shifted. attention_gate, feed_forward_gate: the last
    modules before the residual additions (the post-norms where there are any: a gate before them would cancel).
    pre_norm: False where the modules read the residual stream itself, so that a shift has to grow with it. positions:
    rotary, or learned per index. heads_first: whether norms of queries and keys are given (b, heads, rows, c) instead
    of (b, rows, heads, c).
    """

    layers: str = "layers"
    attention: str = "self_attn"
    feed_forward: str = "mlp"
    attention_gate: str = "self_attn"
    feed_forward_gate: str = "mlp"
    pre_norm: bool = True
    positions: str = "rotary"
    heads_first: bool = False


_PLAIN = (
    "llama mistral ministral3 mixtral qwen2 qwen3 qwen3_moe gemma phi phi3 olmo olmoe smollm3 granite glm cohere2 "
    "starcoder2 stablelm "
    "helium ernie4_5 seed_oss arcee gpt_oss "
    "bitnet cohere diffllama internlm3 iquestcoder jais2 ministral nemotron persimmon vaultgemma phimoe"
).split()
_HEADS_FIRST = Family(heads_first=True)
_SANDWICH = Family(attention_gate="post_attention_layernorm", feed_forward_gate="post_feedforward_layernorm")
_POST_NORM = Family(
    attention_gate="post_attention_layernorm", feed_forward_gate="post_feedforward_layernorm", pre_norm=False
)

FAMILIES: dict[str, Family] = dict.fromkeys(_PLAIN, Family()) | {
    "gemma2": _SANDWICH,
    "gemma3_text": replace(_SANDWICH, heads_first=True),
    **dict.fromkeys(("apertus", "hunyuan_v1_dense", "hunyuan_v1_moe", "nanochat"), _HEADS_FIRST),
    "glm4": Family(attention_gate="post_self_attn_layernorm", feed_forward_gate="post_mlp_layernorm"),
    "olmo2": _POST_NORM,
    "olmo3": _POST_NORM,
    "exaone4": replace(_POST_NORM, heads_first=True),
    "flex_olmo": _POST_NORM,
    "granitemoe": Family(feed_forward="block_sparse_moe", feed_forward_gate="block_sparse_moe"),
    "gpt_neox": Family(attention="attention", attention_gate="attention"),
    "gpt2": Family(layers="h", attention="attn", attention_gate="attn", positions="learned"),
    "opt": Family(layers="decoder.layers", feed_forward="fc1", feed_forward_gate="fc2", positions="learned"),
}


def family_of(config) -> Family:
    """The adapter of a Hugging Face config; raises ValueError in one line for what is not supported."""
    kinds = set(getattr(config, "layer_types", None) or ())
    hybrid = kinds - {"full_attention", "sliding_attention"}
    if hybrid:
        layers = ", ".join(sorted(hybrid))
        raise ValueError(
            f"{config.model_type} has {layers} layers, which cannot attend in both directions: choose a "
            "full-attention decoder"
        )
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{config.model_type!r} is not a supported decoder family: choose one of {', '.join(sorted(FAMILIES))}"
        )
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") == "dynamic":
        raise ValueError(
            f"{config.model_type} uses dynamic rotary positions, which change with the longest sequence: set rope_type "
            "to 'default'"
        )
    return FAMILIES[config.model_type]


def layers_of(llm: PreTrainedModel) -> nn.ModuleList:
    """The layers of a decoder."""
    return llm.base_model.get_submodule(family_of(llm.config).layers)


# ---- attention at short lengths on CPU
# ------------------------------------------------------------------------------------------


def matmul_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **_):
    """Attention written as two matrix products: on CPUs, several times faster than SDPA's bf16 backward below about 500
    tokens.

    query: (b, heads, q, c); key, value: (b, kv heads, k, c); attention_mask: additive (b, 1, q, k). Returns (b, q,
    heads, c). s_aux: attention sinks, one logit per head that takes probability and carries no value (gpt_oss).
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query * (scaling or query.shape[-1] ** -0.5), key.transpose(-1, -2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + attention_mask.to(scores.dtype)
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("matmul", matmul_attention)
AttentionMaskInterface.register("matmul", eager_mask)


# ---- what the hooks read
# --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowModulation:
    """Scale, shift and gate of attention and feed-forward, for every image of a batch and every layer.

    vectors: (layers, 6, m + 1, d) fp32; the first of the m + 1 is for text and exactly zero. row: which of them each
    row takes.
    """

    vectors: Float[Tensor, "layers 6 m d"]
    row: Int[Tensor, " n"]


class Context:
    """What the hooks of one decoder read during a forward pass (and its backward, under activation checkpointing)."""

    def __init__(self):
        self.axes: Int[Tensor, "3 b t"] | None = None
        self.row: Int[Tensor, " n"] | None = None
        self.groups: Groups | None = None

    def __deepcopy__(self, memo):
        """A copied model gets a context of its own, without the tensors of the last forward pass."""
        return memo.setdefault(id(self), Context())


class Site:
    """A place in one layer where rows are modulated; `vectors` are its own, so that all layers compile to the same
    code."""

    def __init__(self, context: Context):
        self.context = context
        self.vectors: tuple[Float[Tensor, "m d"], ...] | None = None

    def __deepcopy__(self, memo):
        """A copy in another model, without the tensors of the last forward pass."""
        copied = memo[id(self)] = copy.copy(self)
        copied.context, copied.vectors = copy.deepcopy(self.context, memo), None
        return copied

    def of_rows(self, index: int, like: Tensor) -> Float[Tensor, "*rows d"]:
        """One of the site's vectors for every row."""
        row = self.context.row.to(like.device)  # a layer may be on another device than the one where rows enter
        return self.vectors[index].to(like.device).index_select(0, row).view(like.shape)


class ModulateInput(Site):
    """Forward pre-hook: h + h * scale + shift, in fp32, on what enters a module. relative: the shift grows with the RMS
    of h."""

    def __init__(self, context: Context, relative: bool):
        super().__init__(context)
        self.relative = relative

    def __call__(self, module, args, kwargs):
        if self.vectors is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        h, shift = hidden.float(), self.of_rows(1, hidden)
        if self.relative:
            shift = shift * h.detach().square().mean(-1, keepdim=True).sqrt()
        h = torch.addcmul(h + shift, h, self.of_rows(0, hidden)).to(hidden.dtype)
        return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})


class GateOutput(Site):
    """Forward hook: h * (1 + gate), in fp32, on what leaves a module for the residual stream."""

    def __call__(self, module, args, output):
        if self.vectors is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        h = hidden.float()
        h = torch.addcmul(h, h, self.of_rows(0, hidden)).to(hidden.dtype)
        return (h, *output[1:]) if isinstance(output, tuple) else h


class AxialRotary:
    """Forward hook on a rotary module: its frequencies turn with time, row and column in turns (interleaved, as in
    Qwen3-VL).

    Text has the same index on all three axes, so its rotation is bit-equal to the model's own.
    """

    def __init__(self, context: Context, axis: Int[Tensor, " c"]):
        self.context, self.axis = context, axis

    def __call__(self, module, args, kwargs, output):
        if self.context.axes is None:
            return None
        _, rows, columns = self.context.axes
        by_row, by_column = (_rotate(module, args, kwargs, positions) for positions in (rows, columns))
        axis = self.axis.to(output[0].device)
        return tuple(
            torch.where(axis == 0, t, torch.where(axis == 1, r, c))
            for t, r, c in zip(output, by_row, by_column, strict=True)
        )


def _rotate(module, args, kwargs, positions):
    """The rotary module's own answer at other positions (forward itself, so that its hooks do not run again)."""
    if "position_ids" in kwargs:
        return module.forward(*args, **{**kwargs, "position_ids": positions})
    return module.forward(args[0], positions, *args[2:], **kwargs)


def frequency_axes(kind: type[nn.Module], config) -> Int[Tensor, " c"]:
    """Which position axis (0 time, 1 row, 2 column) each channel of a rotary module's output turns with.

    The channel order differs between families: frequencies twice in a row (llama), each frequency doubled (glm), or
    once (gpt_oss); it shows in what the module answers at position 1. A fresh module is asked, because the model's own
    may still be on "meta".
    """
    by_layer_type = "layer_type" in inspect.signature(kind.forward).parameters
    with torch.device("cpu"):
        ones = torch.ones(1, 1, dtype=torch.long)
        cosine = kind(config)(torch.zeros(1), ones, *(config.layer_types[:1] if by_layer_type else ()))[0].flatten()
        half, channel = len(cosine) // 2, torch.arange(len(cosine))
    if torch.equal(cosine[:half], cosine[half:]):
        return channel % half % 3
    if torch.equal(cosine[0::2], cosine[1::2]):
        return channel // 2 % 3
    return channel % 3


# ---- the driver
# -----------------------------------------------------------------------------------------------------------------


class Backbone:
    """A Hugging Face causal LM, driven row by row.

    axial: give images axial rotary positions (families with rotary positions only). twins: for each layer, the
    modules that rows of images pass through instead (fusion.unified.modality); listens: they project what the LLM
    holds themselves (fusion.unified.kv_projection). Installs its hooks on the given model once.
    """

    def __init__(
        self, llm: PreTrainedModel, axial: bool = True, twins: nn.ModuleList | None = None, listens: bool = False
    ):
        self.llm, self.family, self.context = llm, family_of(llm.config), Context()
        self.axial, self.by_modality = axial and self.family.positions == "rotary", twins is not None
        self.handles = []
        layers = layers_of(llm)
        self.sites = [self._hook_layer(layer) for layer in layers]
        if twins is not None:
            for layer, modules in zip(layers, twins, strict=False):  # last comes the norm behind all layers
                if listens:
                    route_deep(layer, modules, self.context, self.family, len(layers))
                else:
                    route(layer, modules, self.context, self.family.heads_first)
            route(above(llm, self.family), twins[-1], self.context, self.family.heads_first)
        if self.axial:
            self._hook_rotary(llm.base_model.rotary_emb)

    def _hook_layer(self, layer: nn.Module) -> tuple[Site, Site, Site, Site]:
        """Attention's input and gate, then those of the feed-forward."""
        family, sites = self.family, []
        for entry, leave in (
            (family.attention, family.attention_gate),
            (family.feed_forward, family.feed_forward_gate),
        ):
            sites += [ModulateInput(self.context, relative=not family.pre_norm), GateOutput(self.context)]
            self.handles.append(layer.get_submodule(entry).register_forward_pre_hook(sites[-2], with_kwargs=True))
            self.handles.append(layer.get_submodule(leave).register_forward_hook(sites[-1]))
        return tuple(sites)

    def _hook_rotary(self, rotary: nn.Module) -> None:
        axis = frequency_axes(type(rotary), self.llm.config)
        self.handles.append(rotary.register_forward_hook(AxialRotary(self.context, axis), with_kwargs=True))

    def unhook(self) -> None:
        """Take the hooks off, for another driver of the same model."""
        for handle in self.handles:
            handle.remove()

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.llm.config.num_hidden_layers

    def mask(self, query: Rows, key: Rows):
        """The mask in the form that the model's attention reads: one, or a dict by layer type where the config has
        layer types."""
        window = getattr(self.llm.config, "sliding_window", None)
        kinds = getattr(self.llm.config, "layer_types", None)
        if kinds is None:
            return self._one_mask(query, key, window)
        return {
            kind: self._one_mask(query, key, window if kind == "sliding_attention" else None) for kind in set(kinds)
        }

    def _one_mask(self, query: Rows, key: Rows, window: int | None):
        kind = self.llm.config._attn_implementation
        if kind == "flex_attention":
            return block_mask(query, key, window)
        seen = visible(query, key, window)
        if kind == "sdpa":
            return seen[:, None]
        if kind in ("eager", "matmul"):
            return additive(seen, self._score_dtype(seen.device.type))
        raise ValueError(
            f"{kind!r} attention ignores a mixed mask: choose 'sdpa', 'eager', 'matmul' or 'flex_attention'"
        )

    def _score_dtype(self, device: str) -> torch.dtype:
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.llm.dtype

    def __call__(
        self,
        embeds: Float[Tensor, "b t d"],
        position: Int[Tensor, "3 b t"],
        mask,
        modulation: RowModulation | None = None,
        cache: DynamicCache | None = None,
        image_index: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t d"]:
        """Hidden states after the decoder's final norm. mask: from `mask`; cache: keys before these rows, extended by
        them; image_index: -1 on text, None where all is text."""
        self._set_context(position, modulation)
        self.context.groups = Groups.of(image_index) if self.by_modality and image_index is not None else None
        output = self.llm.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=position[0],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state.to(embeds.device)

    def _set_context(self, position: Int[Tensor, "3 b t"], modulation: RowModulation | None) -> None:
        self.context.axes = position if self.axial else None
        self.context.row = None if modulation is None else modulation.row
        for layer, sites in enumerate(self.sites):
            vectors = (None,) * 6 if modulation is None else modulation.vectors[layer].unbind()
            for site, part in zip(sites, (vectors[0:2], vectors[2:3], vectors[3:5], vectors[5:6]), strict=True):
                site.vectors = None if modulation is None else part

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The LLM's own head with its own scaling, written as its CausalLM class writes it."""
        config = self.llm.config
        logits = self.llm.get_output_embeddings()(hidden)
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # granite
            logits = logits / divisor
        if (factor := getattr(config, "logit_scale", None)) is not None:  # cohere
            logits = logits * factor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # gemma, nanochat
            logits = torch.tanh(logits / cap) * cap
        return logits
