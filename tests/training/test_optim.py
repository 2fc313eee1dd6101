"""Parameter groups, Muon, the learning rate over a run, and the averaged weights."""

import copy
import math
import sys

import pytest
import torch
from torch import nn

from fusion.testing import tiny_llms as families
from fusion.training import checkpoint
from fusion.training.ema import EMA
from fusion.training.optim import Muon, Optim, Optimizers, hidden_matrices, orthogonalise, rate
from fusion.training.trainer import Training
from fusion.unified.config import FusionConfig
from fusion.unified.model import FusionModel
from tests.support.marks import needs_bitsandbytes


@pytest.fixture
def model() -> FusionModel:
    llm = families.tiny_llm("llama")
    config = FusionConfig(text_config=llm.config, vocab_base=families.VOCAB, embed="linear", head="linear")
    return FusionModel.from_llm(llm, config)


def names_of(model, parameters) -> set[str]:
    wanted = {id(p) for p in parameters}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_every_parameter_is_in_exactly_one_group(model):
    for optimizer in ("adamw", "muon"):
        grouped = [p for group in Optimizers(model, Optim(optimizer=optimizer)).groups for p in group["params"]]
        assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))


def test_only_matrices_of_linear_layers_decay(model):
    groups = Optimizers(model, Optim(weight_decay=0.1)).groups
    decaying = names_of(model, [p for group in groups if group["weight_decay"] for p in group["params"]])
    still = names_of(model, model.parameters()) - decaying
    assert {"llm.model.layers.0.self_attn.q_proj.weight", "llm.model.layers.1.mlp.down_proj.weight"} <= decaying
    assert {
        "llm.model.embed_tokens.weight",
        "llm.model.norm.weight",
        "control_embed.weight",
        "modulation_table",
    } <= still
    assert not any(name.endswith("bias") or name.startswith("modulation") for name in decaying)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_embeddings_that_are_the_output_layer_too_do_not_decay(optimizer):
    llm = families.tiny_llm("llama", tie_word_embeddings=True)
    tied = FusionModel.from_llm(llm, FusionConfig(text_config=llm.config, vocab_base=families.VOCAB))
    assert tied.llm.lm_head.weight is tied.llm.model.embed_tokens.weight
    groups = Optimizers(tied, Optim(optimizer=optimizer, weight_decay=0.1)).groups
    (decay,) = {group["weight_decay"] for group in groups if any(p is tied.llm.lm_head.weight for p in group["params"])}
    assert decay == 0.0


def test_muon_takes_the_decoders_matrices_and_nothing_else(model):
    chosen = names_of(model, hidden_matrices(model))
    assert len(chosen) == 2 * 7
    assert all(name.startswith("llm.model.layers.") and name.endswith("proj.weight") for name in chosen)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_rates_are_by_name_and_the_last_pattern_counts(model, optimizer):
    settings = Optim(
        optimizer=optimizer, lr=1e-2, rates={"llm.*": 0.1, "llm.model.layers.1.*": 0.5, "*.norm.weight": 2}
    )
    rates = {
        name: group["lr"] for group in Optimizers(model, settings).groups for name in names_of(model, group["params"])
    }
    assert (
        rates["llm.model.layers.0.mlp.up_proj.weight"] == rates["llm.model.embed_tokens.weight"] == pytest.approx(1e-3)
    )
    assert rates["llm.model.layers.1.mlp.up_proj.weight"] == pytest.approx(5e-3)
    assert rates["llm.model.norm.weight"] == pytest.approx(2e-2)
    assert rates["control_head.weight"] == rates["modulation_table"] == pytest.approx(1e-2)
    assert set(rates) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rate_of_zero_freezes(model, optimizer):
    made = copy.deepcopy(model)
    optimizers = Optimizers(made, Optim(optimizer=optimizer, rates={"*": 0, "control_*": 1}))
    assert set(optimizers.names.values()) == {"control_embed.weight", "control_head.weight"}
    assert not any(p.requires_grad for name, p in made.named_parameters() if not name.startswith("control"))


def test_rates_that_mean_nothing_are_refused(model):
    with pytest.raises(ValueError, match=r"no parameter is called 'lm.\*'; their names fit modulation_table, llm.\*, "):
        Optimizers(copy.deepcopy(model), Optim(rates={"lm.*": 0.1}))
    with pytest.raises(ValueError, match="every parameter is frozen"):
        Optimizers(copy.deepcopy(model), Optim(rates={"*": 0}))
    with pytest.raises(ValueError, match=r"'llm\.\*' has a factor below 0"):
        Optim(rates={"llm.*": -1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 24, 64), (2, 64, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        made = orthogonalise(x)
    assert made.shape == x.shape and made.dtype == dtype
    made = made.float()
    singular = torch.linalg.svdvals(made)
    assert singular.max() < 1.3 and singular[values > 0.1 * values.amax(-1, keepdim=True)].min() > 0.5
    # The directions stay: what comes out is the polar factor, up to those singular values.
    aligned = torch.einsum("kij,kil,klj->kj", left, made, right.mT)
    assert (aligned > 0).all()


def test_muon_steps_like_torchs_own():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(40, 16))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    a = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [p.detach().clone() for p in ours]
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q, before in zip(ours, theirs, start, strict=True):
        moved = (q - before).norm()
        assert (p - q).norm() < 0.02 * moved  # theirs iterates in bf16


def test_a_step_moves_all_weights_by_about_the_learning_rate():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 48))
    before = p.detach().clone()
    p.grad = torch.randn_like(p)
    Muon([p], lr=0.01).step()
    moved = (p - before).detach().square().mean().sqrt().item()
    assert moved == pytest.approx(0.01 * 0.2, rel=0.25)  # AdamW's typical RMS is 0.2 lr


KINDS = ["adamw", "muon", pytest.param("adamw8bit", marks=needs_bitsandbytes)]


def steps(model, optimizers, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizers.step()


@pytest.mark.parametrize("optimizer", KINDS)
def test_the_state_comes_back_to_the_bit(model, optimizer, tmp_path):
    settings = Optim(optimizer=optimizer)
    first = Optimizers(model, settings)
    steps(model, first, 2, seed=0)
    checkpoint.write_tensors(tmp_path / "state.safetensors", first.state_dict())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps(model, first, 2, seed=1)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    second = Optimizers(model, settings)
    second.load_state_dict(checkpoint.read_tensors(tmp_path / "state.safetensors"))
    steps(model, second, 2, seed=1)
    assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [("adamw", "muon"), ("muon", "adamw"), pytest.param("adamw", "adamw8bit", marks=needs_bitsandbytes)],
)
def test_the_state_of_another_optimizer_is_refused(model, saved, wanted):
    first = Optimizers(model, Optim(optimizer=saved))
    steps(model, first, 1, seed=0)
    with pytest.raises(ValueError, match=f"^optimizer='{wanted}': the checkpoint was written with another one"):
        Optimizers(model, Optim(optimizer=wanted)).load_state_dict(first.state_dict())


@needs_bitsandbytes
def test_eight_bits_take_less_and_step_nearly_as_adamw_does(model):
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    models = {optimizer: copy.deepcopy(model) for optimizer in ("adamw", "adamw8bit")}
    sizes, moved = {}, {}
    for optimizer, one in models.items():
        optimizers = Optimizers(one, Optim(optimizer=optimizer))
        steps(one, optimizers, 4, seed=0)
        large = {name for name, p in one.named_parameters() if p.numel() >= 4096}
        sizes[optimizer] = sum(
            value.nbytes for key, value in optimizers.state_dict().items() if key.partition("/")[2] in large
        )
        moved[optimizer] = {name: p.detach() - start[name] for name, p in one.named_parameters()}
    assert sizes["adamw8bit"] < 0.27 * sizes["adamw"] and len(large) > 10
    for name, theirs in moved["adamw"].items():
        far = ((moved["adamw8bit"][name] - theirs).norm() / theirs.norm()).item()
        assert far < (0.1 if name in large else 1e-3), name  # small ones have states in fp32
    assert any(not torch.equal(moved["adamw8bit"][name], moved["adamw"][name]) for name in large)


def test_eight_bits_without_the_library_are_one_line(monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(
            ValueError, match=r"^optimizer='adamw8bit' needs bitsandbytes, which is not here: pip install bitsandbytes"
        ):
            Optim(optimizer="adamw8bit")


@needs_bitsandbytes
def test_eight_bits_are_not_shared_out():
    with pytest.raises(ValueError, match=r"^sharded: the states of optim.optimizer='adamw8bit' cannot be shared out"):
        Training(sharded=True, optim=Optim(optimizer="adamw8bit"))


def test_learning_rate_over_a_run():
    cosine = Optim(warmup=10, floor=0.1)
    assert rate(cosine, 0, 0.0) == pytest.approx(0.1)
    assert rate(cosine, 9, 0.0) == 1.0
    assert rate(cosine, 500, 0.5) == pytest.approx(0.55)
    assert rate(cosine, 1000, 1.0) == pytest.approx(0.1)
    wsd = Optim(warmup=0, schedule="wsd", decay=0.2)
    assert [rate(wsd, 9, share) for share in (0.0, 0.5, 0.8)] == pytest.approx([1.0, 1.0, 1.0])
    assert rate(wsd, 9, 0.9) == pytest.approx(0.5) and rate(wsd, 9, 1.0) == 0.0
    falling = [rate(cosine, 100, share / 100) for share in range(101)]
    assert falling == sorted(falling, reverse=True)


def test_unknown_names_are_one_line():
    with pytest.raises(ValueError, match="optimizer='sgd': choose one of adamw, adamw8bit, muon"):
        Optim(optimizer="sgd")
    with pytest.raises(ValueError, match="schedule='step': choose cosine or wsd"):
        Optim(schedule="step")


def test_averaged_weights_follow_the_closed_form():
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    ema = EMA(layer, 0.5)
    expected = 0.0
    for step in range(1, 20):
        layer.weight.data.fill_(float(step))
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.state_dict()["weight"].item() == pytest.approx(expected)
    own = layer.weight.detach().clone()
    with ema.swapped_in():
        assert layer.weight.item() == pytest.approx(expected)
    assert torch.equal(layer.weight, own)
    ema.copy_to_model()
    assert layer.weight.item() == pytest.approx(expected)


def test_a_decay_of_zero_keeps_the_last_weights():
    layer = nn.Linear(2, 2)
    ema = EMA(layer, 0.0)
    with torch.no_grad():
        layer.weight.normal_()
    ema.update(1)
    assert torch.equal(ema.state_dict()["weight"], layer.weight)
    with pytest.raises(ValueError, match="ema=1"):
        EMA(layer, 1.0)
    assert math.isfinite(ema.decay)
