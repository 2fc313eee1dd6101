"""An image stream with its own projections: it begins as FuseDiT's and learns; the language model is unchanged."""

import copy

import pytest
import torch

import fusion
from fusion.testing import tiny_llms as families
from fusion.testing import tiny_runs as training
from fusion.testing.mixed_documents import (
    NO_DROPOUT,
    PATCH,
    STREAM,
    answer,
    assert_close,
    error,
    fresh_fusion,
    ids,
    stirred,
    tiny_fusion,
)
from fusion.testing.tiny_llms import FAMILIES, tiny_llm
from fusion.training.learner import recomputed
from fusion.unified.backbone import layers_of
from fusion.unified.config import FusionConfig
from fusion.unified.kv_projection import Asked, Heard
from fusion.unified.model import FusionModel


def heard_of(model) -> dict[str, Heard]:
    """Its projections, by name."""
    return {name: module for name, module in model.twins.named_modules() if isinstance(module, Heard)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_begins_as_one_that_reads_keys_and_values_and_learns_beside_a_language_model_that_stays(
    family, packed
):
    model, other = fresh_fusion(family, mode="frozen+hidden"), fresh_fusion(family, mode="frozen")
    for one in (model, other):  # what is zero at the start would hide the rest
        one.flow_head.out.weight.data.normal_(std=0.02, generator=torch.Generator().manual_seed(4))
    mine, theirs = answer(model, packed), answer(other, packed)
    assert_close(mine.hidden, theirs.hidden)
    assert_close(mine.prediction, theirs.prediction)
    plain = tiny_llm(family)(input_ids=ids()).logits
    projections = [
        weight for module in heard_of(model).values() for weight in module.text.parameters() if weight.ndim == 2
    ]
    before = [weight.detach().clone() for weight in projections]
    training.learn(model, steps=2)
    assert torch.equal(model(input_ids=ids()).logits, plain)
    assert before and not any(torch.equal(weight, old) for weight, old in zip(projections, before, strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "gpt_neox", "gpt2", "opt", "diffllama", "gpt_oss"])
def test_images_read_what_is_projected_for_them(family, packed):
    """In a decoder of one layer they see what they would see of a language model that had these projections itself."""
    llm = tiny_llm(family, num_hidden_layers=1, **NO_DROPOUT)
    config = FusionConfig(
        text_config=llm.config,
        patch_size=PATCH,
        vocab_base=families.VOCAB,
        mode="frozen",
        image_width=STREAM,
        deep="hidden",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        listening = FusionModel.from_llm(llm, config)
    config = copy.deepcopy(config)
    config.deep = "kv"
    reading = FusionModel(config, copy.deepcopy(tiny_llm(family, num_hidden_layers=1, **NO_DROPOUT)))
    mine = listening.state_dict()
    reading.load_state_dict(
        {name.replace(".picture.", "."): tensor for name, tensor in mine.items() if ".text." not in name}
    )
    assert_close(answer(listening, packed).hidden, answer(reading, packed).hidden)
    generator, layer = torch.Generator().manual_seed(5), layers_of(reading.llm)[0]
    for name, module in heard_of(listening).items():
        theirs = layer.get_submodule(name.partition(".")[2].replace("__", "."))
        for weight, other in zip(module.text.parameters(), theirs.parameters(), strict=True):
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
            other.data.copy_(weight.data)
    image = packed.image_index >= 0
    mine, theirs = answer(listening, packed).hidden, answer(reading, packed).hidden
    assert_close(mine[image], theirs[image])
    assert error(mine[~image], theirs[~image]) > 1e-3  # whose own text reads them too


def test_text_that_reads_no_image_hears_nothing_of_it(packed):
    model = stirred(copy.deepcopy(fresh_fusion("qwen3", mode="frozen+hidden")))
    before = answer(model, packed).hidden
    for module in heard_of(model).values():
        module.text.weight.data.mul_(0.5)
    after, image = answer(model, packed).hidden, packed.image_index >= 0
    first = int(image[0].nonzero()[0, 0])
    assert torch.equal(after[0, :first], before[0, :first]) and torch.equal(
        after[1, packed.doc[1] == 1], before[1, packed.doc[1] == 1]
    )
    assert (
        error(after[image], before[image]) > 1e-3
        and error(after[0, first:][~image[0, first:]], before[0, first:][~image[0, first:]]) > 1e-5
    )


def test_each_projection_is_computed_once_and_nothing_is_kept(packed):
    model, calls = copy.deepcopy(tiny_fusion("llama", mode="frozen+hidden")), []
    for name, module in heard_of(model).items():
        for part in ("picture", "text"):
            module.get_submodule(part).register_forward_hook(lambda *_, call=(name, part): calls.append(call))
    answer(model, packed)
    assert sorted(calls) == sorted((name, part) for name in heard_of(model) for part in ("picture", "text"))
    assert {name.rpartition("__")[2] for name in heard_of(model)} == {"k_proj", "v_proj"}
    attention = [layer.self_attn.forward for layer in model.llm.model.layers]
    assert all(isinstance(asked, Asked) and not asked.turn.kept for asked in attention)


def test_a_forward_pass_that_breaks_leaves_nothing_to_the_next(packed, monkeypatch):
    model = copy.deepcopy(tiny_fusion("llama", mode="frozen+hidden"))
    before, module = answer(model, packed), model.twins[1]["self_attn__v_proj"].text

    def broken(rows):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, "forward", broken)
        answer(model, packed)
    assert torch.equal(answer(model, packed).prediction, before.prediction)


def test_what_is_computed_again_has_the_same_gradients(packed):
    model = stirred(copy.deepcopy(fresh_fusion("gemma3_text", mode="frozen+hidden")))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(packed=packed).prediction.square().sum().backward()
        return [p.grad.clone() for p in model.twins.parameters() if p.grad is not None]

    plain = gradients()
    with recomputed(layers_of(model.llm)):
        again = gradients()
    assert all(map(torch.equal, plain, again)) and len(plain) > len(heard_of(model))


def test_it_talks_and_draws_and_is_saved_and_loaded(tmp_path):
    training.save_llm(tmp_path / "llm")
    made = fusion.from_llm(tmp_path / "llm", mode="frozen", image_width=32, deep="hidden", max_side=64)
    stirred(made.model)
    made.save_pretrained(tmp_path / "model")
    made.save_pretrained(tmp_path / "small", base=tmp_path / "llm")
    for folder in ("model", "small"):
        loaded = fusion.load(tmp_path / folder)
        assert loaded.model.config.deep == "hidden" and not any(p.requires_grad for p in loaded.model.llm.parameters())
        assert all(p.requires_grad for p in loaded.model.twins.parameters())
        (image,), (other,) = made.draw("a cat", n=1, steps=2), loaded.draw("a cat", n=1, steps=2)
        assert image.tobytes() == other.tobytes()
        assert made.edit(image, "blue", steps=2).tobytes() == loaded.edit(image, "blue", steps=2).tobytes()
        assert made.describe(image, max_new_tokens=8) == loaded.describe(image, max_new_tokens=8)


def test_bad_settings_are_refused_in_one_line(tmp_path):
    training.save_llm(tmp_path / "llm")
    with pytest.raises(ValueError, match="deep='text': choose one of kv, hidden"):
        fusion.from_llm(tmp_path / "llm", mode="frozen", deep="text")
    for mode in ("shared", "mot"):
        with pytest.raises(
            ValueError, match=f"deep='hidden' is for mode='frozen': in '{mode}' there is no image stream"
        ):
            fusion.from_llm(tmp_path / "llm", mode=mode, deep="hidden")
