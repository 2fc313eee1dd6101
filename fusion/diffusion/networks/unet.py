"""UNets: DDPM (Ho et al., arXiv 2006.11239), latent / Stable Diffusion (arXiv 2112.10752), SDXL (arXiv 2307.01952).

What the transformers of the other pages are compared with. Convolutions in residual blocks, level after level at half
the size, and back up beside what the way down has made; the time, and a class, are added within every block. Levels
with attention look over the image, and in latent diffusion also at the text. SDXL is told a pooled vector of the text
and the image's size too.

The networks are diffusers' own, called as the other pages are. Words that Conditioning.mask leaves out are hidden; the
published pipelines read their padding, which is to leave the mask out.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.name_tables import Row

PLAIN, READING = CLASSES = "UNet2DModel", "UNet2DConditionModel"
PIXELS = 8  # of the image per latent pixel, in which SDXL is told sizes
SIZES, SIZE_WIDTH = 6, 256  # how many numbers they are, and features of each
ENDS = re.compile(
    r"(conv2|proj_out|attentions\.\d+\.to_out\.0|conv_out)$"
)  # of residual blocks, transformers, attention and the network


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet; the defaults are Stable Diffusion 1.5's.

    widths: of the levels, from fine to coarse. layers: residual blocks of a level on the way down; there is one more on
    the way up. attention: for each level, how many transformer blocks follow a residual block; where no text is read
    they are one attention. text_width, pooled_width: of text tokens and of the vector for all of the text, None for
    networks that do not read them. classes: of labels. others: more settings of the class of diffusers, by its own
    names.
    """

    channels: int = 4
    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    attention: tuple[int, ...] = (1, 1, 1, 0)
    text_width: int | None = 768
    pooled_width: int | None = None
    classes: int | None = None
    others: dict = field(default_factory=dict)

    def __post_init__(self):
        if len(self.attention) != len(self.widths) or (self.pooled_width is not None and self.text_width is None):
            raise ValueError(
                f"attention={self.attention}, widths={self.widths}: one number each per level; and pooled text comes "
                "with text only"
            )

    @property
    def stride(self) -> int:
        """What the sides of a latent are multiples of: each level but the last halves them."""
        return 2 ** (len(self.widths) - 1)


class UNet(nn.Module):
    """See the head of this file."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        import diffusers  # takes seconds, and no other page needs it

        self.config, settings = config, to_diffusers(config)
        try:
            self.network = getattr(diffusers, settings.pop("_class_name"))(**settings)
        except TypeError as error:
            raise ValueError(f"a setting that diffusers' class has not ({error})") from None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """DDPM's start: nothing comes out of residual blocks, of attention and of the last layer; diffusers' own
        classes leave that out."""
        for name, part in self.network.named_modules():
            if ENDS.search(name):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], cond: Conditioning
    ) -> Float[Tensor, "b c h w"]:
        """Noised latents of unit scale at times t in [0, 1] (1 is noise) -> what the network predicts."""
        config, told, halved = self.config, {}, self.config.stride
        if config.text_width is None and any(
            side % halved for side in x.shape[-2:]
        ):  # the other class rounds as it comes back up
            raise ValueError(
                f"size {x.shape[-2]} x {x.shape[-1]} is halved down to a level of 1/{halved}: make both sides "
                f"multiples of {halved}"
            )
        if config.classes is not None:
            told["class_labels"] = cond.given("label")
        if config.text_width is not None:
            told |= {"encoder_hidden_states": cond.given("tokens"), "encoder_attention_mask": cond.mask}
        if config.pooled_width is not None:
            height, width = (PIXELS * side for side in x.shape[-2:])
            sizes = t.new_tensor([height, width, 0, 0, height, width]).expand(
                len(x), -1
            )  # of an image that was neither scaled nor cropped
            told["added_cond_kwargs"] = {"text_embeds": cond.given("pooled"), "time_ids": sizes}
        return self.network(x.to(self.network.dtype), 1000 * t, **told).sample.to(x.dtype)


# ---- diffusers' UNet2DModel and UNet2DConditionModel ----


def fields_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Turn width, ratios and heads into the widths of the levels and the settings of diffusers.

    A UNet reads no pooled text unless told to: that is SDXL's.
    """
    rest = {"pooled_width": None} | {
        key: value for key, value in settings.items() if key not in ("width", "ratios", "heads")
    }
    if "width" in settings:
        rest["widths"] = [settings["width"] * ratio for ratio in settings.get("ratios", (1, 2, 2))]
    if "heads" in settings:  # diffusers calls them attention_head_dim, whatever its documentation says
        rest["others"] = {"attention_head_dim": settings["heads"]} | dict(settings.get("others", {}))
    return rest


def from_diffusers(settings: dict) -> UNetConfig:
    """The config of either class. ValueError for networks that are told what Conditioning has not, or whose outputs are
    not their inputs."""
    foreign = {"time_embedding_type": "positional", "class_embed_type": None, "encoder_hid_dim_type": None}
    strange = [name for name, usual in foreign.items() if settings.get(name, usual) != usual]
    if (
        strange
        or settings.get("addition_embed_type") not in (None, "text_time")
        or settings["out_channels"] != settings["in_channels"]
    ):
        raise ValueError(
            "a UNet with other outputs than inputs, or told more than time, class, text and sizes: the plain ones can "
            "be loaded"
        )
    depths, kinds, classes = (
        settings.get("transformer_layers_per_block", 1),
        settings["down_block_types"],
        settings.get("num_class_embeds"),
    )
    depths = [depths] * len(kinds) if isinstance(depths, int) else depths
    pooled = settings.get("projection_class_embeddings_input_dim")
    config = UNetConfig(
        channels=settings["in_channels"],
        widths=tuple(settings["block_out_channels"]),
        layers=settings["layers_per_block"],
        attention=tuple(depth if "Attn" in kind else 0 for kind, depth in zip(kinds, depths, strict=True)),
        text_width=settings.get("cross_attention_dim"),
        pooled_width=None if pooled is None else pooled - SIZES * settings["addition_time_embed_dim"],
        classes=None if classes is None else classes - 1,
    )
    same = to_diffusers(config)
    return replace(
        config,
        others={
            name: value
            for name, value in settings.items()
            if name[0] != "_" and (name not in same or same[name] != value)
        },
    )


def to_diffusers(config: UNetConfig) -> dict:
    """The settings of either class, and which it is."""
    reading = config.text_width is not None
    kinds = [f"{('CrossAttn' if reading else 'Attn') if depth else ''}DownBlock2D" for depth in config.attention]
    settings = {
        "_class_name": READING if reading else PLAIN,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.layers,
        "down_block_types": kinds,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
    }
    if config.classes is not None:
        settings["num_class_embeds"] = config.classes + 1
    if reading:
        settings |= {
            "cross_attention_dim": config.text_width,
            "transformer_layers_per_block": [max(depth, 1) for depth in config.attention],
        }
    if config.pooled_width is not None:
        settings |= {"addition_embed_type": "text_time", "addition_time_embed_dim": SIZE_WIDTH}
        settings["projection_class_embeddings_input_dim"] = config.pooled_width + SIZES * SIZE_WIDTH
    return settings | config.others


def names(config: UNetConfig) -> list[Row]:
    """Our tensors are theirs."""
    with torch.device("meta"):
        return [Row(f"network.{name}", name) for name in UNet(config).network.state_dict()]
