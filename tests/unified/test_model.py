"""FusionModel: rows in and out, losses that reach every weight, checkpointing, configs, adapters around it."""

import copy
import math
from dataclasses import replace

import peft
import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from fusion.codecs.codec import Pixel
from fusion.flow.matching import LINEAR
from fusion.sequence.packed import IGNORE
from fusion.sequence.patches import patchify
from fusion.testing.mixed_documents import (
    CONTROL,
    MODES,
    PATCH,
    answer,
    drawing,
    fresh_fusion,
    packed_rows,
    prose,
    stirred,
    story,
    tiny_fusion,
)
from fusion.testing.tiny_llms import VOCAB, tiny_config, tiny_llm
from fusion.unified import objective
from fusion.unified.config import FusionConfig
from fusion.unified.model import FusionModel
from fusion.unified.objective import Objective, add_noise, latents, losses, losses_at

FAMILIES = ["llama", "gpt2", "gemma3_text", "qwen3_moe"]
IDS = torch.arange(1, 41).view(2, 20)


def total(model, packed) -> torch.Tensor:
    found = losses(model, packed, Objective(), torch.Generator().manual_seed(0))
    return found.total(found.text_count, found.flow_count)


@pytest.fixture
def packed():
    return packed_rows([[drawing(), story()]])


# ---- text ----


def test_on_token_ids_it_is_a_causal_lm(packed):
    model = tiny_fusion("llama")
    out = model(input_ids=IDS, labels=IDS)
    assert isinstance(out, CausalLMOutputWithPast) and out.logits.shape == (2, 20, VOCAB)
    assert torch.equal(out.loss, tiny_llm("llama")(input_ids=IDS, labels=IDS).loss)
    # close, not equal: a matrix product over fewer rows may add in another order
    torch.testing.assert_close(model(input_ids=IDS, logits_to_keep=3).logits, out.logits[:, -3:])
    assert model.get_input_embeddings() is model.llm.get_input_embeddings()
    assert model.get_output_embeddings() is model.llm.get_output_embeddings()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_transformers_own_generate_writes_what_the_llm_writes(family):
    """Beyond sliding windows too: the caches that transformers makes for them forget rows that our masks still
    count."""
    mask = torch.ones_like(IDS)
    mask[1, :4] = 0
    models = (tiny_fusion(family), tiny_llm(family))
    ours, theirs = (
        model.generate(IDS, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0) for model in models
    )
    assert torch.equal(ours, theirs)


# ---- rows ----


def test_control_tokens_have_rows_of_their_own():
    model = tiny_fusion("llama")
    ids = torch.tensor([[1, CONTROL.image_start, CONTROL.image_end]])
    embeds = model.embed_tokens(ids)
    assert torch.equal(embeds[0, 0], model.llm.get_input_embeddings().weight[1])
    assert torch.equal(embeds[0, 1:], model.control_embed.weight[[0, 2]])
    assert model.all_logits(embeds).shape[-1] == VOCAB + model.config.control_tokens


def test_labels_are_columns_of_the_logits(packed):
    model = tiny_fusion("llama")
    out = model(packed=packed)
    learned = packed.labels[packed.labels != IGNORE]
    assert out.logits.shape == (len(learned), VOCAB + 3) and torch.equal(out.labels, learned), (
        "the ids of this vocabulary have no gap"
    )
    wide = FusionConfig(text_config=tiny_config("llama"), patch_size=PATCH, vocab_base=1000)
    shifted = FusionModel(wide).column(torch.tensor([5, 1000, 1002]))
    assert shifted.tolist() == [5, VOCAB, VOCAB + 2]


def test_logits_are_in_fp32_whatever_the_weights_are(packed):
    model = copy.deepcopy(tiny_fusion("gemma3_text")).to(torch.bfloat16)
    out = model(packed=packed)
    assert out.logits.dtype == out.prediction.dtype == torch.float32
    assert torch.isfinite(out.logits).all() and torch.isfinite(out.prediction).all()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite", "gpt2", "opt"])
def test_new_rows_enter_the_decoder_at_the_scale_of_its_tokens(family):
    model = fresh_fusion(family)
    tokens = model.embed_tokens(torch.arange(VOCAB)[None])
    patches = torch.randn(400, model.config.patch_width)
    image, cell = torch.zeros(400, dtype=torch.long), torch.arange(400)[:, None] // torch.tensor([20, 1]) % 20
    rows = model.embed_patches(patches, torch.zeros(1, tokens.shape[-1]), image, cell)
    for new in (rows, model.control_embed.weight):
        assert 0.6 < (new.square().mean() / tokens.square().mean()).sqrt() < 1.6


def test_a_fresh_model_predicts_nothing_at_any_time(packed):
    assert not fresh_fusion("llama")(packed=packed).prediction.any()


@pytest.mark.parametrize("time", ["adaln", "added", "none"])
def test_the_time_is_told_as_the_config_says(time):
    model = tiny_fusion("llama", time)
    packed = packed_rows([[drawing()]])
    later = packed.with_patches(packed.patches, packed.time * 0.5)
    same = torch.equal(answer(model, packed).hidden, answer(model, later).hidden)
    assert same == (time == "none")


@pytest.mark.parametrize("positions", ["axial", "shared"])
def test_patches_know_their_places(positions):
    """Patches that change places give other predictions than their predictions in those places."""
    model = tiny_fusion("llama", "adaln", positions)
    packed = packed_rows([[drawing()]])
    where = packed.noised_patch.nonzero()[-12:, 0]  # the last noised block, 4 x 3
    turned = packed.patches.clone()
    turned[where] = packed.patches[where.flip(0)]
    before = model(packed=packed).prediction[-12:]
    after = model(packed=packed.with_patches(turned, packed.time)).prediction[-12:]
    assert (before.flip(0) - after).abs().max() > 1e-4


# ---- training ----


@pytest.mark.parametrize("mode", [("adaln", "axial"), *MODES], ids="-".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_reaches_every_weight(family, mode, packed):
    model = stirred(fresh_fusion(family, *mode))
    model.train()
    total(model, packed).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_activations_give_the_same_gradients(family, packed):
    gradients = []
    for checkpointed in (False, True):
        model = stirred(fresh_fusion(family))
        model.train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        total(model, packed).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    plain, recomputed = gradients
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_learn_one_document(family, packed):
    model = fresh_fusion(family)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        loss = total(model, packed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_an_empty_batch_of_images_is_zero_safe():
    found = losses(tiny_fusion("llama"), packed_rows([[prose()]]), Objective(), torch.Generator())
    assert found.flow_count == 0 and found.flow == 0 and torch.isfinite(found.total(found.text_count, found.flow_count))


# ---- what Hugging Face asks of a model ----


def test_a_config_survives_its_json():
    config = tiny_fusion("gemma3_text").config
    again = FusionConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert type(again.text_config) is type(config.text_config)
    assert (
        (again.patch_width, again.stride, again.context)
        == (config.patch_width, config.stride, config.context)
        == (12, 2, 512)
    )


def test_longrope_ends_where_its_frequencies_change():
    factors = [1.0] * 8
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": factors,
        "long_factor": factors,
        "original_max_position_embeddings": 128,
    }
    config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=128)
    assert FusionConfig(text_config=config).context == 128


def test_lora_goes_around_it(packed):
    model = stirred(fresh_fusion("llama"))
    expected = answer(model, packed).prediction
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert torch.equal(wrapped(packed=packed).prediction, expected), "an adapter starts as nothing"
    total(wrapped.base_model.model, packed).backward()
    trained = {name for name, weight in wrapped.named_parameters() if weight.grad is not None}
    assert trained and all("lora_" in name for name in trained)


def test_a_share_of_times_is_uniform_and_the_rest_logit_normal():
    times = Objective(mean=3.0, std=0.5, uniform_share=0.2).sample_times(20_000, torch.Generator().manual_seed(0))
    low = (times < 0.5).float().mean()  # a logit-normal time is never there
    assert low == pytest.approx(0.1, abs=0.01)
    assert not (Objective(mean=3.0, std=0.5).sample_times(20_000, torch.Generator().manual_seed(0)) < 0.5).any()


@pytest.mark.parametrize("times", ["uniform", "logit_normal"])
def test_the_shift_of_the_objective_moves_training_times_towards_noise(times):
    """By the logarithm of the shift in log SNR, whatever the distribution; the generator draws the same."""
    plain, moved = (
        Objective(times=times, shift=factor).sample_times(1000, torch.Generator().manual_seed(0))
        for factor in (1.0, 3.0)
    )
    assert (moved > plain).all()
    torch.testing.assert_close(LINEAR.log_snr(moved), LINEAR.log_snr(plain) - math.log(3.0), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_objective_puts_noise_into_noised_blocks_alone():
    """Clean copies reach the model as they were and at time 0; noised blocks as the mixture at the time that is told
    with them."""
    model, clean = tiny_fusion("llama"), latents(packed_rows([[drawing(), story()]]), Pixel(), PATCH)
    given = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["packed"]), with_kwargs=True
    )
    losses(model, clean, Objective(), torch.Generator().manual_seed(0))
    hook.remove()
    noised, where = given[0], clean.noised_patch
    assert not noised.time[~clean.noised_image].any() and torch.equal(noised.patches[~where], clean.patches[~where])
    times = noised.time[clean.noised_image]
    assert len(times.unique()) == len(times) and ((times > 0) & (times < 1)).all()
    time = noised.time[clean.image_of_patch][where][:, None]
    noise = (noised.patches[where] - (1 - time) * clean.patches[where]) / time
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


@torch.no_grad()
def test_each_loss_is_divided_by_its_own_count(packed):
    """A batch that is there twice has the loss of one; more text alone does not change what images weigh, nor the
    other way round."""
    found = losses(tiny_fusion("llama"), packed, Objective(w_text=0.5, w_flow=2.0), torch.Generator().manual_seed(0))
    text, images = found.text_count, found.flow_count
    assert text != images and found.text > 0 and found.flow > 0
    assert found.total(text, images) == pytest.approx(
        0.5 * (found.text / text).item() + 2.0 * (found.flow / images).item()
    )
    longer = replace(found, text=2 * found.text)
    assert longer.total(2 * text, images) == pytest.approx(found.total(text, images).item())
    more = replace(found, flow=2 * found.flow)
    assert more.total(text, 2 * images) == pytest.approx(found.total(text, images).item())


def test_the_clamp_of_the_loss_is_that_of_the_objective():
    packed = packed_rows([[drawing()]])
    noised = add_noise(packed, torch.full((len(packed.source),), 0.01), torch.Generator().manual_seed(0))
    model = tiny_fusion("llama")
    strict, lenient = (
        losses_at(model, noised, Objective(clamp=clamp), model.config).flow.item() for clamp in (0.05, 0.2)
    )
    assert strict == pytest.approx(16 * lenient, rel=1e-4)


def test_images_are_encoded_together_by_size_as_many_as_there_is_room_for(monkeypatch):
    """Each gets the patches that it has alone, in the place of its number, and a batch of the codec has images of one
    size."""
    monkeypatch.setattr(objective, "PIXELS_AT_ONCE", 100)
    images = [
        torch.rand(3, *size) for size in ((4, 4), (8, 4), (4, 4), (4, 4), (12, 16), (4, 4), (4, 4), (4, 4), (4, 4))
    ]
    asked = []

    class Noted(Pixel):
        def encode(self, pixels):
            asked.append(tuple(pixels.shape))
            return pixels * 2

    rows, start = objective._encoded(images, Noted(), PATCH, torch.device("cpu"))
    for image, first in zip(images, start.tolist(), strict=True):
        alone = 2 * patchify(image, PATCH)
        assert torch.equal(rows[first : first + len(alone)], alone)
    assert sorted(asked) == [(1, 3, 4, 4), (1, 3, 8, 4), (1, 3, 12, 16), (6, 3, 4, 4)]


def test_a_batch_without_images_has_no_patches():
    packed = packed_rows([[prose()]])
    assert packed.patches.shape == (0, 3 * PATCH**2) and packed.to("cpu").pixels == ()


@pytest.mark.parametrize("stays", [0.0, 0.5, 1.0])
@torch.no_grad()
def test_how_far_edits_stay_at_their_source_is_told(stays):
    """Of the story's targets one has an image of its size before it; a prediction between the two is told where it
    lies, at late times alone."""
    model, packed = tiny_fusion("llama"), packed_rows([[story()]])
    edit = packed.noised_image & (packed.reference >= 0)
    assert edit.sum() == 1 and packed.noised_image.sum() == 2

    def drawn(packed):
        clean, output = noised.clean, model(packed=packed)
        edited = edit[packed.image_of_patch[packed.noised_patch]][:, None]
        return replace(
            output, prediction=torch.where(edited, clean + stays * (packed.references - clean), output.prediction)
        )

    clean = latents(packed, Pixel(), PATCH)
    for late in (True, False):
        times = packed.noised_image * (0.9 if late else 0.4)
        noised = add_noise(clean, times, torch.Generator().manual_seed(0))
        copied, edits = losses_at(drawn, noised, Objective(), model.config).copied.tolist()
        assert edits == late and copied == pytest.approx(stays * late, abs=1e-5)
