"""Tiny networks of every architecture, their diffusers references, and how each is called: tables for tests."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from math import isqrt
from typing import Any

import diffusers
import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from torch import Tensor, nn

from fusion.diffusion.architectures import ARCHITECTURES
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.crossdit import CrossDiT, CrossDiTConfig
from fusion.diffusion.networks.dit import CONDITIONINGS, DiT, DiTConfig
from fusion.diffusion.networks.ditair import DiTAir, DiTAirConfig
from fusion.diffusion.networks.flux import Flux, FluxConfig
from fusion.diffusion.networks.flux2 import Flux2, Flux2Config
from fusion.diffusion.networks.hidream import HiDream, HiDreamConfig
from fusion.diffusion.networks.lumina2 import Lumina2, Lumina2Config
from fusion.diffusion.networks.mmdit import MMDiT, MMDiTConfig
from fusion.diffusion.networks.pixart import PixArt, PixArtConfig
from fusion.diffusion.networks.sana import Sana, SanaConfig
from fusion.diffusion.networks.unet import UNet, UNetConfig
from fusion.diffusion.networks.uvit import UViT, UViTConfig
from fusion.diffusion.registry import build
from fusion.sequence.patches import cells, patchify, unpatchify

SIZES = {"width": 48, "layers": 2, "heads": 4}
ODD = SIZES | {"layers": 3}
TEXT, POOLED, LAYER = 32, 24, 20  # widths of tokens, of pooled text and of a language model's layers
WIDTHS = {"text_width": TEXT, "pooled_width": POOLED}
LEVELS = {"widths": (8, 16), "layers": 1, "attention": (0, 1)}  # of UNets
GROUPS = {"norm_num_groups": 8}  # of UNets that are 16 wide
READS = {"reads": (0, 1, 1), "layer_width": LAYER}


# ---- asking the references what ours are asked ----


def ask_dit(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    # Their embedding of labels drops some at random in training; in eval it is a table.
    return theirs(x, timestep=1000 * t, class_labels=cond.label).sample[:, :4]


def ask_pixart(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    told = {"resolution": None, "aspect_ratio": None}
    if theirs.config.use_additional_conditions:
        height, width = 8 * x.shape[-2], 8 * x.shape[-1]
        told = {
            "resolution": torch.tensor([[height, width]] * len(x)).float(),
            "aspect_ratio": torch.tensor([[height / width]] * len(x)),
        }
    kwargs = {"encoder_hidden_states": cond.tokens, "encoder_attention_mask": cond.mask, "added_cond_kwargs": told}
    return theirs(x, timestep=1000 * t, **kwargs).sample[:, :4]


def ask_sana(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    return theirs(x, cond.tokens, 1000 * t, encoder_attention_mask=cond.mask).sample


def ask_lumina2(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    return -theirs(x, 1 - t, cond.tokens, cond.mask).sample  # as its pipeline asks it, and takes the answer


def ask_mmdit(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    return theirs(x, cond.tokens, cond.pooled, 1000 * t).sample


def ask_flux(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    size = [side // 2 for side in x.shape[-2:]]
    where = cells(size).float()
    ids = torch.cat([torch.zeros(len(where), 1), where], dim=1), torch.zeros(cond.tokens.shape[1], 3)
    rows = theirs(patchify(x, 2, rank=2), cond.tokens, cond.pooled, t, *ids, guidance=cond.guidance).sample
    return unpatchify(rows, size, 2, 4)


def ask_flux2(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    patch = isqrt(theirs.config.in_channels // x.shape[1])
    size = [side // patch for side in x.shape[-2:]]
    once, words = torch.arange(1), torch.arange(cond.tokens.shape[1])
    drawn, text = (
        torch.cartesian_prod(once, *map(torch.arange, size), once),
        torch.cartesian_prod(once, once, once, words),
    )
    rows = theirs(patchify(x, patch, rank=2), cond.tokens, t, drawn, text, guidance=cond.guidance).sample
    return unpatchify(rows, size, patch, x.shape[1])


def ask_hidream(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    for part in (
        theirs.modules()
    ):  # their experts have gradients in training only, and the rest of the network draws in eval only
        part.training = isinstance(part, MOEFeedForwardSwiGLU)
    return -theirs(x, 1000 * t, cond.tokens, cond.layers, cond.pooled).sample  # as their pipeline does


def ask_unet(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    return theirs(x, 1000 * t, class_labels=cond.label).sample


def ask_reading_unet(theirs, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Call the diffusers network on latents x (b, c, h, w) at times t (b,) and return its prediction as our network
    gives it."""
    height, width = 8 * x.shape[-2], 8 * x.shape[-1]
    told = {
        "text_embeds": cond.pooled,
        "time_ids": torch.tensor([[height, width, 0, 0, height, width]] * len(x)).float(),
    }
    return theirs(x, 1000 * t, cond.tokens, encoder_attention_mask=cond.mask, added_cond_kwargs=told).sample


# ---- the tables ----


@dataclass(frozen=True)
class Reference:
    """A class of diffusers in small. ask: it on (x, t, cond), as ours answers; square: whether it takes square images
    only."""

    name: str
    settings: dict
    ask: Callable[..., Tensor]
    square: bool = False

    def build(self) -> nn.Module:
        """With random weights throughout; gates and heads too."""
        torch.manual_seed(0)
        model = getattr(diffusers, self.name)(**self.settings)
        stir(model)
        return model.eval()


LATENT = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
}

DIT = partial(
    Reference, "DiTTransformer2DModel", ask=ask_dit, square=True
)  # it puts the patches of squares together, and of nothing else
PIXART = partial(Reference, "PixArtTransformer2DModel", ask=ask_pixart)
SANA = partial(Reference, "SanaTransformer2DModel", ask=ask_sana)
LUMINA2 = partial(Reference, "Lumina2Transformer2DModel", ask=ask_lumina2)
MMDIT = partial(Reference, "SD3Transformer2DModel", ask=ask_mmdit)
FLUX = partial(Reference, "FluxTransformer2DModel", ask=ask_flux)
FLUX2 = partial(Reference, "Flux2Transformer2DModel", ask=ask_flux2)
HIDREAM = partial(Reference, "HiDreamImageTransformer2DModel", ask=ask_hidream)
UNET = partial(Reference, "UNet2DModel", ask=ask_unet)
READING_UNET = partial(Reference, "UNet2DConditionModel", ask=ask_reading_unet)

pixart = LATENT | {"cross_attention_dim": 48, "caption_channels": TEXT, "norm_eps": 1e-6, "out_channels": 8}
sana = LATENT | {
    "out_channels": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 24,
    "cross_attention_dim": 48,
}
sana |= {"caption_channels": TEXT, "mlp_ratio": 2.5}
lumina2 = {
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 48,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 4,
}
lumina2 |= {"multiple_of": 8, "axes_dim_rope": (4, 4, 4), "axes_lens": (32, 16, 16), "cap_feat_dim": TEXT}
mmdit = LATENT | {
    "out_channels": 4,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 48,
    "pooled_projection_dim": POOLED,
}
mmdit |= {"pos_embed_max_size": 10}
flux = {
    "patch_size": 1,
    "in_channels": 16,
    "num_single_layers": 2,
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": POOLED,
}
flux |= {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2, "axes_dims_rope": (4, 4, 4)}
flux2 = {
    "patch_size": 1,
    "in_channels": 16,
    "num_single_layers": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 4, 2, 2),
}
flux2 |= {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 2}
hidream = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "axes_dims_rope": (4, 4, 4),
}
hidream |= {"num_layers": 2, "num_single_layers": 2, "llama_layers": [2, 0, 1, 1], "max_resolution": (16, 16)}
hidream |= {"caption_channels": [TEXT, LAYER], "text_emb_dim": POOLED}

plain = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
plain |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
ddpm = plain | {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
reading = plain | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
reading |= {"attention_head_dim": 2, "cross_attention_dim": TEXT}
sdxl = {
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
sdxl |= {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
sdxl |= {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": POOLED + 6 * 8}

REFERENCES = {
    "dit": DIT(LATENT | {"out_channels": 8, "num_embeds_ada_norm": 10, "norm_eps": 1e-6}),
    "dit of other eps and no variance": DIT(LATENT | {"num_embeds_ada_norm": 10}),
    "pixart": PIXART(pixart | {"use_additional_conditions": False}),
    "pixart that is told sizes": PIXART(pixart | {"use_additional_conditions": True, "interpolation_scale": 2.0}),
    "sana": SANA(sana | {"patch_size": 1}),
    "sana 1.5, and with positions": SANA(sana | {"qk_norm": "rms_norm_across_heads", "interpolation_scale": 2.0}),
    "lumina2": LUMINA2(lumina2 | {"num_kv_heads": 2}),
    "lumina2 of other sizes": LUMINA2(
        lumina2 | {"num_kv_heads": 4, "ffn_dim_multiplier": 1.5, "num_refiner_layers": 2, "norm_eps": 1e-6}
    ),
    "mmdit, sd3": MMDIT(mmdit),
    "mmdit, sd3.5 medium": MMDIT(mmdit | {"num_layers": 3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}),
    "flux": FLUX(flux | {"guidance_embeds": False}),
    "flux that is told guidance": FLUX(flux | {"guidance_embeds": True}),
    "flux2": FLUX2(flux2 | {"guidance_embeds": False}),
    "flux2 that is told guidance": FLUX2(flux2 | {"guidance_embeds": True, "mlp_ratio": 2.5, "rope_theta": 500}),
    "hidream": HIDREAM(hidream | {"num_routed_experts": 4, "num_activated_experts": 2}),
    "hidream of one expert per row": HIDREAM(hidream | {"num_routed_experts": 3, "num_activated_experts": 1}),
    "hidream without experts": HIDREAM(hidream | {"num_routed_experts": 0, "num_activated_experts": 0}),
    "unet, ddpm": UNET(ddpm),
    "unet that is told classes": UNET(plain | {"num_class_embeds": 11, "resnet_time_scale_shift": "scale_shift"}),
    "unet, stable diffusion": READING_UNET(reading),
    "unet, sdxl": READING_UNET(reading | sdxl),
}

SMALL = {
    "dit, labels": lambda: DiT(DiTConfig(**SIZES, classes=10)),
    **{
        f"dit, text, {kind}": lambda kind=kind: DiT(DiTConfig(**SIZES, text_width=TEXT, conditioning=kind))
        for kind in CONDITIONINGS
    },
    "uvit, labels": lambda: UViT(UViTConfig(**ODD, size=(4, 4), classes=10)),
    "uvit, text": lambda: UViT(UViTConfig(**ODD, size=(4, 4), text_width=TEXT, words=10, time_mlp=True)),
    "pixart": lambda: PixArt(PixArtConfig(**SIZES, text_width=TEXT)),
    "sana": lambda: Sana(SanaConfig(channels=4, patch_size=2, **SIZES, cross_heads=2, text_width=TEXT, qk_norm=True)),
    "lumina2": lambda: Lumina2(
        Lumina2Config(channels=4, **SIZES, refiners=1, kv_heads=2, axes=(4, 4, 4), text_width=TEXT)
    ),
    "crossdit": lambda: CrossDiT(CrossDiTConfig(channels=4, **SIZES, **WIDTHS)),
    "ditair": lambda: DiTAir(DiTAirConfig(channels=4, **SIZES, **WIDTHS)),
    "ditair-lite": lambda: DiTAir(DiTAirConfig(channels=4, **SIZES, **WIDTHS, share_attention=True)),
    "mmdit": lambda: MMDiT(MMDiTConfig(channels=4, **SIZES, **WIDTHS, qk_norm=True, dual=(1,), text_mask=True)),
    "flux": lambda: Flux(
        FluxConfig(channels=4, **SIZES, single=1, axes=(4, 4, 4), **WIDTHS, guidance=True, text_mask=True)
    ),
    "flux2": lambda: Flux2(
        Flux2Config(channels=4, **SIZES, single=1, axes=(4, 4, 2, 2), text_width=TEXT, guidance=True, text_mask=True)
    ),
    "hidream": lambda: HiDream(
        HiDreamConfig(channels=4, **SIZES, single=1, axes=(4, 4, 4), **WIDTHS, **READS, text_mask=True)
    ),
    "unet, labels": lambda: UNet(
        UNetConfig(**LEVELS, text_width=None, classes=10, others={"norm_num_groups": 4, "attention_head_dim": 4})
    ),
    "unet, text": lambda: UNet(
        UNetConfig(**LEVELS, text_width=TEXT, others={"norm_num_groups": 4, "attention_head_dim": 2})
    ),
    "unet, text and sizes": lambda: UNet(
        UNetConfig(**LEVELS, **WIDTHS, others={"norm_num_groups": 4, "attention_head_dim": 2})
    ),
}


# What a small network needs beside the usual sizes, or instead of them.
OWN: dict[str, dict[str, Any]] = {
    "unet": {"width": 16, "ratios": [1, 2], "layers": 1, "heads": 2, "attention": [0, 1], "others": GROUPS},
    "uvit": {"layers": 3, "words": 64},
    "mmdit": {"qk_norm": True},
    "flux": {"layers": 1, "single": 1},
    "flux2": {"layers": 1, "single": 1},
    "hidream": {"layers": 1, "single": 1, "width": 32, "heads": 2},
    "lumina2": {"layers": 1, "refiners": 1},
}


def small(name: str, patch_size: int = 16) -> dict[str, Any]:
    """Settings of a small network of any architecture for images of 32 x 32, as `registry.build` takes them."""
    known = {field.name for field in fields(ARCHITECTURES[name].config)}
    sizes = {"patch_size": patch_size, "size": [32 // patch_size] * 2}
    usual = {"width": 64, "layers": 2, "heads": 4} | {key: value for key, value in sizes.items() if key in known}
    return usual | OWN.get(name, {})


# What learns from captioned images of three channels in a test: what it sees -> network.
LEARNERS = {
    **{f"dit, {kind}": partial(build, "dit", small("dit") | {"conditioning": kind}) for kind in CONDITIONINGS},
    **{name: partial(build, name, small(name)) for name in ARCHITECTURES if name != "dit"},
    "ditair-lite": partial(build, "ditair", small("ditair") | {"share_attention": True}),
}


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Random weights throughout, of a scale that neither fades nor grows."""
    for p in model.parameters():
        p.normal_(std=0.3 if p.ndim == 1 else p[0].numel() ** -0.5)


def condition(model: nn.Module, batch: int) -> Conditioning:
    """What the network reads, for a batch; the rows' texts are of 1, 2, ... tokens."""
    config = model.config
    if getattr(config, "classes", None) is not None:
        return Conditioning(label=torch.arange(batch) % 11)
    tokens, pooled = (
        torch.randn(batch, 5, TEXT),
        torch.randn(batch, POOLED) if getattr(config, "pooled_width", None) else None,
    )
    guidance = torch.rand(batch) * 5 if getattr(config, "guidance", False) else None
    mask = torch.arange(5) < torch.arange(batch)[:, None] % 5 + 1
    if not hasattr(config, "reads"):
        return Conditioning(tokens, mask, pooled, guidance=guidance)
    layers = torch.randn(max(config.reads) + 1, batch, 6, LAYER)
    return Conditioning(
        tokens, mask, pooled, layers=layers, layers_mask=torch.arange(6) < torch.arange(batch)[:, None] % 6 + 1
    )


def one(cond: Conditioning, index: int) -> Conditioning:
    """The condition of one row of the batch."""
    given = {name: value for name, value in vars(cond).items() if value is not None}
    return Conditioning(
        **{
            name: value[:, index : index + 1] if name == "layers" else value[index : index + 1]
            for name, value in given.items()
        }
    )
