"""Recount what papers claim of their architectures' sizes and costs, and write docs/claims.md: `python -m bench.claims`

Networks are built at their published sizes on tensors without contents (fusion.generation.cost), so that billions of
parameters take no memory. What cannot be counted, one layer of attention over 65,536 tokens, is taken from the last
record of `bench.attention`.
"""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from fusion.common.atomic import save
from fusion.diffusion import (
    Conditioning,
    DiT,
    DiTAir,
    DiTAirConfig,
    DiTConfig,
    Flux,
    Flux2,
    Flux2Config,
    FluxConfig,
    HiDream,
    HiDreamConfig,
    Lumina2,
    Lumina2Config,
    MMDiT,
    MMDiTConfig,
    PixArt,
    PixArtConfig,
    Sana,
    SanaConfig,
    UNet,
    UNetConfig,
    UViT,
    UViTConfig,
)
from fusion.diffusion.networks.experts import active
from fusion.generation.cost import flops, imagined, parameters

TARGET = Path("docs/claims.md")
MEASURED = Path(__file__).parent / "results"
HEADS = 24  # of SD3 medium, and of bench.attention
DITS = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
CLOSE = 0.02  # a figure is confirmed if ours differs by at most this share, or by its last digit


@dataclass(frozen=True)
class Claim:
    """A figure of a paper, and how it is recounted.

    what: description. paper: the paper's figure. ours: computes our figure. how: how it is computed. unit: of both
    figures. digit: value of a unit in the paper's last digit.
    """

    what: str
    source: str
    paper: float
    ours: Callable[[], float]
    how: str
    unit: str = ""
    digit: float = 0.0

    def confirmed(self, ours: float) -> bool:
        """Return whether our figure agrees with the paper's, within the share CLOSE or the last digit."""
        return abs(ours - self.paper) <= max(CLOSE * abs(self.paper), self.digit)


# ---- the networks ----


@cache
def dit(size: str) -> DiT:
    """Build a published DiT ("S", "B", "L" or "XL") with patches of 2, learned variance included."""
    layers, width, heads = DITS[size]
    return DiT(DiTConfig(width=width, layers=layers, heads=heads, classes=1000, variance=True))


@cache
def pixart() -> PixArt:
    """Build PixArt-alpha, XL/2."""
    return PixArt(PixArtConfig(width=1152, layers=28, heads=16, variance=True))


@cache
def sd3() -> MMDiT:
    """Build Stable Diffusion 3 medium."""
    return MMDiT(MMDiTConfig(width=1536, layers=24, heads=24))


@cache
def flux() -> Flux:
    """Build Flux.1 dev."""
    return Flux(FluxConfig(width=3072, layers=19, single=38, heads=24, axes=(16, 56, 56), guidance=True))


def dit_air(**shared: bool) -> float:
    """Return by how many per cent the blocks of 24 DiT-Air layers are smaller than an MMDiT's of the same width."""
    air = DiTAir(DiTAirConfig(width=1536, layers=24, heads=24, **shared))
    return 100 * (1 - parameters(air.blocks) / (24 * parameters(sd3().blocks[0])))


def millions(network: nn.Module) -> float:
    """Return the number of parameters, in millions."""
    return parameters(network) / 1e6


def gmacs(network: nn.Module, cond: Conditioning, *shape: int) -> float:
    """Return the multiply-adds of a forward pass over one latent of this shape, in billions."""
    return flops(lambda: network(torch.randn(1, *shape), torch.rand(1), cond)) / 2e9


@cache
def flux2() -> Flux2:
    """Build Flux.2 dev."""
    return Flux2(Flux2Config(width=6144, layers=8, single=48, heads=48, guidance=True))


@cache
def hidream() -> HiDream:
    """Build HiDream-I1."""
    return HiDream(
        HiDreamConfig(width=2560, layers=16, single=32, heads=20, axes=(64, 32, 32), reads=(*range(32), *[31] * 16))
    )


@cache
def lumina2() -> Lumina2:
    """Build Lumina-Image 2.0."""
    return Lumina2(Lumina2Config(width=2304, layers=26, heads=24, kv_heads=8, axes=(32, 32, 32), multiple=256))


def sdxl() -> UNet:
    """Build the UNet of SDXL."""
    others = {"attention_head_dim": [5, 10, 20], "use_linear_projection": True}
    return UNet(
        UNetConfig(widths=(320, 640, 1280), attention=(0, 2, 10), text_width=2048, pooled_width=1280, others=others)
    )


@cache
def sana(large: bool) -> Sana:
    """Build SANA 1.6B if `large`, else 0.6B."""
    sizes = (
        {"width": 2240, "layers": 20, "heads": 70, "cross_heads": 20}
        if large
        else {"width": 1152, "layers": 28, "heads": 36, "cross_heads": 16}
    )
    return Sana(SanaConfig(**sizes))


def flux_over_sana() -> float:
    """Return the ratio of multiply-adds of a forward pass of Flux.1 to SANA 0.6B, for an image of 1024 x 1024."""
    words, pooled, scale = torch.randn(1, 512, 4096), torch.randn(1, 768), torch.ones(1)
    large = gmacs(flux(), Conditioning(words, pooled=pooled, guidance=scale), 16, 128, 128)
    return large / gmacs(sana(False), Conditioning(torch.randn(1, 300, 2304)), 32, 32, 32)


def label() -> Conditioning:
    """Return the conditioning of one class label."""
    return Conditioning(label=torch.zeros(1, dtype=torch.long))


def modulation(blocks: nn.ModuleList) -> int:
    """Return the number of adaLN parameters in the blocks."""
    return sum(parameters(block.modulation) for block in blocks)


def saved_by_adaln_single() -> float:
    """Return the percentage of a PixArt's parameters that adaLN in each block would take.

    adaLN-single keeps one block's for all of them.
    """
    dropped = modulation(dit("XL").blocks)
    return 100 * dropped / (parameters(pixart()) + dropped)


def scores_gib(tokens: int, heads: int, bytes_each: int = 2) -> float:
    """Return the memory in GiB of all attention scores at once."""
    return tokens**2 * heads * bytes_each / 2**30


# ---- the claims ----

AIR = "DiT-Air, arXiv 2503.10618"
SANA = "SANA, arXiv 2410.10629"
UVIT = "U-ViT, arXiv 2209.12152"
DIT, PIXART, SD3 = "DiT, arXiv 2212.09748", "PixArt-alpha, arXiv 2310.00426", "SD3, arXiv 2403.03206"
CLAIMS = [
    *(
        Claim(f"DiT-{size}/2, parameters", DIT, paper, lambda size=size: millions(dit(size)), "counted", "M", digit=1)
        for size, paper in (("S", 33), ("B", 130), ("L", 458), ("XL", 675))
    ),
    *(
        Claim(
            f"DiT-{size}/2, 32 x 32 latent",
            DIT,
            paper,
            lambda size=size: gmacs(dit(size), label(), 4, 32, 32),
            "forward pass",
            "GMAC",
        )
        for size, paper in (("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64))
    ),
    Claim(
        "U-ViT-H/2, parameters",
        UVIT,
        501,
        lambda: millions(UViT(UViTConfig(width=1152, layers=29, heads=16, classes=1000))),
        "counted",
        "M",
        1,
    ),
    Claim(
        "UNet of Stable Diffusion 1.5, parameters",
        "arXiv 2112.10752",
        860,
        lambda: millions(UNet(UNetConfig())),
        "counted",
        "M",
        digit=1,
    ),
    Claim(
        "UNet of SDXL, parameters", "SDXL, arXiv 2307.01952", 2600, lambda: millions(sdxl()), "counted", "M", digit=100
    ),
    Claim("PixArt-alpha, parameters", PIXART, 611, lambda: millions(pixart()), "counted", "M", digit=1),
    Claim(
        "share of parameters that adaLN-single saves",
        PIXART,
        26,
        saved_by_adaln_single,
        "adaLN of 28 blocks, put back",
        "%",
        digit=1,
    ),
    Claim("SANA-0.6B, parameters", SANA, 590, lambda: millions(sana(False)), "counted", "M", digit=10),
    Claim("SANA-1.6B, parameters", SANA, 1600, lambda: millions(sana(True)), "counted", "M", digit=100),
    Claim(
        "multiply-adds of Flux.1 against SANA-0.6B, 1024 x 1024",
        "an earlier count",
        66,
        flux_over_sana,
        "one forward pass of each",
        "x",
        digit=1,
    ),
    Claim(
        "Flux.2 dev, parameters",
        "black-forest-labs/flux2",
        32_000,
        lambda: millions(flux2()),
        "counted",
        "M",
        digit=1000,
    ),
    Claim(
        "HiDream-I1, parameters",
        "HiDream-I1, arXiv 2505.22705",
        17_000,
        lambda: millions(hidream()),
        "counted",
        "M",
        digit=1000,
    ),
    Claim(
        "HiDream-I1, parameters that a row goes through",
        "an earlier count",
        12_000,
        lambda: active(hidream()) / 1e6,
        "counted",
        "M",
        50,
    ),
    Claim(
        "Lumina-Image 2.0, parameters",
        "Lumina-Image 2.0, arXiv 2503.21758",
        2600,
        lambda: millions(lumina2()),
        "counted",
        "M",
        digit=100,
    ),
    Claim("SD3 medium, parameters", SD3, 2000, lambda: millions(sd3()), "counted", "M", digit=100),
    Claim("parameters that DiT-Air saves against an MMDiT", AIR, 66, dit_air, "24 blocks of width 1,536", "%", digit=1),
    Claim(
        "Flux.1 dev, parameters", "black-forest-labs/flux", 12_000, lambda: millions(flux()), "counted", "M", digit=1000
    ),
    Claim(
        "attention scores of a 16 x 512 x 512 latent, patches of 2, 24 heads, 16 bits",
        "arithmetic",
        190,
        lambda: scores_gib(256 * 256, HEADS),
        f"{256 * 256:,} tokens squared",
        "GiB",
        digit=10,
    ),
]


def row(claim: Claim) -> tuple[str, bool]:
    """Evaluate a claim; return its line of the Markdown table and whether the figure is confirmed."""
    with imagined():
        ours = claim.ours()
    digits = max(0, 3 - math.floor(math.log10(abs(ours)))) if ours else 0
    found = claim.confirmed(ours)
    shown = f"{round(ours, min(digits, 2)):,g} {claim.unit}"
    return (
        f"| {claim.what} | {claim.paper:,g} {claim.unit} | {shown} | {claim.how} | {claim.source} | "
        f"{'yes' if found else 'no'} |",
        found,
    )


def attention() -> list[str]:
    """Return Markdown lines with time and memory of softmax and linear attention against resolution.

    The figures are those of the last record of `bench.attention`; without a record the list is empty.
    """
    records = sorted(MEASURED.glob("attention_*.json"))
    if not records:
        return []
    record = json.loads(records[-1].read_text(encoding="utf-8"))
    lines = [
        f"| {one['latent']} | {one['rows']:,} | {one['kind']} | {one['seconds']:,g} s | {one['peak MiB']:,.0f} MiB | "
        f"{one['GFLOP']:,.0f} | "
        f"{'' if scores is None else f'{scores:g} GiB'} |"
        for one in record["figures"]
        for scores in [one.get("scores in 16 bits, GiB")]
    ]
    return [
        "## One layer of attention, really run",
        "",
        f"Width {record['width']:,}, softmax in {HEADS} heads and SANA's linear attention, patches of 2, fp32, without "
        "gradients. Measured by",
        f"`{record['command'].strip()}` at {record['commit']}: {record['device']}s, torch {record['torch']}. The last "
        "column is what all scores",
        "would take, in 16 bits, if they were ever written down.",
        "",
        "| latent | rows | attention | time | peak memory | GFLOP | scores |",
        "|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def page() -> tuple[str, int]:
    """Return the page as Markdown, and how many figures are confirmed."""
    lines = [row(claim) for claim in CLAIMS]
    found = sum(confirmed for _, confirmed in lines)
    return "\n".join(
        [
            "# What papers say, counted again",
            "",
            f"{found} of {len(lines)} figures are confirmed, within {CLOSE:.0%} or their own last digit. Written by "
            "`python -m bench.claims`, which",
            "builds the networks of `fusion/architectures` at their published sizes, on tensors without contents. One "
            "multiply-add is one MAC. Where the",
            "source is a repository, arithmetic or an earlier count, no paper says the figure.",
            "",
            "| claim | paper's figure | ours | how | source | confirmed |",
            "|---|---|---|---|---|---|",
            *(line for line, _ in lines),
            "",
            *attention(),
        ]
    ), found


def main() -> int:
    """Print the page and write it to docs/claims.md; return 0 if all figures are confirmed, else 1."""
    text, found = page()
    print(text)
    TARGET.parent.mkdir(exist_ok=True)
    save(text.encode(), TARGET)
    return 0 if found == len(CLAIMS) else 1


if __name__ == "__main__":
    sys.exit(main())
