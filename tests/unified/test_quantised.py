"""Quantised loading: the LLM takes less memory, answers nearly the same; new weights stay; one-line errors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

import fusion
from fusion.testing.mixed_documents import stirred
from tests.generation.test_api import IDS, QUICK, llm_folder, photo

WIDE = {"hidden_size": 256, "intermediate_size": 512}
NEAR = 0.1  # of the logits' norm: measured 0.035 to 0.056 with 8 bits, and 0.55 with 4


def torchao():
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bitsandbytes():
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


def quanto():
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights="int8")


@pytest.fixture(params=[torchao, bitsandbytes, quanto], ids=lambda kind: kind.__name__)
def quantisation(request):
    return request.param()


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return llm_folder(tmp_path_factory.mktemp("llm"), "llama", **WIDE)


@pytest.fixture(scope="module")
def saved(llm, tmp_path_factory) -> Path:
    """A model of adapters, its LLM beside it."""
    model = fusion.from_llm(llm, max_side=64).add_lora()
    stirred(model.model.flow_head)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder, base=llm)
    return folder


def held(tensor: Tensor) -> int:
    """Bytes that a tensor takes, those inside one that stands for several."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(held(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.untyped_storage().nbytes()


def layers(model: fusion.Fusion) -> int:
    """Bytes of the LLM's layers."""
    return sum(held(p.data) for p in model.model.llm.model.layers.parameters())


def far(model: fusion.Fusion, other: fusion.Fusion) -> float:
    ours, theirs = model.model(IDS).logits, other.model(IDS).logits
    return ((ours - theirs).norm() / theirs.norm()).item()


def plain(model: nn.Module) -> set[str]:
    """Names of the weights that nothing was done to."""
    return {
        name
        for name, p in model.named_parameters()
        if type(p) is nn.Parameter and type(p.data) is Tensor and p.is_floating_point()
    }


@pytest.mark.parametrize("mode", ["shared", "mot", "frozen"])
def test_an_extended_llm_is_quantised_and_what_is_new_is_not(llm, quantisation, mode):
    whole = fusion.from_llm(llm, max_side=64, mode=mode)
    model = fusion.from_llm(llm, max_side=64, mode=mode, quantization_config=quantisation)
    assert 0 < far(model, whole) < NEAR and layers(model) < 0.3 * layers(whole)
    linear = {name for name in plain(whole.model) if name.startswith("llm.model.layers.") and "norm" not in name}
    assert plain(whole.model) - plain(model.model) == linear and len(linear) == 2 * 7
    ours, theirs = dict(model.model.named_parameters()), dict(whole.model.named_parameters())
    assert all(torch.equal(ours[name], theirs[name]) for name in plain(model.model))
    assert model.draw("a dog", **QUICK)[0].size == QUICK["image_size"] and model.generate(
        [photo(), "what is it?"], **QUICK
    )


@pytest.mark.parametrize("how", [{}, {"device": "cpu"}, {"device_map": "auto"}, {"dtype": "bf16"}], ids=str)
def test_a_saved_model_is_quantised(saved, quantisation, how):
    whole, model = fusion.load(saved), fusion.load(saved, quantization_config=quantisation, **how)
    assert 0 < far(model, whole) < NEAR and layers(model) < 0.4 * layers(whole)  # adapters are not quantised
    assert {name for name, _ in model.model.named_parameters() if "lora_" in name} <= plain(model.model)
    assert model.draw("a dog", **QUICK)[0].size == QUICK["image_size"] and model.generate(
        [photo(), "what is it?"], **QUICK
    )


def test_a_dict_does_too(llm):
    pytest.importorskip("bitsandbytes")
    assert fusion.from_llm(llm, max_side=64, quantization_config={"load_in_4bit": True}).model.quantised


def test_what_cannot_be_done_with_it_is_one_line(saved, quantisation, tmp_path):
    model = fusion.load(saved, quantization_config=quantisation)
    for name, change in (
        ("to", lambda: model.to("cpu")),
        ("save_pretrained", lambda: model.save_pretrained(tmp_path / "model")),
        ("export_llm", lambda: model.export_llm(tmp_path / "llm")),
        ("merge_lora", model.merge_lora),
    ):
        with pytest.raises(
            ValueError, match=rf"^{name}: this model's weights are quantised, load it without quantization_config$"
        ):
            change()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^quantization_config: [A-Za-z]+ cannot ") as error:
        fusion.load(
            saved, quantization_config=quantisation, device_map={"llm.model.layers.0": "disk"}, offload_folder=tmp_path
        )
    assert "\n" not in str(error.value)


def test_an_llm_that_stays_as_it_is_is_refused(tmp_path):
    with pytest.raises(ValueError, match="QuantoConfig found no linear layers that it could quantise in this gpt2"):
        fusion.from_llm(llm_folder(tmp_path, "gpt2"), quantization_config=quanto())


def test_a_library_that_is_missing_is_one_line(llm, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_quanto.is_optimum_quanto_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"^quantization_config: QuantoConfig cannot be used here \(.*pip install optimum-quanto"
    ):
        fusion.from_llm(llm, quantization_config=QuantoConfig(weights="int8"))
    with pytest.raises(ValueError, match=r"^quantization_config: list has no list of modules to leave alone"):
        fusion.from_llm(llm, quantization_config=[])
