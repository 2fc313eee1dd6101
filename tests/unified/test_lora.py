"""Adapters: no effect at first, trained alone, merged into the same answers, and saved without the LLM."""

import copy

import numpy
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

import fusion
from fusion.testing import tiny_runs as training
from fusion.testing.mixed_documents import (
    answer,
    assert_close,
    error,
    fresh_fusion,
    ids,
    packed_rows,
    prose,
    stirred,
    story,
    tiny_fusion,
)
from fusion.training.optim import Optim, Optimizers
from fusion.unified.lora import Lora
from fusion.unified.objective import Objective, losses


@pytest.fixture
def llm(tmp_path):
    return training.save_llm(tmp_path / "llm")


def adapted(model):
    """Adapters that do something."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return model


def assert_same_image(one, other) -> None:
    """But for a level here and there: sums of other memory may be taken in another order."""
    images = (numpy.asarray(model.draw("a cat", steps=2)[0], dtype=int) for model in (one, other))
    assert abs(numpy.subtract(*images)).max() <= 1


# Linear layers, Conv1D, projections in one, a feed-forward that is two leaves, experts.
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt", "gemma3_text", "mixtral"])
def test_adapters_begin_as_nothing_and_merge_into_the_same_answers(family, packed):
    model = copy.deepcopy(tiny_fusion(family, positions="shared" if family in ("gpt2", "opt") else "axial"))
    before = answer(model, packed)
    model.add_lora(Lora(rank=4))
    fresh = answer(model, packed)
    assert torch.equal(fresh.hidden, before.hidden) and torch.equal(fresh.prediction, before.prediction)
    apart = answer(adapted(model), packed)
    assert error(apart.hidden, before.hidden) > 1e-3
    model.merge_lora()
    merged = answer(model, packed)
    assert_close(merged.hidden, apart.hidden)
    assert_close(merged.prediction, apart.prediction)
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict()) and model.config.lora is None


def test_targets_are_what_was_asked():
    def names(targets: str) -> set[str]:
        model = copy.deepcopy(fresh_fusion("llama"))
        model.add_lora(Lora(targets=targets))
        return {name.split(".")[-4] for name, p in model.llm.named_parameters() if p.requires_grad}

    assert names("attention") == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert names("linear") == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_only_adapters_and_what_is_new_learn():
    model = copy.deepcopy(fresh_fusion("llama"))
    model.add_lora(Lora())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model.train(), Optim(optimizer="muon", lr=1e-2))
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        losses(model, packed_rows([[story()], [prose()]]), Objective(), generator).total(1, 1).backward()
        optimizers.step()
        optimizers.zero_grad()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    assert all("lora_" in name for name in moved if name.startswith("llm.")) and any("lora_B" in name for name in moved)
    assert {"control_embed.weight", "patch_embed.proj.weight", "flow_head.out.weight"} <= moved


@pytest.mark.parametrize("settings", [{}, {"targets": "attention", "rank": 2}])
def test_adapters_are_saved_without_the_llm_and_come_back(tmp_path, llm, settings):
    made = fusion.from_llm(llm, max_side=64).add_lora(**settings)
    adapted(stirred(made.model))
    made.save_pretrained(tmp_path / "whole")
    made.save_pretrained(tmp_path / "small", base=llm)
    for folder in ("whole", "small"):
        loaded = fusion.load(tmp_path / folder)
        assert loaded.model.config.lora["rank"] == settings.get("rank", 8) and loaded.model.config.base is None
        assert_same_image(made, loaded)
        assert [n for n, p in loaded.model.named_parameters() if p.requires_grad] == [
            n for n, p in made.model.named_parameters() if p.requires_grad
        ]
    small, whole = ((tmp_path / folder / "model.safetensors").stat().st_size for folder in ("small", "whole"))
    held = sum(p.numel() for name, p in made.model.llm.named_parameters() if "lora" not in name)
    assert whole - small > 3.9 * held
    with torch.no_grad():
        assert torch.equal(
            AutoModel.from_pretrained(tmp_path / "small")(input_ids=ids()).logits, made.model(input_ids=ids()).logits
        )


def test_the_exported_llm_has_the_adapters_in_its_weights(tmp_path, llm):
    made = fusion.from_llm(llm, max_side=64).add_lora()
    adapted(made.model)
    made.export_llm(tmp_path / "exported")
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")(input_ids=ids()).logits
        assert_close(theirs, made.model(input_ids=ids()).logits)
    assert made.model.config.lora  # it still has its own


def test_an_image_stream_is_saved_without_the_llm(tmp_path, llm):
    made = fusion.from_llm(llm, mode="frozen", image_width=32, max_side=64)
    stirred(made.model)
    made.save_pretrained(tmp_path / "small", base=llm)
    loaded = fusion.load(tmp_path / "small")
    assert_same_image(made, loaded)


def test_another_llm_in_the_place_of_the_base_is_refused(tmp_path, llm):
    made = fusion.from_llm(llm, max_side=64).add_lora()
    made.save_pretrained(tmp_path / "small", base=llm)
    llm.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="say where it is with llm="):
        fusion.load(tmp_path / "small")
    assert fusion.load(tmp_path / "small", llm=tmp_path / "moved").model.config.lora
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    other.model.layers[1].mlp.up_proj.weight.data += 0.1
    other.save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match="this is not the LLM that the model was trained beside"):
        fusion.load(tmp_path / "small", llm=tmp_path / "moved")


def test_what_makes_no_sense_is_refused_in_one_line(tmp_path, llm):
    made = fusion.from_llm(llm, max_side=64)
    with pytest.raises(ValueError, match="the LLM's weights learn"):
        made.save_pretrained(tmp_path / "small", base=llm)
    with pytest.raises(ValueError, match="targets='mlp': choose one of attention, linear"):
        made.add_lora(targets="mlp")
    with pytest.raises(ValueError, match="no adapters to merge"):
        made.merge_lora()
    made.add_lora()
    with pytest.raises(ValueError, match="has adapters; give one of shared weights"):
        made.add_lora()
    with pytest.raises(ValueError, match="mode 'mot'; give one of shared weights"):
        fusion.from_llm(llm, mode="mot", max_side=64).add_lora()
