"""Tiny random language models of every supported Hugging Face family, and a tiny tokenizer for them.

The models keep what makes their family special (sliding windows, layers without positions, multipliers, experts, soft
caps, partial rotary) at sizes where a forward pass takes milliseconds. Weights are drawn wider than a real
initialisation, and what would be constant is drawn too, so that attention is peaked, experts are chosen with a margin,
and no bias hides behind its 0.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 320
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
}

WINDOW = 16
EVERY_LAYER_SLIDES = {"sliding_window": WINDOW}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ("sliding_attention", "full_attention")}

# Two heads of 32: a quarter of a head then still holds four rotary frequencies.
WIDE_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GRANITE = {"embedding_multiplier": 6.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}

FAMILIES: dict[str, dict] = {
    "llama": {},
    "mistral": EVERY_LAYER_SLIDES,
    "ministral3": {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}},
    "mixtral": EXPERTS | EVERY_LAYER_SLIDES,
    "qwen2": ALTERNATING | {"use_sliding_window": True},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "gemma": {},
    "gemma2": ALTERNATING,
    "gemma3_text": ALTERNATING,
    "phi": {},
    "phi3": EVERY_LAYER_SLIDES,
    "olmo": {},
    "olmo2": {},
    "olmo3": ALTERNATING,
    "olmoe": EXPERTS,
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": GRANITE,
    "granitemoe": EXPERTS | GRANITE,
    "glm": {},
    "glm4": {},
    "cohere2": ALTERNATING | {"logit_scale": 0.5},
    "starcoder2": EVERY_LAYER_SLIDES,
    "stablelm": WIDE_HEADS,
    "gpt2": {},
    "gpt_neox": WIDE_HEADS,
    "helium": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "seed_oss": {},
    "apertus": {"rope_parameters": LLAMA3},
    "arcee": {},
    "nanochat": {},
    "gpt_oss": EXPERTS | ALTERNATING | {"rope_parameters": YARN | {"truncate": False}},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.1},
    "bitnet": {},
    "cohere": {"logit_scale": 0.5},
    "diffllama": {},
    "exaone4": ALTERNATING,
    "flex_olmo": EXPERTS,
    "hunyuan_v1_moe": EXPERTS | {"moe_topk": 2},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "ministral": ALTERNATING,
    "nemotron": {},
    "persimmon": WIDE_HEADS,
    "phimoe": EXPERTS | EVERY_LAYER_SLIDES,
    "vaultgemma": ALTERNATING,
}


def tiny_config(family: str, **overrides):
    """The `PretrainedConfig` of a tiny model; `family` is any `model_type` of transformers, overrides are config
    fields."""
    fields = SIZES | FAMILIES.get(family, {}) | overrides
    if pattern := fields.get("layer_types"):
        fields["layer_types"] = [pattern[layer % len(pattern)] for layer in range(fields["num_hidden_layers"])]
    return AutoConfig.for_model(family, **fields)


def tiny_llm(family: str, attn_implementation: str | None = None, seed: int = 0, **overrides) -> PreTrainedModel:
    """A causal language model of the family, float32, in eval mode, the same weights for the same arguments."""
    config = tiny_config(family, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


CORPUS = (
    "a red circle left of a blue square. a green triangle above a black cross.",
    "draw a large yellow circle on a white ground. make the square orange.",
    "how many circles are there? two. is there a purple cross? no. what colour is it? cyan.",
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCAB` entries that reproduces any text; its only special token ends a
    text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
