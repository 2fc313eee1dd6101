"""Weights by modality: a fresh model equals the shared one, text equals the LLM's, images have their own weights."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import fusion
from fusion.testing import tiny_runs as training
from fusion.testing.mixed_documents import (
    STREAM,
    answer,
    assert_close,
    changed,
    drawing,
    error,
    fresh_fusion,
    ids,
    packed_rows,
    stirred,
    tiny_fusion,
)
from fusion.testing.tiny_llms import FAMILIES, tiny_llm
from fusion.unified.modality import PARTS, Groups
from fusion.unified.model import FusionModel


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_model_answers_as_one_of_shared_weights(family, packed):
    shared, split = fresh_fusion(family), fresh_fusion(family, mode="mot")
    for model in (shared, split):  # what is zero at the start would hide the rest
        model.flow_head.out.weight.data.normal_(std=0.02, generator=torch.Generator().manual_seed(4))
    one, other = answer(shared, packed), answer(split, packed)
    assert_close(other.hidden, one.hidden)
    assert_close(other.prediction, one.prediction)


@pytest.mark.parametrize("family", FAMILIES)
def test_twins_change_images_and_no_text_before_them(family, packed):
    shared, split = tiny_fusion(family), tiny_fusion(family, mode="mot")
    one, other = answer(shared, packed), answer(split, packed)
    image, first = packed.image_index >= 0, int((packed.image_index[0] >= 0).nonzero()[0, 0])
    assert error(other.hidden[image], one.hidden[image]) > 1e-3 and error(other.prediction, one.prediction) > 1e-3
    assert_close(other.hidden[0, :first], one.hidden[0, :first])
    with torch.no_grad():
        assert torch.equal(split(input_ids=ids()).logits, tiny_llm(family)(input_ids=ids()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_stream_learns_beside_a_language_model_that_stays_to_the_bit(family):
    model = fresh_fusion(family, mode="frozen")
    plain = tiny_llm(family)(input_ids=ids()).logits
    assert torch.equal(model(input_ids=ids()).logits, plain)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in weights.items()}
    assert not any(name.startswith("llm.") for name in weights)
    training.learn(model, steps=8)
    assert torch.equal(model(input_ids=ids()).logits, plain)
    still = [name for name, p in weights.items() if torch.equal(p, before[name])]
    # The last layer's answers to text, and its bias that moves all scores of a query alike, have no gradient.
    assert len(still) <= 0.1 * len(weights), still


def test_the_stream_is_as_wide_as_asked_and_hears_the_text(packed):
    model = tiny_fusion("qwen3", mode="frozen")
    assert model.patch_embed.proj.out_features == model.flow_head.out.in_features == STREAM
    assert {p.shape[-1] for name, p in model.twins.named_parameters() if "down" not in name and p.ndim == 2} == {
        STREAM,
        64,
    }
    hidden = answer(model, packed).hidden[packed.image_index >= 0]
    assert not hidden[:, STREAM:].any() and hidden[:, :STREAM].std() > 0.1
    other = changed(packed, 0, 3)  # a token before the first image
    assert error(answer(model, other).prediction, answer(model, packed).prediction) > 1e-4


def test_text_behind_an_image_sees_it(packed):
    model = tiny_fusion("llama", mode="frozen")
    place = int((packed.image_index[0] >= 0).nonzero()[0, 0])
    behind = int((packed.image_index[0, place:] < 0).nonzero()[0, 0]) + place + 2
    before, after = answer(model, packed).logits[0, behind], answer(model, changed(packed, 0, place)).logits[0, behind]
    assert error(after, before) > 1e-5


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_be_split_alone(part, packed):
    whole = fresh_fusion("qwen3")
    config = copy.deepcopy(whole.config)
    config.mode, config.split = "mot", [part]
    split = stirred(FusionModel(config, copy.deepcopy(tiny_llm("qwen3"))))
    kinds = {
        "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "norms": {"q_norm", "k_norm", "input_layernorm", "post_attention_layernorm"},
    }
    assert {name.split("__")[-1] for name in split.twins[0]} == kinds.get(part, {"mlp"})
    plain = stirred(copy.deepcopy(whole))
    plain.load_state_dict(
        {name: tensor for name, tensor in split.state_dict().items() if not name.startswith("twins.")}
    )
    image = packed.image_index >= 0
    assert error(answer(split, packed).hidden[image], answer(plain, packed).hidden[image]) > 1e-4


def test_gradients_reach_each_kinds_own_weights():
    model = stirred(copy.deepcopy(fresh_fusion("llama", mode="mot")))
    packed = packed_rows([[drawing()]])
    model(packed=packed).prediction.square().sum().backward()
    layer, twin = model.llm.model.layers[1], model.twins[1]
    assert (
        twin["mlp"].up_proj.weight.grad.abs().max() > 0 and layer.mlp.up_proj.weight.grad is None
    ) or not layer.mlp.up_proj.weight.grad.any()
    assert layer.self_attn.k_proj.weight.grad.abs().max() > 0  # images read the text's keys
    assert not layer.self_attn.q_proj.weight.grad.any()  # whose own queries say nothing about the images


def test_a_copied_model_goes_its_own_way(packed):
    model = fresh_fusion("gemma3_text", mode="mot")
    before, copied = answer(model, packed), stirred(copy.deepcopy(model))
    for p in copied.parameters():
        p.data.mul_(0.5)
    changed = answer(copied, packed)
    assert torch.equal(answer(model, packed).hidden, before.hidden) and error(changed.hidden, before.hidden) > 1e-3
    own = {id(p) for p in copied.parameters()}
    for layer in copied.llm.model.layers:
        assert all(
            id(p) in own for part in layer.modules() if "forward" in vars(part) for p in part.forward.twin.parameters()
        )


def test_text_weights_that_are_frozen_keep_the_language_model_to_the_bit():
    model = fresh_fusion("qwen3", mode="mot")
    before = model(input_ids=ids()).logits
    training.learn(model, steps=20, rates={"llm.*": 0})
    assert torch.equal(model.eval()(input_ids=ids()).logits, before)
    assert error(model.twins[0]["mlp"].up_proj.weight, tiny_llm("qwen3").model.layers[0].mlp.up_proj.weight) > 1e-2


def test_a_stream_is_saved_loaded_and_exported(tmp_path):
    training.save_llm(tmp_path / "llm")
    made = fusion.from_llm(tmp_path / "llm", mode="frozen", image_width=32, max_side=64)
    stirred(made.model)
    made.save_pretrained(tmp_path / "model")
    loaded = fusion.load(tmp_path / "model")
    assert loaded.model.config.image_width == 32 and not any(p.requires_grad for p in loaded.model.llm.parameters())
    assert all(p.requires_grad for p in loaded.model.twins.parameters())
    for image, other in zip(made.draw("a cat", n=2, steps=2), loaded.draw("a cat", n=2, steps=2), strict=True):
        assert image.tobytes() == other.tobytes()
    with pytest.raises(ValueError, match="image_width=999: the image stream is at most as wide as the language model"):
        fusion.from_llm(tmp_path / "llm", mode="frozen", image_width=999)
    with pytest.raises(ValueError, match="image_width=32 is for mode='frozen'"):
        fusion.from_llm(tmp_path / "llm", mode="mot", image_width=32)


def test_it_is_saved_loaded_and_exported(tmp_path):
    training.save_llm(tmp_path / "llm")
    made = fusion.from_llm(tmp_path / "llm", mode="mot", split=["attention", "feed_forward"], max_side=64)
    stirred(made.model)
    made.save_pretrained(tmp_path / "model")
    loaded = fusion.load(tmp_path / "model")
    assert (loaded.model.config.mode, loaded.model.config.split) == ("mot", ["attention", "feed_forward"])
    assert not any("norm" in name for name in loaded.model.twins[0])
    for image, other in zip(made.draw("a cat", n=2, steps=2), loaded.draw("a cat", n=2, steps=2), strict=True):
        assert image.tobytes() == other.tobytes()
    loaded.export_llm(tmp_path / "exported")
    exported, original = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("exported", "llm")
    )
    assert all(torch.equal(exported[name], tensor) for name, tensor in original.items())


def test_rows_are_grouped_and_put_back():
    groups = Groups.of(torch.tensor([[-1, 0, 0], [-1, -1, 1]]))
    assert groups.text.tolist() == [0, 3, 4] and groups.image.tolist() == [1, 2, 5] and groups.shape == (2, 3)
    rows = torch.arange(6.0)[:, None]
    assert torch.equal(groups.merged(rows[groups.text], rows[groups.image]), rows)


def test_bad_settings_are_refused_in_one_line(tmp_path):
    training.save_llm(tmp_path / "llm")
    with pytest.raises(ValueError, match="mode='moe': choose one of shared, mot, frozen"):
        fusion.from_llm(tmp_path / "llm", mode="moe")
    with pytest.raises(ValueError, match="'mlp': choose one of attention, norms, feed_forward"):
        fusion.from_llm(tmp_path / "llm", mode="mot", split=["attention", "mlp"])
