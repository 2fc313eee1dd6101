"""Tiny pipelines of diffusers with random weights: encoders, tokenizers, network, VAE and scheduler, to be saved as diffusers saves them."""

import string

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.architectures import REFERENCES, TEXT, Reference, stir

STEPS_1000 = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
DDIM = DDIMScheduler(**STEPS_1000, clip_sample=False)
DPM = DPMSolverMultistepScheduler(**STEPS_1000)
FLOW, SHIFTED = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0)
BY_SIZE = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64)


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *".,!?-", "▁a", "▁red", "cat"]
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -float(10 - len(piece))) for piece in pieces)]
    return T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=512)


def clip(width: int, kind=CLIPTextModel, projection: int = 12):
    tokens = {"vocab_size": 600, "bos_token_id": 516, "eos_token_id": 517, "pad_token_id": 517, "max_position_embeddings": 77}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 2}
    return _stirred(kind(CLIPTextConfig(**tokens, **sizes, projection_dim=projection)))


def t5() -> T5EncoderModel:
    config = T5Config(vocab_size=100, d_model=TEXT, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    return _stirred(T5EncoderModel(config))


def vae(**settings) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, **settings).eval()


def _stirred(model):
    stir(model)
    return model.eval()


def dit(scheduler=DDIM) -> diffusers.DiTPipeline:
    case = REFERENCES["dit"]
    network = Reference(case.name, case.settings | {"num_embeds_ada_norm": 1000}, case.ask).build()
    for block in network.transformer_blocks:  # converted checkpoints hold equal copies of these in every block
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    return _quiet(diffusers.DiTPipeline(network, vae(scaling_factor=0.5), scheduler))


def pixart(scheduler=DDIM) -> diffusers.PixArtAlphaPipeline:
    parts = t5_tokenizer(), t5(), vae(scaling_factor=0.5), REFERENCES["pixart"].build(), scheduler
    return _quiet(diffusers.PixArtAlphaPipeline(*parts))


def sd3(scheduler=SHIFTED, with_t5: bool = True) -> diffusers.StableDiffusion3Pipeline:
    clips = {name: clip(16, CLIPTextModelWithProjection) for name in ("text_encoder", "text_encoder_2")}
    third = {"text_encoder_3": t5(), "tokenizer_3": t5_tokenizer()} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    parts = {"transformer": REFERENCES["mmdit, sd3.5 medium"].build(), "vae": vae(scaling_factor=1.5, shift_factor=0.1), "scheduler": scheduler}
    words = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer()}
    return _quiet(diffusers.StableDiffusion3Pipeline(**parts, **clips, **words, **third))


def flux(scheduler=BY_SIZE, guidance: bool = True) -> diffusers.FluxPipeline:
    network = REFERENCES["flux that is told guidance" if guidance else "flux"].build()
    encoders = {"text_encoder": clip(24), "tokenizer": clip_tokenizer(), "text_encoder_2": t5(), "tokenizer_2": t5_tokenizer()}
    return _quiet(diffusers.FluxPipeline(scheduler, vae(scaling_factor=0.4, shift_factor=0.1), transformer=network, **encoders))


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
