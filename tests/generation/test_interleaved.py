"""Interleaved generation: the state machine of text, sizes and images, an image's cost, and what is then read."""

import pytest
import torch
from PIL import Image

from fusion.codecs.codec import Pixel
from fusion.generation.api import Fusion
from fusion.generation.interleaved import Generator, ImageDone, ImagePreview, TextPiece
from fusion.generation.prefix import Prefix
from fusion.generation.sampling import Sampling
from fusion.sequence.images import to_pixels
from fusion.sequence.packed import ImagePiece
from fusion.sequence.processor import FusionProcessor
from fusion.testing.mixed_documents import assert_close, stirred, watched
from fusion.testing.tiny_llms import tiny_llm, tiny_tokenizer
from fusion.unified.config import FusionConfig
from fusion.unified.model import FusionModel

PATCH = 4
FAMILIES = ["llama", "gpt2", "gemma3_text", "qwen3_moe", "gpt_oss"]


def tiny_app(family: str) -> Fusion:
    tokenizer, llm = tiny_tokenizer(), tiny_llm(family)
    processor = FusionProcessor.from_tokenizer(
        tokenizer, llm.get_output_embeddings().out_features, PATCH, max_side=24, max_patches=30
    )
    config = FusionConfig(
        text_config=llm.config,
        patch_size=PATCH,
        vocab_base=processor.vocab_base,
        control_tokens=len(processor.control_tokens),
    )
    torch.manual_seed(1)
    return Fusion(stirred(FusionModel.from_llm(llm, config)), processor, Pixel())


@pytest.fixture(scope="module", params=FAMILIES)
def app(request) -> Fusion:
    return tiny_app(request.param)


@pytest.fixture(scope="module")
def llama() -> Fusion:
    return tiny_app("llama")


@pytest.fixture
def eager_to_draw(llama, monkeypatch) -> Fusion:
    """A model that opens an image whenever it may."""
    rows = llama.model.all_logits

    def all_logits(hidden):
        logits = rows(hidden).clone()
        logits[..., llama.model.llm_vocab] += 1e4  # the column of `<|image_start|>`
        return logits

    monkeypatch.setattr(llama.model, "all_logits", all_logits)
    return llama


def document(app: Fusion, prompt):
    return app.processor.document(prompt, prompt=True)


# ---- what an image costs ----


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_an_image_costs_its_steps_over_its_own_patches_and_one_pass_over_the_prefix(app, solver):
    prompt = document(app, "a red circle")
    prefix = sum(len(piece.ids) for piece in app.processor.pieces(prompt)) + 1 + len(app.processor.size_ids(24, 16))
    with watched(app.model) as calls:
        app.draw("a red circle", image_size=(24, 16), steps=5, solver=solver, guidance=1.0)
    assert [tuple(call.shape[:2]) for call in calls] == [(1, prefix)] + [(1, 24)] * 5


def test_guidance_adds_a_pass_over_each_branchs_prefix_and_no_step(app):
    image = to_image_of(8, 8)
    with watched(app.model) as calls:
        app.edit(image, "make it blue", image_size=(24, 16), steps=4, guidance=3.0, image_guidance=1.5)
    shapes = [tuple(call.shape[:2]) for call in calls]
    assert len(shapes) == 3 + 4 and shapes[3:] == [(3, 24)] * 4, "three prefixes, then all branches as one batch"
    assert shapes[0][1] > shapes[1][1] > shapes[2][1], "without text, then without images"


def test_guidance_outside_its_interval_costs_nothing(app):
    with watched(app.model) as calls:
        app.draw("a red circle", image_size=(24, 16), steps=4, guidance=3.0, guidance_interval=(0.0, 0.5))
    assert [call.shape[0] for call in calls if call.shape[1] == 24] == [1, 1, 2, 2]


def to_image_of(width: int, height: int, seed: int = 0):
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def test_every_row_is_read_once(eager_to_draw, monkeypatch):
    made = []
    monkeypatch.setattr("fusion.generation.interleaved.Prefix", lambda *args: made.append(Prefix(*args)) or made[-1])
    eager_to_draw.generate("draw", max_images=2, max_new_tokens=6, steps=1, guidance=1.0)
    (prefix,) = made
    assert prefix.encoded == prefix.writers[0].order, "the clean stream, and not a row more"


# ---- the state machine ----


def test_rows_draw_when_they_choose_and_stop_at_their_limits(eager_to_draw):
    out = eager_to_draw.generate("draw", max_images=3, max_new_tokens=4, steps=1)
    images = [part for part in out if not isinstance(part, str)]
    assert len(images) == 3 and all(image.size in eager_to_draw.processor.sizes for image in images)
    assert not isinstance(out[0], str) and isinstance(out[-1], str), "three images at once, then words until the limit"
    assert eager_to_draw.generate("draw", max_images=0, max_new_tokens=4)[0]


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_spelled_within_the_grammar_whatever_the_model_says(eager_to_draw, seed):
    (image, *_) = eager_to_draw.generate("draw", seed=seed, temperature=5.0, max_images=1, max_new_tokens=0, steps=1)
    assert image.size in eager_to_draw.processor.sizes


def test_events_come_in_order(eager_to_draw):
    events = list(eager_to_draw.stream(["draw"], max_images=1, max_new_tokens=3, steps=3))
    kinds = [type(event) for event in events]
    assert kinds[:3] == [ImagePreview, ImagePreview, ImageDone] and set(kinds[3:]) <= {TextPiece}
    assert [event.step for event in events[:2]] == [1, 2] and {event.steps for event in events[:2]} == {3}
    quiet = list(eager_to_draw.stream(["draw"], previews=False, max_images=1, max_new_tokens=3, steps=3))
    assert not any(isinstance(event, ImagePreview) for event in quiet)


def test_text_never_holds_a_special_token(app):
    said = app.generate("hello", temperature=3.0, max_images=0, max_new_tokens=40, seed=2)
    assert all(token not in "".join(said) for token in app.processor.control_tokens)


# ---- what is drawn is what is read ----


@torch.no_grad()
def test_a_finished_image_is_read_as_its_png_would_be(eager_to_draw, monkeypatch):
    """The state after an interleaved answer is that of a fresh pass over the same document with the images reloaded."""
    app, made = eager_to_draw, []
    monkeypatch.setattr("fusion.generation.interleaved.Prefix", lambda *args: made.append(Prefix(*args)) or made[-1])
    settings = Sampling(max_images=2, max_new_tokens=5, steps=2, guidance=1.0)
    pieces = app.processor.pieces(document(app, "draw"))
    text, images = [], []
    generator = Generator(app.model, app.processor, app.codec, settings)
    for event in generator.events([document(app, "draw")], [0]):
        if isinstance(event, ImageDone):
            images.append(event.image)
        if isinstance(event, TextPiece):
            text.append(event.text)
    prefix = made[0]
    fresh = Prefix(app.model, app.processor.control, 1)
    shown = [
        ImagePiece(to_pixels(image), app.processor.size_ids(*image.size), (image.height // PATCH, image.width // PATCH))
        for image in images
    ]
    fresh.write(0, [*pieces, *shown])
    fresh.read([generator._patches(piece.pixels) for piece in shown])
    images_end = fresh.encoded
    assert len(images) == 2 and "".join(text)
    for layer, again in zip(prefix.cache.layers, fresh.cache.layers, strict=True):
        assert_close(layer.keys[:, :, :images_end], again.keys)
        assert_close(layer.values[:, :, :images_end], again.values)


# ---- batches ----


def test_rows_of_a_batch_do_not_influence_each_other(app):
    prompts = [
        ["a"],
        [to_image_of(8, 12), "make it green, and larger"],
        ["one", to_image_of(4, 4, 1), "two"],
        ["a red circle " * 4],
    ]
    params = {
        "temperature": 1.0,
        "max_images": 1,
        "max_new_tokens": 8,
        "steps": 2,
        "guidance": 2.0,
        "image_guidance": 1.5,
    }
    together = app.generate(prompts, seed=4, **params)
    for row, prompt in enumerate(prompts):
        alone = app.generate(prompt, seed=4 + row, **params)
        assert [part for part in alone if isinstance(part, str)] == [
            part for part in together[row] if isinstance(part, str)
        ]
        for one, other in zip(alone, together[row], strict=True):
            if not isinstance(one, str):
                assert (to_pixels(one) - to_pixels(other)).abs().max() <= 1.01 * 2 / 255, (
                    "rounding to 8 bits may fall either way"
                )


@torch.no_grad()
def test_a_negative_prompt_takes_the_place_of_the_text(llama):
    params = {"image_size": (24, 16), "steps": 3, "guidance": 4.0}
    plain, negative, same = (
        llama.draw("a red circle", negative_prompt=words, **params)[0]
        for words in (None, "a blue square", "a red circle")
    )
    unguided = llama.draw("a red circle", **params | {"guidance": 1.0})[0]
    assert plain.tobytes() != negative.tobytes()
    assert (to_pixels(same) - to_pixels(unguided)).abs().max() <= 1.01 * 2 / 255, (
        "guided away from itself, nothing changes"
    )
