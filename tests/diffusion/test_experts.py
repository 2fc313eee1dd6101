"""Experts: routing, a balance loss that equals the reference's and is learned, and HiDream's padding and mask."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers.models.transformers.transformer_hidream_image import MoEGate

from fusion.diffusion.checkpoints import load, save_diffusers
from fusion.diffusion.networks.experts import MoE, watched
from fusion.diffusion.networks.hidream import HiDream
from fusion.testing.reference_networks import REFERENCES, SMALL, condition, stir


def moe(experts: int = 4, chosen: int = 2) -> MoE:
    torch.manual_seed(0)
    return MoE(16, 24, experts, chosen, shared=8)


@pytest.mark.parametrize("experts, chosen", [(4, 2), (4, 4), (5, 1), (1, 1)])
def test_each_row_goes_through_its_experts_and_the_shared_one(experts, chosen):
    model = moe(experts, chosen)
    h = torch.randn(3, 7, 16)
    probability = model.router.proj(h).softmax(dim=-1)
    weights = probability.where(probability >= probability.sort(dim=-1).values[..., -chosen, None], 0)
    everyone = torch.stack([expert(h) for expert in model.experts], dim=-1)
    expected = (everyone * weights[..., None, :]).sum(-1) + model.shared(h)
    torch.testing.assert_close(model(h), expected)


def test_an_expert_that_nobody_chose_learns_nothing_and_the_router_learns():
    model = moe()
    with torch.no_grad():
        model.router.proj.weight[3] = -100
    model(torch.rand(5, 16)).square().sum().backward()
    assert all(p.grad.abs().max() == 0 for p in model.experts[3].parameters())
    assert model.router.proj.weight.grad.abs().max() > 0


def test_the_balance_loss_is_the_references():
    model = moe()
    gate = MoEGate(16, aux_loss_alpha=0.01).train()
    gate.weight = model.router.proj.weight
    h = torch.randn(3, 7, 16)
    with watched(model) as balance:
        model(h)
    torch.testing.assert_close(0.01 * balance.loss(), gate(h)[2])


def test_the_balance_loss_is_one_where_experts_are_chosen_alike():
    model = moe(experts=4, chosen=1)
    with torch.no_grad():
        model.router.proj.weight.copy_(50 * torch.eye(4, 16))
    with watched(model) as balance:
        model(torch.eye(4, 16).repeat(8, 1))
    assert balance.share().tolist() == [[0.25] * 4]
    assert balance.loss().item() == pytest.approx(1)


def test_the_balance_loss_teaches_a_router_to_use_all_experts():
    model = moe(experts=4, chosen=1)
    with torch.no_grad():  # the first expert is the favourite
        model.router.proj.weight.normal_(std=0.3)[0].add_(0.5)
    rows, losses, shares = torch.randn(256, 16) + 0.5, [], []
    optimizer = torch.optim.Adam([model.router.proj.weight], lr=0.03)
    for _ in range(30):
        with watched(model) as balance:
            model(rows)
        loss = balance.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        shares.append(balance.share().max().item())
    assert losses[0] > 1.8 and losses[-1] < 1.1
    assert shares[0] > 0.6 and shares[-1] < 0.4


def test_watching_a_network_leaves_it_as_it_was():
    model = SMALL["hidream"]()
    stir(model)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(model, 2)
    plain = model(x, t, cond)
    with watched(model) as balance:
        assert torch.equal(model(x, t, cond), plain)
    assert balance.share().shape == (3, 4)
    torch.testing.assert_close(balance.share().sum(dim=1), torch.ones(3))
    balance.loss().backward()
    model(x, t, cond)
    assert len(balance.shares) == 3
    copy.deepcopy(model)


def test_their_way_of_inference_gives_the_same_image():
    theirs = REFERENCES["hidream"].build()
    x, t = torch.randn(2, 4, 8, 12), torch.rand(2)
    cond = condition(SMALL["hidream"](), 2)
    layers = torch.cat([cond.layers, torch.randn_like(cond.layers[:1])])
    expected = REFERENCES["hidream"].ask(theirs, x, t, replace(cond, layers=layers))
    with torch.no_grad():
        given = -theirs.eval()(x, 1000 * t, cond.tokens, layers, cond.pooled).sample
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=1e-5)


def test_what_the_mask_of_layers_hides_changes_nothing():
    model = SMALL["hidream"]()
    stir(model)
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), condition(model, 3)
    louder = replace(cond, layers=torch.where(cond.layers_mask[..., None], cond.layers, cond.layers + 100))
    torch.testing.assert_close(model(x, t, louder), model(x, t, cond))
    other = replace(cond, layers=cond.layers.flip(1))
    assert not torch.allclose(model(x, t, other)[0], model(x, t, cond)[0])
    plain = HiDream(replace(model.config, text_mask=False))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(x, t, cond), plain(x, t, replace(cond, mask=None, layers_mask=None)))


def test_only_images_that_are_not_square_are_filled_up(tmp_path):
    config = replace(SMALL["hidream"]().config, text_mask=False)
    model, filled = HiDream(config), HiDream(replace(config, largest=(8, 8)))
    stir(model)
    filled.load_state_dict(model.state_dict())
    t, cond = torch.rand(2), condition(model, 2)
    square, wide, whole, wider = (torch.randn(2, 4, *sides) for sides in ((12, 12), (4, 8), (4, 16), (4, 20)))
    for x in (square, whole):
        assert torch.equal(model(x, t, cond), filled(x, t, cond))
    assert not torch.allclose(model(wide, t, cond), filled(wide, t, cond))
    with pytest.raises(ValueError, match="2 x 10 patches, and this network fills such images up to 16"):
        filled(wider, t, cond)
    with pytest.raises(ValueError, match="fills up images that are not square"):
        save_diffusers(model, tmp_path / "here")
    save_diffusers(filled, tmp_path / "here")
    assert load(tmp_path / "here").config == filled.config


def test_mistakes_are_named():
    model = SMALL["hidream"]()
    x, t, cond = torch.randn(1, 4, 8, 8), torch.rand(1), condition(model, 1)
    for missing in ("tokens", "layers", "pooled"):
        with pytest.raises(ValueError, match=f"give Conditioning its {missing}"):
            model(x, t, replace(cond, **{missing: None}))
    with pytest.raises(
        ValueError, match="reads layer 1, counted from 0, of a language model: give Conditioning more than 1"
    ):
        model(x, t, replace(cond, layers=cond.layers[:1]))
    with pytest.raises(ValueError, match="name one layer of the language model for each of the 3 blocks"):
        replace(model.config, reads=(0, 1))
    with pytest.raises(ValueError, match="they share out the 12 numbers of a head, and sum to 10"):
        replace(model.config, axes=(4, 4, 2))
    with pytest.raises(ValueError, match="5 of 4 experts cannot be chosen"):
        moe(4, 5)
    with watched(torch.nn.Linear(1, 1)) as balance, pytest.raises(ValueError, match="no router was passed"):
        balance.loss()
