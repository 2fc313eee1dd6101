"""The Fusion API: models from LLM folders, images and text, saving and loading (law 6), one-line errors."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

import fusion
from fusion.generation import api
from fusion.generation.interleaved import ImageDone, ImagePreview, TextPiece
from fusion.testing.mixed_documents import stirred
from fusion.testing.tiny_llms import VOCAB, tiny_config, tiny_llm, tiny_tokenizer
from fusion.unified.config import FusionConfig

QUICK = {"steps": 2, "max_new_tokens": 6, "image_size": (24, 16)}
IDS = torch.arange(1, 30)[None]


def llm_folder(folder: Path, family: str = "llama", **overrides) -> Path:
    tiny_llm(family, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return llm_folder(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def model(llm) -> fusion.Fusion:
    made = fusion.from_llm(llm, patch_size=8, max_side=64)
    stirred(made.model)
    return made


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


def photo(width: int = 32, height: int = 24, seed: int = 0) -> Image.Image:
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def pixels(outputs) -> list:
    return [part if isinstance(part, str) else (part.size, part.tobytes()) for part in outputs]


# ---- from_llm ----


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen3_moe", "opt"])
@pytest.mark.parametrize("time", ["adaln", "added", "none"])
def test_a_fresh_model_speaks_as_its_llm_does(family, time, tmp_path):
    made = fusion.from_llm(llm_folder(tmp_path, family), time=time, max_side=64)
    assert torch.equal(made.model(IDS).logits, AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits)


def test_new_weights_come_from_the_seed_alone(llm):
    one, same, other = (fusion.from_llm(llm, seed=seed).model.patch_embed.proj.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_dropout_is_off(tmp_path):
    made = fusion.from_llm(llm_folder(tmp_path, "gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1))
    made.model.train()
    assert torch.equal(made.model(IDS).logits, made.model(IDS).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_the_precision_is_that_asked_for(llm, dtype):
    made = fusion.from_llm(llm, dtype=dtype, max_side=64)
    assert {weight.dtype for weight in made.model.parameters()} == {torch.bfloat16}
    assert made.draw("a red circle", **QUICK)[0].size == (24, 16)


REFUSED = {
    "mamba": "mamba has linear_attention layers, which cannot attend in both directions: choose a "
    "full-attention decoder",
    "t5": "'t5' is not a supported decoder family: choose one of ",
    "recurrent_gemma": "recurrent_gemma",
    "lfm2": "'lfm2' is not a supported decoder family: choose one of ",
    "qwen3_next": "qwen3_next has linear_attention layers, which cannot attend in both directions",
    "jamba": "jamba",
    "bert": "'bert' is not a supported decoder family",
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_extended_is_refused_in_one_line_before_any_weight_is_read(family, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as error:
        fusion.from_llm(tmp_path)
    assert REFUSED[family] in str(error.value) and "\n" not in str(error.value)


def test_dynamic_rotary_positions_are_refused(tmp_path):
    folder = llm_folder(tmp_path, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(ValueError, match="dynamic rotary positions, which change with the longest sequence"):
        fusion.from_llm(folder)


@pytest.mark.parametrize(
    ("param", "value"),
    [("time", "sometimes"), ("positions", "nowhere"), ("target", "y"), ("path", "winding"), ("head", "bald")],
)
def test_unknown_choices_are_refused(llm, param, value):
    with pytest.raises(ValueError, match=rf"^{param}='{value}': choose one of "):
        fusion.from_llm(llm, **{param: value})


def test_pixels_get_the_convolutional_head_unless_told_otherwise(llm):
    made, plain = fusion.from_llm(llm, patch_size=16), fusion.from_llm(llm, patch_size=16, head="linear")
    assert made.model.config.head == "conv" and hasattr(made.model.flow_head, "drawn")
    assert plain.model.config.head == "linear" and not hasattr(plain.model.flow_head, "drawn")


def test_a_config_from_before_the_waves_of_positions_were_a_choice_keeps_its_positions():
    config = FusionConfig(text_config=tiny_config("llama"))
    assert (config.position_base, config.position_wave) == (10000.0, 2 * math.pi)


@pytest.mark.parametrize("max_side, base", [(64, 16.0), (1024, 64.0)])
def test_the_waves_of_positions_span_the_widest_image_twice(llm, max_side, base):
    config = fusion.from_llm(llm, patch_size=16, max_side=max_side).model.config
    assert (config.position_wave, config.position_base) == (2.0, base)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a Hugging Face model"):
        fusion.from_llm(tmp_path)


def test_attention_that_ignores_a_mask_is_refused(llm):
    made = fusion.from_llm(llm, max_side=64)
    made.model.llm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match=r"^'flash_attention_2' attention ignores a mixed mask: choose 'sdpa', 'eager', "
    ):
        made.generate("hi", **QUICK)


# ---- generation ----


def test_drawing_is_repeated_by_its_seed_and_numbered_from_it(model):
    first, second = model.draw("a red circle", n=2, seed=5, **QUICK)
    assert first.size == (24, 16) and first.tobytes() != second.tobytes()
    assert model.draw("a red circle", seed=6, **QUICK)[0].tobytes() == second.tobytes()


def test_an_edit_keeps_the_size_whatever_patches_divide(model):
    assert model.edit(photo(32, 24), "make it blue", steps=2).size == (32, 24)
    assert model.edit(photo(33, 21), "make it blue", steps=2).size == (33, 21)


def test_a_description_is_words(model):
    said = model.describe(photo(), max_new_tokens=5, temperature=1.0, seed=1)
    assert isinstance(said, str) and said


def test_rows_of_a_batch_are_what_each_is_alone(model):
    prompts = [
        ["draw a red circle, please"],
        [photo(), "make it green"],
        ["hi"],
        [photo(16, 16, 1), photo(8, 24, 2), "and now?"],
    ]
    params = QUICK | {"temperature": 1.0, "guidance": 2.0, "image_guidance": 1.5, "image_size": None, "max_images": 2}
    together = model.generate(prompts, seed=3, **params)
    alone = [model.generate(prompt, seed=3 + row, **params) for row, prompt in enumerate(prompts)]
    assert [[part if isinstance(part, str) else part.size for part in out] for out in together] == [
        [part if isinstance(part, str) else part.size for part in out] for out in alone
    ]
    drawn = model._images(prompts, 3, QUICK | {"image_guidance": 1.5})
    for row, prompt in enumerate(prompts):
        one = model._images([prompt], 3 + row, QUICK | {"image_guidance": 1.5})[0]
        assert off_by(one, drawn[row]) <= 1


def off_by(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two images, of 255."""
    one, other = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (a, b))
    return int((one - other).abs().max())


def test_a_stream_is_what_generate_returns(model):
    prompt = ["a red circle"]
    events = list(model.stream([prompt, prompt], seed=1, temperature=1.0, **QUICK))
    for row, output in enumerate(model.generate([prompt, prompt], seed=1, temperature=1.0, **QUICK)):
        text = "".join(event.text for event in events if isinstance(event, TextPiece) and event.row == row)
        assert text.strip() == "".join(part for part in output if isinstance(part, str)).strip()
        images = [event.image for event in events if isinstance(event, ImageDone) and event.row == row]
        assert pixels(images) == pixels(part for part in output if not isinstance(part, str))
    previews = [event for event in events if isinstance(event, ImagePreview)]
    assert all(event.step < event.steps == 2 for event in previews)


def test_control_tokens_that_people_type_stay_text(model):
    typed = "<|image_start|>64x64<|image_patch|><|image_end|><|assistant|>"
    pieces = model.processor.pieces(model.processor.document(typed, prompt=True))
    own = [piece for piece in pieces if not piece.template]
    assert own and all(token < model.processor.vocab_base for piece in own for token in piece.ids)
    assert model.processor.decode([token for piece in own for token in piece.ids]) == typed
    assert isinstance(model.generate(typed, max_images=0, max_new_tokens=3), list)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stpes": 3}, "stpes: no such sampling parameter; there are guidance, guidance_interval, "),
        ({"image_size": (30, 16)}, "image_size (30, 16): sides must be multiples of 8 up to 64, at most 4096 patches"),
        ({"image_size": (128, 16)}, "image_size (128, 16): sides must be multiples of 8 up to 64"),
        ({"image_size": (0, 0)}, "image_size (0, 0): sides must be multiples of 8 up to 64"),
        ({"steps": 0}, "steps is at least 1, not 0"),
        ({"temperature": -1.0}, "temperature is at least 0, not -1.0"),
        ({"solver": "guess"}, "solver is one of euler, heun, dpmpp_2m, not 'guess'"),
        ({"guidance_interval": (0.5, 2.0)}, "guidance interval (0.5, 2.0) is not within [0, 1]"),
    ],
)
def test_params_that_make_no_sense_are_refused_in_one_line(model, params, message):
    with pytest.raises((ValueError, TypeError)) as error:
        model.draw("a red circle", **params)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], "   ", [{"role": "user", "content": ""}], [[], ["hi"]]])
def test_an_empty_prompt_is_refused_in_one_line(model, prompt):
    with pytest.raises(ValueError) as error:
        model.generate(prompt)
    assert "empty" in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_longer_than_the_context_is_refused_in_one_line(model):
    with pytest.raises(ValueError, match=r"^[^\n]*\b512\b[^\n]*$"):
        model.generate("a red circle " * 300)


def test_an_image_that_does_not_fit_the_context_is_refused_in_one_line(tmp_path):
    made = fusion.from_llm(llm_folder(tmp_path, max_position_embeddings=48), patch_size=8, max_side=64)
    with pytest.raises(ValueError, match=r"^the prompt leaves no room for an image in the model's context"):
        made.draw("a red circle", image_size=(64, 64))
    words = made.generate("hi", max_images=0, max_new_tokens=200, temperature=1.0)
    assert words, "text ends where the context does"


@pytest.mark.parametrize("prompt", [[b"not an image"], ["see", "/nowhere/cat.png", Path("/nowhere/cat.png")]])
def test_images_that_are_none_are_refused_in_one_line(model, prompt):
    with pytest.raises(ValueError) as error:
        model.generate(prompt)
    assert "\n" not in str(error.value)


# ---- folders ----


def test_save_then_load_is_the_identity(model, saved):
    loaded = fusion.load(saved)
    ours, theirs = model.model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.processor.to_dict() == model.processor.to_dict()
    assert loaded.processor.chat_template == model.processor.chat_template
    assert type(loaded.codec) is type(model.codec)
    assert pixels(loaded.draw("a red circle", **QUICK)) == pixels(model.draw("a red circle", **QUICK))
    assert not any(path.name.startswith(".") for path in saved.parent.iterdir()), "no temporary folder is left"


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "qwen3_moe", "opt"])
def test_families_of_other_make_survive_their_folder_too(family, tmp_path):
    made = fusion.from_llm(llm_folder(tmp_path / "llm", family), max_side=64)
    stirred(made.model)
    made.save_pretrained(tmp_path / "model")
    loaded = fusion.load(tmp_path / "model")
    assert torch.equal(loaded.model(IDS).logits, made.model(IDS).logits)
    assert pixels(loaded.draw("a red circle", **QUICK)) == pixels(made.draw("a red circle", **QUICK))


def test_auto_classes_read_the_folder(model, saved):
    auto, processor = AutoModel.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    assert type(auto) is type(model.model) and torch.equal(auto(IDS).logits, model.model(IDS).logits)
    assert type(processor) is type(model.processor) and processor.control_tokens == model.processor.control_tokens


def test_the_exported_llm_is_the_llm(model, llm, tmp_path):
    model.export_llm(tmp_path / "plain")
    plain, original = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "plain", llm))
    assert type(plain) is type(original) and plain.config.vocab_size == VOCAB
    ours, theirs = plain.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain")("a red circle") == AutoTokenizer.from_pretrained(llm)(
        "a red circle"
    )


def test_saving_over_a_folder_leaves_a_whole_model(model, saved, tmp_path):
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in saved.iterdir()}
    fusion.load(tmp_path)


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "processor_config.json", "codec/config.json", "tokenizer.json"]
)
def test_a_half_written_folder_is_refused_in_one_line(model, tmp_path, missing):
    model.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError) as error:
        fusion.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_weight_file_is_refused_in_one_line(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError) as error:
        fusion.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_some_of_its_weights_is_refused_in_one_line(model, tmp_path):
    """transformers would draw them at random, with a warning."""
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["flow_head.out.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"the model is incomplete \(.no weights for flow_head.out.weight.\): copy or save it again$"
    ):
        fusion.load(tmp_path)


def test_another_format_is_refused_in_one_line(model, llm, tmp_path):
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, this fusion reads 1"):
        fusion.load(tmp_path)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        fusion.load(llm)


def test_a_bundled_model_is_found_by_its_name_and_draws():
    model = fusion.load("shapes")
    assert sum(p.numel() * p.element_size() for p in model.model.parameters()) <= 8_000_000
    (image,) = model.draw("draw a red circle", image_size=(32, 32), steps=2, seed=0)
    assert image.size == (32, 32)
    with pytest.raises(ValueError, match=r"^triangles: no fusion model there .* or a bundled name \(shapes\)$"):
        fusion.load("triangles")
    written = "".join(path.read_text() for path in (api.BUNDLED / "shapes").rglob("*.json"))
    assert "/llm" not in written
