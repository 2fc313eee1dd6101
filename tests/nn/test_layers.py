"""layers.py: time features, modulation in fp32, scales at the start, and what must be zero there."""

import math

import pytest
import torch
from diffusers.models.embeddings import Timesteps

from fusion.nn.conv import ConvHead
from fusion.nn.layers import (
    FlowHead,
    Linear32,
    Modulation,
    PatchEmbed,
    Seen,
    TimestepEmbedding,
    match_rms,
    modulate,
    rms,
    timestep_features,
)

GRID = torch.tensor([[1, 3], [2, 1]])  # images of three patches and of two


def seen(patches, grid=GRID):
    """What a head may look at, where no image is edited."""
    return Seen(patches, grid, torch.zeros_like(patches))


def wake(module):
    """Zero-initialised weights replaced by N(0, 0.02), so that a test sees them at work."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return module


def test_time_features_begin_with_cosines_of_1000_t():
    features = timestep_features(torch.tensor([0.0, 0.001]), 8)
    frequencies = [10**-i for i in range(4)]
    torch.testing.assert_close(features[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(features[1], torch.tensor([f(w) for f in (math.cos, math.sin) for w in frequencies]))


@pytest.mark.parametrize("freq_shift", [0.0, 1.0])
def test_time_features_are_those_of_diffusers(freq_shift):
    t = torch.linspace(0, 1, 11)
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=freq_shift)(1000 * t)
    torch.testing.assert_close(timestep_features(t, 256, freq_shift), theirs, atol=1e-4, rtol=0)


def test_an_odd_number_of_time_features_is_refused():
    with pytest.raises(ValueError, match="use an even number"):
        TimestepEmbedding(16, frequencies=7)


def test_nearby_times_stay_apart_in_a_bf16_model():
    embed = TimestepEmbedding(32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = embed(torch.tensor([0.9, 0.901]))
    assert out.dtype == torch.float32
    assert (out[0] - out[1]).norm() / out[0].norm() > 1e-3


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_linear32_computes_in_fp32_whatever_the_weights(weights, autocast):
    linear = Linear32(16, 8).to(weights)
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = linear(x)
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.nn.functional.linear(x, linear.weight.float(), linear.bias.float()))
    assert torch.equal(Linear32(16, 8, bias=False)(torch.zeros(1, 16)), torch.zeros(1, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modulation_by_zero_is_the_identity_bit_for_bit(dtype):
    h = (100 * torch.randn(5, 16)).to(dtype)
    out = modulate(h, torch.zeros(16), torch.zeros(16))
    assert out.dtype == dtype and torch.equal(out, h)


def test_modulation_scales_and_shifts_in_fp32():
    h, shift, scale = torch.randn(3, 5, 16).unbind()
    torch.testing.assert_close(modulate(h, shift, scale), h * (1 + scale) + shift)
    low = modulate(h.bfloat16(), shift, scale)
    assert torch.equal(low, modulate(h.bfloat16().float(), shift, scale).bfloat16())


def test_rms_is_fp32_over_the_last_axis():
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(rms(x), torch.tensor([[12.5**0.5], [2.0**0.5]]))


def test_a_modulation_mlp_starts_at_zero_and_learns():
    mlp = Modulation(12, 16)
    time = torch.randn(3, 12)
    out = mlp(time)
    assert out.shape == (3, 6, 16) and out.abs().max() == 0 and out.dtype == torch.float32
    out.sum().backward()
    assert mlp.proj.weight.grad.abs().max() > 0
    moved = wake(mlp)(time)
    torch.testing.assert_close(moved[:, 2], mlp.proj(torch.nn.functional.silu(time))[:, 32:48])


@pytest.mark.parametrize("target", [1.0, 0.02, 5.0])
def test_patches_are_embedded_at_the_wanted_scale(target):
    embed = PatchEmbed(48, 256)
    match_rms(embed, target)
    noise = torch.randn(2000, 48)
    assert embed(noise).pow(2).mean().sqrt().item() == pytest.approx(target, rel=0.03)
    # A flat patch is as correlated as pixels get; its scale is kept on average over the random weights.
    flat = torch.ones(1, 48)
    assert embed(flat).pow(2).mean().sqrt().item() == pytest.approx(target, rel=0.25)


def test_a_bf16_patch_embedding_takes_the_fp32_state():
    assert PatchEmbed(12, 8).bfloat16()(torch.randn(3, 12)).dtype == torch.bfloat16


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(target):
    with pytest.raises(ValueError, match="must be positive"):
        match_rms(PatchEmbed(12, 8), target)


def test_the_flow_head_predicts_zero_at_the_start_and_learns():
    head = FlowHead(16, 12, 8)
    out = head(torch.randn(5, 16), seen(torch.randn(5, 12)), torch.randn(5, 8))
    assert out.shape == (5, 12) and out.abs().max() == 0
    (out - 1).square().sum().backward()
    assert head.out.weight.grad.abs().max() > 0


def test_the_flow_head_gathers_the_time_of_each_image():
    head = wake(FlowHead(16, 12, 8))
    h, time = torch.randn(5, 16), torch.randn(2, 8)
    image = torch.tensor([1, 0, 0, 1, 1])
    patches = torch.randn(5, 12)
    torch.testing.assert_close(head(h, seen(patches), time, image), head(h, seen(patches), time[image]))
    assert not torch.allclose(head(h, seen(patches), time, image), head(h, seen(patches), time.flip(0), image))
    torch.testing.assert_close(head(h, seen(patches), time[:1]), head(h, seen(patches), time[:1].expand(5, -1)))


def test_a_head_that_is_not_told_the_time_does_not_ask_for_it():
    head = wake(FlowHead(16, 12, None))
    h = torch.randn(5, 16)
    expected = head.out(torch.nn.functional.layer_norm(h, (16,), eps=1e-6))
    torch.testing.assert_close(head(h, seen(torch.randn(5, 12))), expected)
    assert {name for name, _ in head.named_parameters()} == {"out.weight", "out.bias"}


@pytest.mark.parametrize("head", [FlowHead(16, 48, 8), ConvHead(16, 3, 4, 8, reference=True, inner=8)])
def test_the_head_of_a_bf16_model_predicts_in_fp32(head):
    head = wake(head).bfloat16()
    h, patches, time = torch.randn(5, 16).bfloat16(), torch.randn(5, 48), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = head(h, seen(patches), time)
    assert out.dtype == torch.float32
    assert torch.equal(out, head.float()(h, seen(patches), time))


@pytest.mark.parametrize("module", [PatchEmbed(12, 16), TimestepEmbedding(16), Modulation(8, 16), FlowHead(16, 12, 8)])
def test_reset_parameters_restores_the_start(module):
    at_start = {name: weight.std().item() for name, weight in module.state_dict().items()}
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    module.reset_parameters()
    for name, weight in module.state_dict().items():
        assert weight.std().item() == pytest.approx(at_start[name], rel=0.35), name
        assert weight.abs().max() < 7
