"""A small autoencoder for CPUs: ConvNeXt blocks over cells of pixels, and few, smooth latents.

At full resolution a network of convolutions spends its time on pixels that a plain image does not need; here a cell
of 4 x 4 pixels is one row from the beginning (compare the pixel unshuffle of DC-AE, arXiv 2410.10733). Its latents have
no posterior to learn: noise is put on them while it trains (train.codec), so that latents near each other mean images
that look alike.
"""

from collections.abc import Sequence

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Conv(nn.Conv2d):
    """A convolution over height and width of (b, h, w, channels)."""

    def forward(self, x: Float[Tensor, "b h w inputs"]) -> Float[Tensor, "b h w outputs"]:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545)."""

    def __init__(self, width: int, kernel: int, expansion: int = 4):
        super().__init__()
        self.around = Conv(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.SiLU(), nn.Linear(expansion * width, width))

    def forward(self, x: Float[Tensor, "b h w width"]) -> Float[Tensor, "b h w width"]:
        return x + self.mlp(self.norm(self.around(x)))


class Blocks(nn.Module):
    """Several, one after the other."""

    def __init__(self, count: int, width: int, kernel: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, kernel) for _ in range(count))

    def forward(self, x: Float[Tensor, "b h w width"]) -> Float[Tensor, "b h w width"]:
        for block in self.blocks:
            x = block(x)
        return x


class Fold(nn.Module):
    """Squares of `side` x `side` become one row each."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 c2"]:
        return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.side, q=self.side)


class Unfold(Fold):
    """The inverse of Fold."""

    def forward(self, x: Float[Tensor, "b h2 w2 c2"]) -> Float[Tensor, "b h w c"]:
        return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=self.side, q=self.side)


class ConvAutoencoder(ModelMixin, ConfigMixin):
    """Pixels to latents and back, in diffusers' format.

    channels: width of each level; the first works on cells of cell x cell pixels, each following one on squares of 2 x
    2 of those before it, so that the latents are cell * 2 ** (len(channels) - 1) times smaller each way. blocks: of
    each level, on either side. latent_channels: numbers of each latent. scaling_factor, shift_factor: as
    fusion.codecs.codec reads them.
    """

    @register_to_config
    def __init__(
        self,
        channels: Sequence[int] = (48, 96),
        blocks: int = 1,
        cell: int = 4,
        kernel: int = 5,
        latent_channels: int = 6,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ):
        super().__init__()
        first, last, pixels = channels[0], channels[-1], 3 * cell**2
        up: list[nn.Module]
        down, up = [Fold(cell), Conv(pixels, first, 3, padding=1), Blocks(blocks, first, kernel)], []
        for wide, deep in zip(channels, channels[1:], strict=False):
            down += [Fold(2), nn.Linear(4 * wide, deep), Blocks(blocks, deep, kernel)]
            up = [Blocks(blocks, deep, kernel), nn.Linear(deep, 4 * wide), Unfold(2), *up]
        self.encoder = nn.Sequential(*down, nn.Linear(last, latent_channels))
        end = (
            Blocks(blocks, first, kernel),
            nn.LayerNorm(first, eps=1e-6),
            Conv(first, pixels, 3, padding=1),
            Unfold(cell),
        )
        self.decoder = nn.Sequential(nn.Linear(latent_channels, last), *up, *end)

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Raw latents, not yet shifted and scaled."""
        return self.encoder(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def decode(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Raw latents to pixels, not clamped."""
        return self.decoder(latents.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
