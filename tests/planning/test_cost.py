"""Costs: counts that a pencil gives too."""

import torch
import torch.nn.functional as F
from torch import nn

from fusion import Sampling
from fusion.diffusion import Conditioning, DiT, DiTConfig
from fusion.generation.cost import flops, imagined, kept_bytes, parameters, passes


def test_products_are_counted_forward_and_backward():
    layer, x = nn.Linear(8, 16), torch.randn(4, 8)
    assert flops(lambda: layer(x)) == 2 * 4 * 8 * 16
    assert flops(lambda: layer(x).sum().backward()) == 2 * (2 * 4 * 8 * 16)  # x needs no gradient


def test_convolutions_are_counted_in_groups_too():
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    for groups in (1, 4, 8):
        forward = 2 * 2 * 5 * 5 * 12 * 2 * (8 // groups) * 9
        layer = nn.Conv2d(8, 24, 3, padding=1, groups=groups)
        assert (
            flops(lambda layer=layer: layer(x)) == forward
            and flops(lambda layer=layer: layer(x).sum().backward()) == 3 * forward
        )
    turned = nn.ConvTranspose2d(8, 4, 2, stride=2)
    assert flops(lambda: turned(x).sum().backward()) == 3 * 2 * 2 * 5 * 5 * 8 * 4 * 4


def test_attention_is_counted_on_every_device():
    q = torch.randn(2, 4, 16, 12)
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 4 * 16 * 16 * 12) * 2


def test_shared_weights_count_once():
    one = nn.Linear(3, 5)
    assert parameters(one, nn.Sequential(one, nn.Linear(5, 2))) == 3 * 5 + 5 + 5 * 2 + 2
    one.requires_grad_(False)
    assert parameters(one, trained=True) == 0


def test_what_is_kept_is_what_backward_needs():
    layer, x = nn.Linear(8, 16), torch.randn(4, 8)
    assert kept_bytes(lambda: layer(x).tanh()) == 4 * (
        4 * 8 + 4 * 16
    )  # the input of the layer and the output of tanh, in fp32


def test_an_imagined_network_takes_no_time():
    with imagined():
        model = DiT(DiTConfig(width=1152, layers=28, heads=16, classes=1000, variance=True))
        cost = flops(
            lambda: model(
                torch.randn(1, 4, 32, 32), torch.rand(1), Conditioning(label=torch.zeros(1, dtype=torch.long))
            )
        )
    assert abs(cost / 2e9 - 118.67) < 0.05  # GMACs of DiT-XL/2


def test_forward_passes_count_evaluations_and_branches():
    assert passes(Sampling(steps=7, guidance=1.0)) == 7 and passes(Sampling(steps=7)) == 14
    assert passes(Sampling(steps=7, solver="heun")) == 2 * 13 and passes(Sampling(steps=7, solver="dpmpp_2m")) == 14
    assert (
        passes(Sampling(steps=7, image_guidance=1.5)) == 21
        and passes(Sampling(steps=7, guidance=1.5, image_guidance=1.5)) == 14
    )
    assert passes(Sampling(steps=10, guidance_interval=(0.0, 0.5))) == 15  # at t = 0.5, ..., 0.1 with two branches
    assert passes(Sampling(steps=10, guidance_interval=(0.0, 0.5), shift=3.0)) == 12  # fewer of them lie at low noise
