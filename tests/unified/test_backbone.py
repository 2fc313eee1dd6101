"""The driver of Hugging Face decoders: adapters, hooks, masks of each backend, prefix cache, matmul attention."""

import copy
from functools import partial

import pytest
import torch
from transformers import AutoConfig

from fusion.nn.kv_cache import PrefixCache
from fusion.testing import tiny_llms as families
from fusion.testing.mixed_documents import (
    TOLERANCE,
    answer,
    assert_close,
    drawing,
    fresh_fusion,
    packed_rows,
    tiny_fusion,
)
from fusion.testing.tiny_llms import tiny_config, tiny_llm
from fusion.unified.backbone import FAMILIES, family_of, frequency_axes, matmul_attention

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_family_with_an_adapter_is_tested():
    assert set(FAMILIES) == set(families.FAMILIES)


@every_family
def test_modules_of_an_adapter_are_where_it_says(family):
    """The gates stand on what is added to the residual stream: with both gates at -1, a layer leaves it as it was."""
    model = copy.deepcopy(tiny_fusion(family))
    model.modulation.proj.weight.data.zero_()
    model.modulation.proj.bias.data.zero_()
    model.modulation_table.data.zero_()
    model.modulation_table.data[:, [2, 5]] = -1.0
    packed = packed_rows([[drawing()]])
    entered, left = [], []
    layers = model.llm.base_model.get_submodule(FAMILIES[family].layers)
    layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    layers[-1].register_forward_hook(
        lambda module, args, output: left.append(output[0] if isinstance(output, tuple) else output)
    )
    answer(model, packed)
    patches = packed.image_index >= 0
    assert_close(left[0][patches], entered[0][patches], 1e-6)
    assert not torch.allclose(left[0][~patches], entered[0][~patches]), "text is not gated"


@every_family
def test_every_vector_of_the_modulation_acts_on_images_alone(family):
    model = copy.deepcopy(tiny_fusion(family))
    packed = packed_rows([[drawing()]])
    patches = packed.image_index >= 0
    before, table = answer(model, packed).hidden, model.modulation_table.detach().clone()
    for vector in range(6):  # scale, shift and gate of attention, then of the feed-forward
        model.modulation_table.data[-1, vector] += 0.5
        change = (answer(model, packed).hidden - before).abs().amax(-1)
        model.modulation_table.data.copy_(table)
        assert (change[patches] > 0).all()
        if (
            vector > 1
        ):  # what attention reads of images, later text sees in their keys; the rest of the last layer nobody sees
            assert (change[~patches] <= TOLERANCE).all()


def test_the_modulation_is_that_of_the_design():
    """h + h * scale + shift on what enters the modules and 1 + gate on what leaves them, per image, by its own
    time."""
    model = tiny_fusion("llama")
    packed = packed_rows([[drawing()]], times=0.3)
    layer, seen = model.llm.base_model.layers[1], {}
    inputs = layer.input_layernorm.register_forward_hook(lambda m, a, out: seen.update(normed=out))
    entered = layer.self_attn.q_proj.register_forward_pre_hook(lambda m, args: seen.update(entered=args[0]))
    answer(model, packed)
    inputs.remove()
    entered.remove()
    vectors = model.modulation(model.embed_time(packed.time)) + model.modulation_table[1]
    scale, shift = vectors[packed.image_index.clamp(min=0), 0], vectors[packed.image_index.clamp(min=0), 1]
    expected = torch.where(packed.image_index[..., None] >= 0, seen["normed"] * (1 + scale) + shift, seen["normed"])
    assert_close(seen["entered"], expected, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_attention_and_feed_forward_have_gates_of_their_own(family):
    """What each adds to the residual stream of an image grows by the gate of its own module: the third vector and the
    sixth."""
    model = copy.deepcopy(tiny_fusion(family))
    packed = packed_rows([[drawing()]], times=0.3)
    model.modulation_table[:, 2] = 0.25
    model.modulation_table[:, 5] = -0.5
    layer, seen = model.llm.base_model.layers[1], {}
    vector_of = {FAMILIES[family].attention_gate: 2, FAMILIES[family].feed_forward_gate: 5}

    def keep(name, when, module, args, output):
        seen[name, when] = output[0] if isinstance(output, tuple) else output

    for name in vector_of:
        layer.get_submodule(name).register_forward_hook(partial(keep, name, "before"), prepend=True)
        layer.get_submodule(name).register_forward_hook(partial(keep, name, "after"))
    answer(model, packed)
    vectors = model.modulation(model.embed_time(packed.time)) + model.modulation_table[1]
    for name, vector in vector_of.items():
        gate = torch.where(packed.image_index[..., None] >= 0, vectors[packed.image_index.clamp(min=0), vector], 0.0)
        assert_close(seen[name, "after"], seen[name, "before"] * (1 + gate), 1e-6)


# ---- positions ----


@every_family
def test_positions_of_images_turn_with_their_cells(family):
    """Axial rotary: a patch of another row or column attends otherwise; families with learned positions add sincos
    instead."""
    model = tiny_fusion(family)
    packed = packed_rows([[drawing()]])
    moved = packed.position.clone()
    moved[1:, packed.image_index >= 0] += torch.tensor([[3], [5]])
    by_rotation = model.backbone(*_rows(model, packed), None) - model.backbone(*_rows(model, packed, moved), None)
    assert bool(by_rotation.abs().max() > 0) == (FAMILIES[family].positions == "rotary")


def _rows(model, packed, position=None):
    embeds = model.embed(packed, packed.patches, model.embed_time(packed.time))
    return embeds, packed.position if position is None else position, model.backbone.mask(packed, packed)


@pytest.mark.parametrize("family", ["llama", "cohere2", "gpt_oss", "gemma3_text"])
@torch.no_grad()
def test_each_channel_turns_with_its_own_axis(family):
    """With time, row and column in this order: a channel's rotation is the model's own at that position, on every
    row."""
    model, packed, turned = copy.deepcopy(tiny_fusion(family)), packed_rows([[drawing()]]), []
    rotary = model.llm.base_model.rotary_emb
    rotary.register_forward_hook(
        lambda module, args, kwargs, output: turned.append((args, kwargs, output)), with_kwargs=True
    )
    model.backbone(*_rows(model, packed), None)
    axes = frequency_axes(type(rotary), model.llm.config)
    time, row, column = packed.position
    patches = packed.image_index >= 0
    assert (row != column)[patches].any() and {0, 1, 2} == set(axes.tolist())
    for args, kwargs, output in turned:
        others = {key: value for key, value in kwargs.items() if key != "position_ids"}
        own = [rotary.forward(args[0], position, *args[2:], **others) for position in (time, row, column)]
        for part, found in enumerate(output):
            for axis in range(3):
                assert torch.equal(found[..., axes == axis], own[axis][part][..., axes == axis]), (
                    "time row column".split()[axis]
                )


@pytest.mark.parametrize(
    ("family", "order"), [("llama", "halves"), ("cohere2", "pairs"), ("gpt_oss", "once"), ("gemma3_text", "halves")]
)
def test_frequencies_take_the_axes_in_turns_in_each_channel_order(family, order):
    llm = tiny_llm(family)
    axes = frequency_axes(type(llm.base_model.rotary_emb), llm.config)
    turns = torch.arange(len(axes)) % 3
    half = len(axes) // 2
    expected = {"halves": torch.cat([turns[:half]] * 2), "pairs": turns[:half].repeat_interleave(2), "once": turns}
    assert torch.equal(axes, expected[order])


# ---- masks ----


def test_masks_come_in_the_form_that_each_attention_reads():
    rows = packed_rows([[drawing()]])
    forms = {
        kind: tiny_fusion("gemma3_text", attention=kind).backbone.mask(rows, rows)
        for kind in ("sdpa", "eager", "matmul", "flex_attention")
    }
    for kind, mask in forms.items():
        assert set(mask) == {"full_attention", "sliding_attention"}, kind
    assert forms["sdpa"]["full_attention"].dtype == torch.bool
    for kind in ("eager", "matmul"):
        assert torch.equal(forms[kind]["sliding_attention"] == 0, forms["sdpa"]["sliding_attention"])
    assert forms["sdpa"]["sliding_attention"].sum() < forms["sdpa"]["full_attention"].sum()
    assert not isinstance(tiny_fusion("mistral").backbone.mask(rows, rows), dict)


def test_scores_are_masked_in_the_dtype_they_have():
    model = copy.deepcopy(tiny_fusion("gemma2"))
    rows = packed_rows([[drawing()]])
    with torch.autocast("cpu", torch.bfloat16):
        assert model.backbone.mask(rows, rows)["full_attention"].dtype == torch.bfloat16
    assert model.backbone.mask(rows, rows)["full_attention"].dtype == torch.float32
    assert model.to(torch.bfloat16).backbone.mask(rows, rows)["full_attention"].dtype == torch.bfloat16


# ---- attention as two products ----


def test_matmul_attention_is_sdpa():
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    seen = torch.rand(2, 1, 5, 7) > 0.3
    seen[..., 0] = True
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    found, _ = matmul_attention(None, query, key, value, added, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=0.3, enable_gqa=True)
    assert_close(found, expected.transpose(1, 2))


def test_matmul_attention_caps_scores_and_has_sinks():
    query, key, value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    none, sinks = torch.zeros(1, 1, 3, 4), torch.tensor([0.5, -1.0])
    scores = 2.0 * torch.tanh(query @ key.transpose(-1, -2) * 8**-0.5 / 2.0)
    weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp().view(1, 2, 1, 1))
    found, _ = matmul_attention(None, query, key, value, none, softcap=2.0, s_aux=sinks)
    assert_close(found, (weights @ value).transpose(1, 2))


# ---- the cache of a prefix ----


def states(rows: int, seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, rows, 4, generator=generator), torch.randn(batch, 3, rows, 4, generator=generator)


def test_a_frozen_cache_keeps_no_block():
    cache = PrefixCache()
    prefix = states(5, 0)
    cache.update(*prefix, 0)
    cache.freeze(3)
    for seed in (1, 2):
        block = states(3, seed)
        for found, before, new in zip(cache.update(*block, 0), prefix, block, strict=True):
            assert torch.equal(found, torch.cat([before, new], dim=2))
    part = cache.head(1)
    block = states(3, 3, batch=1)
    assert torch.equal(part.update(*block, 0)[0], torch.cat([prefix[0][:1], block[0]], dim=2))


def test_caches_of_different_lengths_stack_with_room_at_the_end():
    long, short = PrefixCache(), PrefixCache()
    a, b = states(5, 0), states(2, 1)
    long.update(*a, 0)
    short.update(*b, 0)
    stacked = PrefixCache.stack([long, short], [[1], [0, 1]])
    keys = stacked.layers[0].keys
    assert keys.shape == (3, 3, 5, 4)
    assert torch.equal(keys[0], a[0][1]) and torch.equal(keys[1:, :, :2], b[0]) and not keys[1:, :, 2:].any()


# ---- refusals ----


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            AutoConfig.for_model("mamba2"),
            "mamba2 has linear_attention layers, which cannot attend in both directions: choose a ",
        ),
        (AutoConfig.for_model("bert"), "'bert' is not a supported decoder family: choose one of apertus, arcee, "),
        (
            tiny_config("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "llama uses dynamic rotary positions, ",
        ),
    ],
)
def test_what_has_no_adapter_is_refused_in_one_line(config, message):
    with pytest.raises(ValueError) as error:
        family_of(config)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_attention_that_would_ignore_the_mask_is_refused():
    model = fresh_fusion("llama")
    model.llm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"^'flash_attention_2' attention ignores a mixed mask: choose 'sdpa', "):
        model(input_ids=torch.tensor([[1, 2]]))
