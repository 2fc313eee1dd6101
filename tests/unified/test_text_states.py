"""What a frozen LLM has read is computed once: the same as anew, bounded, and never another model's."""

import copy
from dataclasses import replace

import pytest
import torch

from fusion.flow.matching import PATHS, estimate
from fusion.generation.drawing import Canvas, draw
from fusion.generation.prefix import Prefix
from fusion.generation.sampling import Sampling
from fusion.sequence.packed import Tokens
from fusion.testing.mixed_documents import (
    CONTROL,
    answer,
    assert_close,
    everything,
    fresh_fusion,
    image_piece,
    noise_of,
    packed_rows,
    stirred,
    text,
    watched,
)
from fusion.unified.text_states import Text

FAMILIES = ("llama", "gemma3_text", "gpt2")


def model_of(family: str, preamble=()):
    """A model whose LLM never sees images, and chats begin with these ids."""
    positions = "shared" if family == "gpt2" else "axial"
    model = stirred(fresh_fusion(family, "adaln", positions, "linear", "frozen+none"))
    model.config.preamble = list(preamble)
    model._driven_anew(lambda layers: None)
    return model


def texts(count: int, preamble=()) -> list[Text]:
    made = [tuple(preamble) + text(5 + 7 * (seed % 4), seed).ids for seed in range(count)]
    return [Text(ids, tuple(range(len(ids))), len(preamble)) for ids in made]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_read_before_is_what_is_read_anew(family):
    model = model_of(family)
    states = model.backbone.states
    together = states(texts(6), model.embed_tokens)
    assert states.texts_read == 6
    again = states(texts(6)[::-1], model.embed_tokens)[::-1]
    assert states.texts_read == 6, "nothing was read twice"
    for one, other, alone in zip(together, again, texts(6), strict=True):
        assert one is other and not one.states.requires_grad
        states.forget()
        (read,) = states([alone], model.embed_tokens)
        for name in ("states", "last", "partition"):
            assert_close(getattr(one, name), getattr(read, name))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_behind_the_preamble_states_are_those_of_the_whole_text(family):
    preamble = text(9, 70).ids
    model = model_of(family, preamble)
    behind = model.backbone.states(texts(4, preamble), model.embed_tokens)
    whole = model.backbone.states([Text(one.ids, one.positions) for one in texts(4, preamble)], model.embed_tokens)
    for one, other in zip(behind, whole, strict=True):
        assert_close(one.states, other.states[9:])
        assert_close(one.last, other.last[9:])
        expected = model.backbone.logits(other.last[9:]).logsumexp(-1)
        assert_close(one.partition, expected)


def test_the_memory_of_texts_is_bounded_and_the_oldest_go_first():
    model = model_of("llama")
    states = model.backbone.states
    size = [read.bytes for read in states(texts(4), model.embed_tokens)]
    states.forget()
    states.most_bytes = sum(size[1:])
    states(texts(4), model.embed_tokens)
    assert states.bytes == sum(size[1:]) and list(states.kept) == texts(4)[1:]
    states(texts(2)[1:], model.embed_tokens)
    states(texts(1), model.embed_tokens)
    assert texts(2)[1] in states.kept and states.bytes <= states.most_bytes


def test_another_precision_and_a_copy_begin_with_nothing():
    model = model_of("llama")
    states = model.backbone.states
    states(texts(3), model.embed_tokens)
    twin = copy.deepcopy(model)
    assert twin.backbone.states is not states and not twin.backbone.states.kept and len(states.kept) == 3
    (read,) = twin.backbone.states(texts(1), twin.embed_tokens)
    assert states.texts_read == 3 and len(read.states[0]) == 2, "the copy has hooks of its own"
    model.to(torch.float64)
    (read,) = states(texts(1), model.embed_tokens)
    assert read.states.dtype == torch.float64 and len(states.kept) == 1


@pytest.mark.parametrize("name", ["control_embed.weight", "llm.model.norm.weight"])
@torch.no_grad()
def test_weights_that_are_replaced_are_read_with_anew(name):
    model = model_of("llama")
    asked = [Text((1, 2, CONTROL.image_start, 3), (0, 1, 2, 3))]
    (before,) = model.backbone.states(asked, model.embed_tokens)
    model.get_parameter(name).mul_(1.5)
    (after,) = model.backbone.states(asked, model.embed_tokens)
    assert (after.last[-1] - before.last[-1]).abs().max() > 1e-3
    model.load_state_dict({key: tensor.clone() for key, tensor in model_of("llama").state_dict().items()})
    (again,) = model.backbone.states(asked, model.embed_tokens)
    assert_close(again.last, before.last)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_images_do_not_read_the_preamble_in_training_or_in_sampling(family):
    preamble, asked = replace(text(9, 70), loss=False), replace(text(4, 3), loss=False)
    drawn = image_piece(3, 2, 4, clean=False)
    model = model_of(family, preamble.ids)
    noise = noise_of(torch.cat([drawn.pixels.flatten()])[:72].view(6, 12))
    packed = packed_rows([[[preamble, asked, drawn]]], times=1.0)
    packed.patches[packed.noised_patch] = noise
    prediction = model(packed=packed).prediction
    prefix = Prefix(model, CONTROL, 1)
    prefix.write(0, [preamble, asked])
    prefix.writers[0].open_image(drawn.size_ids)
    prefix.read([])
    (step,) = draw(model, [Canvas({"full": (prefix, 0)}, drawn.grid, noise)], Sampling(steps=1, guidance=1.0))
    config = model.config
    assert_close(step.x_hat[0], estimate(prediction, noise, torch.ones(()), config.target, PATHS[config.path]).x)
    other = model_of(family)
    assert (other(packed=packed).prediction - prediction).abs().max() > 1e-3, "one that knows of no preamble reads it"


def test_nothing_of_the_llm_learns_and_no_gradient_passes_it():
    model = model_of("llama", text(3, 1).ids)
    output = model(packed=everything())
    (output.logits.sum() + output.prediction.sum()).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("llm.", "control_embed")) for name in learning)
    assert {"control_head.weight", "stream.layers.0.text_k.weight", "patch_embed.proj.weight"} <= learning


@torch.no_grad()
def test_a_solver_step_runs_the_stream_alone():
    model, read = model_of("llama"), []
    hook = model.llm.base_model.register_forward_hook(lambda *_: read.append(1))
    prefix = Prefix(model, CONTROL, 1)
    prefix.write(0, [Tokens((1, 2, 3))])
    prefix.read([])
    with watched(model) as calls:
        for _ in draw(
            model, [Canvas({"full": (prefix, 0)}, (2, 2), torch.randn(4, 12))], Sampling(steps=4, guidance=1)
        ):
            pass
    hook.remove()
    assert len(calls) >= 4 and len(read) == 1


@torch.no_grad()
def test_the_head_is_asked_from_the_first_learned_row_on():
    model = model_of("llama")
    whole, part = texts(1)[0], replace(texts(1)[0], learned=3)
    one, other = model.backbone.states([whole, part], model.embed_tokens)
    assert_close(other.partition[3:], one.partition[3:])
    assert not other.partition[:3].any() and one.partition[:3].all()


@torch.no_grad()
def test_all_of_the_llm_s_tokens_are_one_column_of_the_decision():
    model, packed = model_of("gemma3_text"), everything()
    logits = answer(model, packed).logits[packed.labels >= 0]
    output = model(packed=packed)
    assert_close(output.logits[:, 0], logits[:, : model.llm_vocab].logsumexp(-1))
    assert_close(output.logits[:, 1:], logits[:, model.llm_vocab :])
    labels = packed.labels[packed.labels >= 0]
    assert ((output.labels == 0) == (labels < model.config.vocab_base)).all()


@torch.no_grad()
def test_what_ends_a_turn_behind_an_image_is_a_token_of_its_own_and_elsewhere_the_llm_s():
    """Labels: the stop behind `<|image_end|>` is the fourth control token; the same stop behind words, and other words
    behind an image, are the LLM's own tokens."""
    stop = 5
    model = fresh_fusion("llama", "adaln", "axial", "linear", "frozen+none")
    assert model.config.control_tokens == 3
    model.config.stop_ids, model.config.control_tokens = [stop], 4
    model.control_head = torch.nn.Linear(model.control_head.in_features, 4, bias=False)
    drawn = image_piece(2, 2, 4)
    behind, words, other = (
        model(packed=packed_rows([[pieces]])).labels.tolist()
        for pieces in (
            [text(2, 1), drawn, Tokens((stop,), loss=True)],
            [text(2, 1), Tokens((stop,), loss=True)],
            [text(2, 1), drawn, Tokens((stop + 1,), loss=True)],
        )
    )
    assert behind[-1] == 1 + 3 and behind.count(4) == 1
    assert words == [0, 0] and other[-1] == 0 and 4 not in other
