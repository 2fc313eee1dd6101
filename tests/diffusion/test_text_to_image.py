"""Text encoders and text-to-image models: encodings, caching, one seed per image, folders, one-line errors."""

import json
from dataclasses import asdict

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from fusion.codecs.codec import load_codec
from fusion.diffusion import load_text_to_image, make_text_to_image
from fusion.diffusion import text_encoders as encoders
from fusion.diffusion.registry import Sees
from fusion.diffusion.text_encoders import EncoderConfig, TextEncoders, load_encoder
from fusion.diffusion.text_to_image import TextToImage, TextToImageConfig
from fusion.testing import tiny_llms as families
from fusion.testing import tiny_runs as training
from fusion.testing.reference_networks import LEARNERS, stir

TEXTS = ["draw a red circle", "a blue square", ""]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    T5EncoderModel(
        T5Config(vocab_size=families.VOCAB, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": 20,
    }
    CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=families.VOCAB, eos_token_id=0, **sizes)).save_pretrained(
        folder
    )
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


def config(llm, **changes) -> TextToImageConfig:
    network = {"patch_size": 8, "width": 48, "layers": 2, "heads": 4}
    return TextToImageConfig(
        **{"architecture": "mmdit", "network": network, "texts": [EncoderConfig(str(llm))], "size": [16, 24]} | changes
    )


def text_to_image(llm, **changes):
    torch.manual_seed(0)
    made = make_text_to_image(config(llm, **changes))
    stir(made.network)
    return made.eval()


# ---- text encoders ----


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_tokens_are_the_hidden_states_of_a_layer(llm, layer):
    encoder = load_encoder(EncoderConfig(str(llm), layer=layer))
    cond = encoder(TEXTS)
    ids = encoder.tokenizer(TEXTS[0])["input_ids"]
    alone = encoder.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
    assert cond.mask.sum(1).tolist() == [len(ids), len(encoder.tokenizer(TEXTS[1])["input_ids"]), 1]
    torch.testing.assert_close(cond.tokens[0, : len(ids)], alone)
    torch.testing.assert_close(cond.pooled[0], alone.mean(0))
    assert not cond.tokens.requires_grad


def test_what_is_pooled_is_chosen(llm, clip):
    last = load_encoder(EncoderConfig(str(llm), pooled="last"))(TEXTS)
    torch.testing.assert_close(last.pooled[1], last.tokens[1][last.mask[1]][-1])
    own = load_encoder(EncoderConfig(str(clip), pooled="own", layer=-2))
    cond = own(TEXTS)
    assert cond.pooled.shape == (3, own.pooled_width) == (3, 20) and cond.tokens.shape[-1] == own.width == 32
    theirs = own.model(input_ids=own.tokens(TEXTS[:1])[0], output_hidden_states=True)
    torch.testing.assert_close(cond.pooled[:1], theirs.text_embeds)
    torch.testing.assert_close(cond.tokens[:1, : theirs.hidden_states[-2].shape[1]], theirs.hidden_states[-2])


def test_several_encoders_are_one(llm, t5, clip):
    parts = [load_encoder(EncoderConfig(str(path))) for path in (llm, t5, clip)]
    both = TextEncoders(parts)
    cond = both(TEXTS)
    assert (both.width, both.pooled_width) == (64, 64 + 24 + 32) and cond.pooled.shape == (3, 120)
    lengths = [part(TEXTS).mask.shape[1] for part in parts]
    assert cond.tokens.shape == (3, sum(lengths), 64)
    second = cond.tokens[:, lengths[0] : lengths[0] + lengths[1]]
    seen = cond.mask[:, lengths[0] : lengths[0] + lengths[1], None]
    torch.testing.assert_close(second[..., :24] * seen, parts[1](TEXTS).tokens * seen)
    assert second[..., 24:].abs().max() == 0


def test_a_text_is_read_once(llm, tmp_path, monkeypatch):
    def texts():
        made = TextEncoders([load_encoder(EncoderConfig(str(llm)))], tmp_path / "kept")
        asked = []
        forward = made[0].forward
        monkeypatch.setattr(made[0], "forward", lambda texts: asked.extend(texts) or forward(texts))
        return made, asked

    made, asked = texts()
    first, again = made(TEXTS + TEXTS[:1]), made(TEXTS[::-1])
    assert sorted(asked) == sorted(TEXTS)
    torch.testing.assert_close(again.pooled, first.pooled[[2, 1, 0]])
    other, asked = texts()  # another process
    for name in ("tokens", "mask", "pooled"):
        assert torch.equal(getattr(other(TEXTS), name), getattr(made(TEXTS), name))
    assert asked == []
    next((tmp_path / "kept").rglob("*.safetensors")).write_bytes(b"half")
    damaged, asked = texts()
    torch.testing.assert_close(
        damaged(TEXTS).pooled, made(TEXTS).pooled
    )  # read alone, a text is rounded otherwise than among others
    assert len(asked) == 1


def test_memory_of_texts_has_an_end(llm, monkeypatch):
    made, all_of_them = (TextEncoders([load_encoder(EncoderConfig(str(llm)))]) for _ in range(2))
    all_of_them(TEXTS)
    sizes = [sum(tensor.nbytes for tensor in row.values()) for row in all_of_them._kept.values()]
    monkeypatch.setattr(encoders, "KEPT", sum(sizes[1:]))
    made(TEXTS)
    assert [text for _, text in made._kept] == TEXTS[1:] and made._held == sum(sizes[1:])
    monkeypatch.setattr(encoders, "KEPT", 1)
    made([f"{text} again" for text in TEXTS])
    assert [text for _, text in made._kept] == [f"{TEXTS[-1]} again"]  # the one that is being used


def test_an_encoder_without_weights_has_the_same_shapes(llm, tmp_path):
    whole, bare = load_encoder(EncoderConfig(str(llm))), load_encoder(EncoderConfig(str(llm)), weights=False)
    assert all(p.is_meta for p in bare.parameters())
    assert {name: p.shape for name, p in whole.named_parameters()} == {
        name: p.shape for name, p in bare.named_parameters()
    }
    whole.model.config.save_pretrained(tmp_path)  # no tokenizer
    assert load_encoder(EncoderConfig(str(tmp_path)), weights=False).tokenizer("three words here")["input_ids"] == [
        0,
        0,
        0,
    ]


def test_a_trained_encoder_learns_and_keeps_nothing(llm):
    made = TextEncoders([load_encoder(EncoderConfig(str(llm), trained=True))])
    made.train()
    cond = made(TEXTS)
    cond.tokens.square().sum().backward()
    assert not made._kept and all(p.grad is not None for p in made[0].model.layers.parameters())
    frozen = TextEncoders([load_encoder(EncoderConfig(str(llm)))]).train()
    assert not frozen[0].training and not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"path": "nowhere/at_all"}, "nowhere/at_all: no text encoder can be loaded"),
        ({"layer": 3}, "layer=3, and it has 2"),
        ({"layer": -4}, "layer=-4"),
        ({"pooled": "own"}, "pooled=own is CLIP's"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused_in_one_line(llm, settings, said):
    with pytest.raises(ValueError, match=said) as error:
        load_encoder(EncoderConfig(**{"path": str(llm)} | settings))
    assert "\n" not in str(error.value)


def test_a_text_that_is_too_long_is_named(llm):
    encoder = load_encoder(EncoderConfig(str(llm), length=6))
    with pytest.raises(ValueError, match="longer than the 6 of this encoder: 'a very long"):
        encoder(["a", "a very long text of many more words than that"])


# ---- text-to-image models ----


@pytest.mark.parametrize("architecture", ["dit", "mmdit"])
def test_images_depend_on_their_own_text_and_seed_alone(llm, architecture):
    made = text_to_image(llm, architecture=architecture)
    together = made.images(TEXTS[:2], seed=3, steps=3)
    assert together[0].size == (16, 24)
    assert together[1] == made.images(TEXTS[1:2], seed=4, steps=3)[0]
    assert together[0] == made.draw(TEXTS[0], n=2, seed=3, steps=3)[0]
    assert (
        together[0] != made.draw(TEXTS[0], seed=4, steps=3)[0]
        and together[0] != made.draw(TEXTS[1], seed=3, steps=3)[0]
    )
    assert (
        made.draw(TEXTS[0], seed=3, steps=3, guidance=1.0)
        != together[:1]
        != made.draw(TEXTS[0], seed=3, steps=3, negative="a blue square")
    )


def test_a_folder_gives_the_same_images(llm, t5, tmp_path):
    made = text_to_image(llm, texts=[EncoderConfig(str(llm), layer=1), EncoderConfig(str(t5), pooled="last")])
    made.save_pretrained(tmp_path / "text_to_image")
    assert load_text_to_image(tmp_path / "text_to_image").images(TEXTS, steps=2) == made.images(TEXTS, steps=2)
    description = tmp_path / "text_to_image" / "painter.json"
    settings = json.loads(description.read_text())
    description.write_text(json.dumps(settings | {"architecture": "dit"}))
    with pytest.raises(ValueError, match="does not hold the weights of the dit"):
        load_text_to_image(tmp_path / "text_to_image")
    description.unlink()
    with pytest.raises(ValueError, match="no text-to-image model there"):
        load_text_to_image(tmp_path / "text_to_image")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"architecture": "unknown"}, "architecture 'unknown': choose one of unet, dit"),
        ({"network": {"depth": 3}}, "mmdit has no setting 'depth'; it has"),
        ({"texts": []}, "no text encoder: give at least one"),
        ({"codec": "nowhere/at_all"}, "nowhere/at_all"),
        ({"target": "u"}, "target='u'"),
    ],
)
def test_a_text_to_image_model_that_cannot_be_is_refused_in_one_line(llm, changes, said):
    with pytest.raises(ValueError, match=said):
        make_text_to_image(config(llm, **changes))


@pytest.mark.parametrize(
    "params, said",
    [({"size": (16, 20)}, "multiples of 8"), ({"solver": "rk45"}, "choose one of euler"), ({"steps": 0}, "too few")],
)
def test_an_image_that_cannot_be_is_refused_in_one_line(llm, params, said):
    with pytest.raises(ValueError, match=said):
        text_to_image(llm).draw(TEXTS[0], **params)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_architecture_is_saved_and_loaded(llm, tmp_path, name):
    texts = TextEncoders([load_encoder(EncoderConfig(str(llm), layer=1, layers=[0, 1, 2]))])
    network = LEARNERS[name](Sees(3, **texts.sees))
    stir(network)
    settings = TextToImageConfig(
        architecture=name.split(",")[0].split("-")[0], texts=[EncoderConfig(str(llm), layer=1, layers=[0, 1, 2])]
    )
    seen = ("channels", "text_width", "pooled_width", "layer_width")  # what is filled in when it is built
    settings.network = {key: value for key, value in asdict(network.config).items() if key not in seen}
    text_to_image = TextToImage(network.eval(), texts, load_codec("pixel"), settings)
    text_to_image.save_pretrained(tmp_path)
    loaded = load_text_to_image(tmp_path)
    for tensor, other in zip(network.state_dict().values(), loaded.network.state_dict().values(), strict=True):
        assert torch.equal(tensor, other)
    held = sum(p.numel() for p in network.parameters())
    assert (tmp_path / "network.safetensors").stat().st_size < 4 * held + 100_000
