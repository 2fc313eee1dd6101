"""Architectures that no library has: sizes of the papers, equality in special cases, and one-line errors."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from fusion.diffusion import (
    Conditioning,
    CrossDiT,
    CrossDiTConfig,
    DiT,
    DiTAir,
    DiTAirConfig,
    DiTConfig,
    MMDiT,
    MMDiTConfig,
    UViT,
    UViTConfig,
)
from fusion.diffusion.networks.blocks import grid_positions
from fusion.diffusion.registry import Sees, build
from fusion.sequence.patches import patchify, unpatchify
from fusion.testing.reference_networks import ODD, SIZES, TEXT, WIDTHS, condition, stir


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- U-ViT ----


@pytest.mark.parametrize(
    "width, layers, heads, classes, millions",
    [(512, 13, 8, 1, 44), (768, 17, 12, 1000, 131), (1024, 21, 16, 1000, 287), (1152, 29, 16, 1000, 501)],
)
def test_sizes_of_uvit_are_the_papers(width, layers, heads, classes, millions):
    with torch.device("meta"):
        model = UViT(UViTConfig(width=width, layers=layers, heads=heads, classes=classes))
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.6)


@torch.no_grad()
def test_a_uvit_whose_skips_bring_nothing_is_a_plain_transformer():
    torch.manual_seed(0)
    model = UViT(UViTConfig(**ODD, size=(4, 4), classes=10))
    stir(model)
    for block in model.second:
        block.skip.weight.copy_(torch.cat([torch.eye(48), torch.zeros(48, 48)], dim=1))
        block.skip.bias.zero_()
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(model, 2)
    angle = 1000 * t[:, None] * 10000 ** -(torch.arange(24) / 24)
    rows = [
        torch.cat([angle.cos(), angle.sin()], dim=1)[:, None],
        model.label.weight[cond.label][:, None],
        model.embed.proj(patchify(x, 2, rank=2)),
    ]
    h = torch.cat(rows, dim=1) + model.positions
    for block in (*model.first, *model.middle, *model.second):
        normed = F.layer_norm(h, (48,), block.norm1.weight, block.norm1.bias, 1e-5)
        q, k, v = (
            rearrange(part(normed), "b n (h d) -> b h n d", h=4)
            for part in (block.attention.q, block.attention.k, block.attention.v)
        )
        attended = rearrange((q @ k.mT / 12**0.5).softmax(-1) @ v, "b h n d -> b n (h d)")
        h = h + block.attention.out(attended)
        h = h + block.down(F.gelu(block.up(F.layer_norm(h, (48,), block.norm2.weight, block.norm2.bias, 1e-5))))
    latent = unpatchify(
        model.out(F.layer_norm(h[:, 2:], (48,), model.norm.weight, model.norm.bias, 1e-5)), (4, 4), 2, 4
    )
    torch.testing.assert_close(
        model(x, t, cond), F.conv2d(latent, model.smooth.weight, model.smooth.bias, padding=1), atol=1e-4, rtol=1e-4
    )


@torch.no_grad()
def test_long_skips_join_partners():
    torch.manual_seed(0)
    model = UViT(UViTConfig(**ODD | {"layers": 5}, size=(4, 4), classes=10))
    stir(model)
    seen = {}
    for name, blocks in (("in", model.first), ("out", model.second)):
        for number, block in enumerate(blocks):
            block.register_forward_hook(
                lambda module, args, result, key=(name, number): seen.update({key: (args, result)})
            )
    model(torch.randn(1, 4, 8, 8), torch.rand(1), condition(model, 1))
    for number in range(2):
        assert seen["out", number][0][2] is seen["in", 1 - number][1]


def test_a_smaller_image_has_the_middle_of_the_positions():
    model = UViT(UViTConfig(**ODD, size=(4, 6), classes=10))
    extras, patches = model.positions[:2], model.positions[2:].view(4, 6, -1)
    assert torch.equal(model.placed((2, 4)), torch.cat([extras, patches[1:3, 1:5].reshape(8, -1)]))
    assert torch.equal(model.placed((4, 6)), model.positions)


# ---- DiT-Air ----


@pytest.mark.parametrize("shared, share", [({}, 0.660), ({"share_attention": True}, 0.766)])
def test_what_dit_air_saves_against_an_mmdit(shared, share):
    sizes = {"width": 1536, "layers": 24, "heads": 24}
    with torch.device("meta"):
        both, air = MMDiT(MMDiTConfig(**sizes)), DiTAir(DiTAirConfig(**sizes, **shared))
    per_layer = (
        parameters(both.blocks) - parameters(both.blocks[-1:]) + parameters(both.blocks[:1])
    )  # its last block lacks what nobody reads
    assert 1 - parameters(air.blocks) / per_layer == pytest.approx(share, abs=0.001)


@torch.no_grad()
def test_a_dit_air_that_shares_nothing_is_a_dit_over_text_and_image():
    torch.manual_seed(0)
    free = {"qk_norm": False, "share_modulation": False}
    air = DiTAir(DiTAirConfig(channels=4, **SIZES, **WIDTHS, **free))
    stir(air)
    dit = DiT(DiTConfig(**SIZES, text_width=TEXT))
    for ours, theirs in zip(air.blocks, dit.blocks, strict=True):
        for part, layer in (("q", ours.qkv.q), ("k", ours.qkv.k), ("v", ours.qkv.v), ("out", ours.out)):
            getattr(theirs.attention, part).load_state_dict(layer.state_dict())
        theirs.feed_forward.load_state_dict(ours.feed_forward.state_dict())
        theirs.modulation.load_state_dict(ours.modulation.state_dict())
    for part in ("embed", "head"):
        getattr(dit, part).load_state_dict(getattr(air, part).state_dict())
    x, t, cond = torch.randn(2, 4, 8, 12), torch.rand(2), condition(air, 2)
    cond = Conditioning(cond.tokens, None, cond.pooled)
    time = air.time(t) + air.pooled(cond.pooled)
    h = dit.embed(patchify(x, 2, rank=2))
    h = torch.cat([air.text(cond.tokens), h + grid_positions((4, 6), 48)], dim=1)
    for block in dit.blocks:
        h = block(h, time)
    expected = unpatchify(dit.head(h[:, 5:], time=time[:, None]), (4, 6), 2, 4)
    torch.testing.assert_close(air(x, t, cond), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "shared",
    [{"share_attention": True}, {"share_feed_forward": True}, {"share_attention": True, "share_feed_forward": True}],
)
@torch.no_grad()
def test_shared_layers_are_copies_that_stay_equal(shared):
    torch.manual_seed(0)
    lite = DiTAir(DiTAirConfig(channels=4, **SIZES, **WIDTHS, **shared))
    stir(lite)
    apart = DiTAir(DiTAirConfig(channels=4, **SIZES, **WIDTHS, share_modulation=False))
    apart.load_state_dict(lite.state_dict())  # holds a shared tensor under each of its names
    assert parameters(apart) > parameters(lite)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(lite, 2)
    torch.testing.assert_close(apart(x, t, cond), lite(x, t, cond))


# ---- CrossDiT ----


@torch.no_grad()
def test_a_crossdit_that_hears_no_tokens_is_a_dit():
    torch.manual_seed(0)
    cross = CrossDiT(CrossDiTConfig(channels=4, **SIZES, **WIDTHS))
    stir(cross)
    dit = DiT(DiTConfig(**SIZES, classes=1))
    for part in ("embed", "time", "head"):
        getattr(dit, part).load_state_dict(getattr(cross, part).state_dict())
    for ours, theirs in zip(cross.blocks, dit.blocks, strict=True):
        pieces = ours.modulation.proj
        kept = torch.cat([torch.arange(0, 3 * 48), torch.arange(6 * 48, 9 * 48)])
        theirs.modulation.proj.weight.copy_(pieces.weight[kept])
        theirs.modulation.proj.bias.copy_(pieces.bias[kept])
        for part in ("attention", "feed_forward"):
            getattr(theirs, part).load_state_dict(getattr(ours, part).state_dict())
        nn.init.zeros_(ours.cross.out.weight), nn.init.zeros_(ours.cross.out.bias)
    nn.init.zeros_(cross.pooled[2].weight), nn.init.zeros_(cross.pooled[2].bias), nn.init.zeros_(dit.label.weight)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(cross, 2)
    torch.testing.assert_close(
        cross(x, t, cond), dit(x, t, Conditioning(label=torch.zeros(2, dtype=torch.long))), atol=1e-5, rtol=1e-5
    )


# ---- mistakes ----


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="layers=4: a U-ViT has as many before"):
        UViTConfig(layers=4, classes=1)
    for both in ({}, {"classes": 3, "text_width": 8}):
        with pytest.raises(ValueError, match="class labels or text, one of them"):
            UViTConfig(**both)
    labels, words = (
        UViT(UViTConfig(**ODD, size=(4, 4), classes=10)),
        UViT(UViTConfig(**ODD, size=(4, 4), text_width=TEXT, words=3)),
    )
    x, t = torch.randn(1, 4, 8, 8), torch.rand(1)
    with pytest.raises(ValueError, match="give Conditioning a label"):
        labels(x, t, Conditioning(tokens=torch.randn(1, 5, TEXT)))
    with pytest.raises(ValueError, match="6 x 4 patches, and this U-ViT has positions of 4 x 4"):
        labels(torch.randn(1, 4, 12, 8), t, Conditioning(label=torch.tensor([1])))
    with pytest.raises(ValueError, match="a text of 5 tokens, and this U-ViT has positions for 3"):
        words(x, t, Conditioning(tokens=torch.randn(1, 5, TEXT)))
    for name in ("crossdit", "ditair"):
        with pytest.raises(ValueError, match="give Conditioning its pooled"):
            build(name, SIZES, Sees(4, TEXT, 24))(x, t, Conditioning(tokens=torch.randn(1, 5, TEXT)))
