"""The model that the benchmarks measure: width 256, 6 layers, 4 heads, pixels in patches of 4, random weights."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fusion
from fusion.generation.api import Fusion
from fusion.recipes.tokenizer import train_tokenizer
from fusion.worlds.shapes import plain_text

WIDTH, LAYERS, HEADS, VOCAB = 256, 6, 4, 400
SIDE, PATCH = 32, 4  # of an image and of a patch, in pixels: 64 patches


def subject() -> Fusion:
    """Build an extended Llama in fp32; weights that start at zero are randomised, so that no product is with zeros."""
    draw = np.random.default_rng(0)
    tokenizer = train_tokenizer("bpe", [plain_text(draw) for _ in range(200)], VOCAB)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=688,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = fusion.from_llm(
            Path(folder), patch_size=PATCH, embed="linear", head="linear", dtype=torch.float32
        )  # as in transfusion-pytorch
    for parameter in model.model.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model
