"""Tiny random pipelines of diffusers: encoders, tokenizers, network, VAE and scheduler, saved in its format."""

import json
import string
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from fusion.testing.reference_networks import REFERENCES, TEXT, Reference, stir

STEPS_1000 = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
DDIM = DDIMScheduler(**STEPS_1000, clip_sample=False)
DPM = DPMSolverMultistepScheduler(**STEPS_1000)
FLOW, SHIFTED = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0)
FLOW_DPM = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
BY_SIZE = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64)


def clip_tokenizer() -> CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>")]
    pieces = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *".,!?-", "▁a", "▁red", "cat"]
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -float(10 - len(piece))) for piece in pieces)]
    return T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=512)


def byte_tokenizer(template: str | None = None, **others) -> PreTrainedTokenizerFast:
    """A byte is a token, in the manner of a language model's tokenizer: its text begins with <bos>."""
    pieces = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    ends = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "padding_side": "right"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **ends | others)


def decoder(config_class, kind, width: int = 8, layers: int = 3, **others):
    """A language model that reads `byte_tokenizer`."""
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    tokens = {
        "vocab_size": 300,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _stirred(kind(config_class(**sizes, **tokens, **others)))


def gemma() -> Gemma2Model:
    return decoder(Gemma2Config, Gemma2Model, width=TEXT)


def clip(width: int, kind=CLIPTextModel, projection: int = 12, length: int = 77):
    tokens = {
        "vocab_size": 600,
        "bos_token_id": 516,
        "eos_token_id": 517,
        "pad_token_id": 517,
        "max_position_embeddings": length,
    }
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 2}
    return _stirred(kind(CLIPTextConfig(**tokens, **sizes, projection_dim=projection)))


def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=100, d_model=TEXT, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return _stirred(T5EncoderModel(config))


def vae(kind=AutoencoderKL, levels: int = 2, **settings):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    sizes = {"block_out_channels": (8,) * levels, "latent_channels": 4, "norm_num_groups": 4, "layers_per_block": 1}
    return kind(**blocks, **sizes, **settings).eval()


def flux2_vae() -> AutoencoderKLFlux2:
    made = vae(AutoencoderKLFlux2)
    made.bn.running_mean.normal_()
    made.bn.running_var.uniform_(0.5, 2)
    return made


def dc_vae() -> AutoencoderDC:
    sizes = {
        "encoder_block_out_channels": (16, 32),
        "decoder_block_out_channels": (16, 32),
        "latent_channels": 4,
        "attention_head_dim": 8,
    }
    layers = {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    blocks = {f"{half}_block_types": ("ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")}
    scales = {f"{half}_qkv_multiscales": ((), (5,)) for half in ("encoder", "decoder")}
    return AutoencoderDC(**sizes, **layers, **blocks, **scales, scaling_factor=0.4).eval()


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
    third = (
        {"text_encoder_3": t5(), "tokenizer_3": t5_tokenizer()}
        if with_t5
        else {"text_encoder_3": None, "tokenizer_3": None}
    )
    parts = {
        "transformer": REFERENCES["mmdit, sd3.5 medium"].build(),
        "vae": vae(scaling_factor=1.5, shift_factor=0.1),
        "scheduler": scheduler,
    }
    words = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer()}
    return _quiet(diffusers.StableDiffusion3Pipeline(**parts, **clips, **words, **third))


def flux(scheduler=BY_SIZE, guidance: bool = True) -> diffusers.FluxPipeline:
    network = REFERENCES["flux that is told guidance" if guidance else "flux"].build()
    encoders = {
        "text_encoder": clip(24),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": t5_tokenizer(),
    }
    return _quiet(
        diffusers.FluxPipeline(scheduler, vae(scaling_factor=0.4, shift_factor=0.1), transformer=network, **encoders)
    )


def sana(scheduler=FLOW_DPM) -> diffusers.SanaPipeline:
    return _quiet(diffusers.SanaPipeline(byte_tokenizer(), gemma(), dc_vae(), REFERENCES["sana"].build(), scheduler))


def lumina2(scheduler=SHIFTED) -> diffusers.Lumina2Pipeline:
    network = REFERENCES["lumina2"]
    network = replace(network, settings=network.settings | {"axes_lens": (300, 16, 16)}).build()
    parts = network, scheduler, vae(levels=4, scaling_factor=0.4, shift_factor=0.1), gemma(), byte_tokenizer()
    return _quiet(diffusers.Lumina2Pipeline(*parts))


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ "
    "message['content'] }}{% else %}"
    "{% for block in message['content'] %}{{ block['text'] }}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if enable_thinking is defined and not enable_thinking "
    "%}<think></think>{% endif %}{% endif %}"
)


def flux2(scheduler=BY_SIZE) -> diffusers.Flux2Pipeline:
    text = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 31,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    seen = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    config = Mistral3Config(
        text_config=text | {"model_type": "mistral", "vocab_size": 300, "pad_token_id": 0},
        vision_config=seen | {"model_type": "pixtral"},
        image_token_index=259,
    )
    reader, words = _stirred(Mistral3ForConditionalGeneration(config)), byte_tokenizer(TEMPLATE, padding_side="left")
    return _quiet(
        diffusers.Flux2Pipeline(scheduler, flux2_vae(), reader, words, _flux2_network("flux2 that is told guidance"))
    )


def klein(scheduler=BY_SIZE, distilled: bool = False) -> diffusers.Flux2KleinPipeline:
    reader, words = decoder(Qwen3Config, Qwen3ForCausalLM, layers=28), byte_tokenizer(TEMPLATE)
    return _quiet(
        diffusers.Flux2KleinPipeline(
            scheduler, flux2_vae(), reader, words, _flux2_network("flux2"), is_distilled=distilled
        )
    )


def _flux2_network(name: str):
    case = REFERENCES[name]
    return replace(case, settings=case.settings | {"joint_attention_dim": 3 * 8}).build()  # three layers side by side


def hidream(scheduler=SHIFTED) -> diffusers.HiDreamImagePipeline:
    case = REFERENCES["hidream"]
    network = replace(
        case, settings=case.settings | {"caption_channels": [TEXT, 8], "force_inference_output": True}
    ).build()
    clips = {name: clip(16, CLIPTextModelWithProjection, length=128) for name in ("text_encoder", "text_encoder_2")}
    others = {"text_encoder_3": t5(), "text_encoder_4": decoder(LlamaConfig, LlamaForCausalLM)}
    words = {
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
        "tokenizer_4": byte_tokenizer(),
    }
    parts = {"scheduler": scheduler, "vae": vae(scaling_factor=0.4, shift_factor=0.1), "transformer": network}
    return _quiet(diffusers.HiDreamImagePipeline(**parts, **clips, **others, **words))


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edit(file: Path, **changes) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(action) -> str:
    """The one line that it is refused with."""
    with pytest.raises(ValueError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)
