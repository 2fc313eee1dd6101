"""Loading weights: every spelling of a precision, the same answers with every device map, one-line errors."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fusion
from fusion.cli import main as cli
from fusion.generation.interleaved import Generator
from fusion.testing import mixed_documents as mixed
from fusion.testing.mixed_documents import stirred
from fusion.unified.loading import blocks, whole_map
from tests.generation.test_api import IDS, QUICK, llm_folder, photo, pixels
from tests.support import devices

MODELS = {
    "shared": ("llama", {}),
    "tied": ("gpt2", {"mode": "mot"}),
    "mot": ("qwen3_moe", {"mode": "mot"}),
    "frozen": ("gemma2", {"mode": "frozen", "image_width": 32}),
    "hidden": ("phi3", {"mode": "frozen", "deep": "hidden"}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(name)`: the folder of one of MODELS, made when it is first asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            top, (family, how) = tmp_path_factory.mktemp(name), MODELS[name]
            model = fusion.from_llm(llm_folder(top / "llm", family), max_side=64, **how)
            stirred(model.model)
            model.save_pretrained(top / "model")
            made[name] = top / "model"
        return made[name]

    return folder


def said(model: fusion.Fusion) -> tuple:
    """All that a model can be asked: words and an image behind an image, an image alone, and the logits of text."""
    return (
        pixels(model.generate([photo(), "make it red"], **QUICK)),
        model.draw("a dog", **QUICK)[0].tobytes(),
        model.model(IDS).logits.tolist(),
    )


# ---- precision ----


@pytest.mark.parametrize(
    ("dtype", "meant"),
    [
        ("bf16", torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("fp16", torch.float16),
        ("float16", torch.float16),
        ("fp32", torch.float32),
        ("float32", torch.float32),
        ("auto", torch.float32),
        (None, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_precision_is_what_people_call_it(saved, dtype, meant):
    made = [
        fusion.load(saved("shared"), dtype=dtype),
        fusion.from_llm(saved("shared").parent / "llm", dtype=dtype, max_side=64),
    ]
    assert {p.dtype for model in made for p in model.model.parameters()} == {meant}


@pytest.mark.parametrize("dtype", ["bf17", "int8", torch.int8, ""])
def test_what_is_no_precision_is_refused(saved, dtype, capsys):
    choices = "choose one of bf16, bfloat16, fp16, float16, fp32, float32, auto, or a floating dtype of torch"
    for load in (fusion.load, fusion.from_llm):
        with pytest.raises(ValueError, match=f"^dtype={dtype!r}: {choices}$"):
            load(saved("shared"), dtype=dtype)
    if isinstance(dtype, str):
        assert cli.main(["generate", str(saved("shared")), "a", "--dtype", dtype]) == 2
        assert capsys.readouterr().err == f"fusion: error: dtype={dtype!r}: {choices}\n"


# ---- devices ----


def maps(model: fusion.FusionModel) -> dict:
    """A model's device maps, by what they are."""
    _, before, first, *_, last = blocks(model)
    return {
        "cpu": "cpu",
        "disk": {"": "disk"},
        "layer": {"": "cpu", first[0]: "disk"},
        "copies": dict.fromkeys((*first[1:], *last), "disk"),
        "finer": {before[0]: "disk", f"{first[0]}.{model.backbone.family.feed_forward}": "disk"},
    }


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_the_same_wherever_the_weights_are(saved, name, tmp_path):
    plain = fusion.load(saved(name))
    expected = said(plain)
    for kind, places in maps(plain.model).items():
        model = fusion.load(saved(name), device_map=places, offload_folder=tmp_path)
        assert said(model) == expected, kind
        assert model.model.offloaded == (kind != "cpu"), kind
        assert not any(
            p.is_meta for part, p in model.model.named_parameters() if not part.startswith(("llm.", "twins."))
        ), kind


def test_auto_fills_the_memory_that_it_is_given(saved, tmp_path):
    plain = fusion.load(saved("shared"))
    size = sum(p.nbytes for p in plain.model.parameters())
    for share in (0.9, 4):
        model = fusion.load(
            saved("shared"), device_map="auto", max_memory={"cpu": int(share * size)}, offload_folder=tmp_path
        )
        there = sum(p.nbytes for p in model.model.parameters() if not p.is_meta)
        assert there <= share * size and (there == size) == (share > 1) and said(model) == said(plain)


def test_an_extended_llm_is_placed_too(saved, tmp_path):
    llm = saved("mot").parent / "llm"
    plain = fusion.from_llm(llm, max_side=64, mode="mot")
    model = fusion.from_llm(
        llm, max_side=64, mode="mot", device_map={"llm.model.layers.1": "disk"}, offload_folder=tmp_path
    )
    assert model.model.offloaded and said(model) == said(plain)


def test_a_model_beside_its_llm_is_placed_too(saved, tmp_path):
    model = fusion.from_llm(saved("shared").parent / "llm", max_side=64).add_lora()
    stirred(model.model.flow_head)
    model.save_pretrained(tmp_path / "beside", base=saved("shared").parent / "llm")
    placed = fusion.load(tmp_path / "beside", device_map={"llm.model.layers.0": "disk"}, offload_folder=tmp_path)
    assert placed.model.offloaded and said(placed) == said(model)


def test_hugging_face_loads_it_so_and_continues_text(saved, tmp_path):
    plain, placed = (
        AutoModelForCausalLM.from_pretrained(saved("mot"), **how)
        for how in ({}, {"device_map": {"llm.model.layers.0": "disk"}, "offload_folder": tmp_path})
    )
    assert (
        placed.offloaded
        and placed.generate(IDS, max_new_tokens=5).tolist() == plain.generate(IDS, max_new_tokens=5).tolist()
    )


def test_the_command_line_places_it_too(saved, tmp_path, capsys):
    words = ["describe", str(saved("shared")), "--dtype", "bf16", "--max-new-tokens", "3"]
    photo().save(tmp_path / "photo.png")
    assert cli.main([*words, str(tmp_path / "photo.png"), "--device-map", "auto"]) == 0
    assert cli.main([*words, str(tmp_path / "photo.png"), "--device-map", "nowhere"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("fusion: error: device_map: 'nowhere' is no device")


def test_what_is_offloaded_is_saved_whole(saved, tmp_path):
    model = fusion.load(saved("mot"), device_map={"": "disk"}, offload_folder=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of the memory that it takes
        model.save_pretrained(tmp_path / "again")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", saved("mot")))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_maps_for_several_devices(saved):
    """Where things go on a machine with two GPUs: nothing is moved."""
    config = fusion.FusionConfig.from_pretrained(saved("mot"))
    with torch.device("meta"):
        model = fusion.FusionModel(config)
    places = whole_map(
        model,
        {
            "llm.model.embed_tokens": "cpu",
            "llm.model.layers.0": "cuda",
            "llm.model.layers.1": 1,
            "llm.lm_head": "cuda:1",
        },
    )
    assert {
        places[name] for name in ("control_embed", "modulation_table", "flow_head", "patch_embed", "llm.model.norm")
    } == {0}
    assert (
        places["llm.model.embed_tokens"] == "cpu"
        and places["llm.lm_head"] == places["twins.1"] == 1
        and places["twins.0"] == 0
    )
    covered = [
        name for name, _ in model.named_parameters() if any(name == key or name.startswith(f"{key}.") for key in places)
    ]
    assert covered == [name for name, _ in model.named_parameters()]
    assert set(whole_map(model, 1).values()) == {1}


def test_maps_that_mean_nothing_are_one_line(saved, tmp_path):
    folder = saved("shared")
    for how, words in (
        ({"device_map": "nowhere"}, "device_map: 'nowhere' is no device: give auto, "),
        (
            {"device_map": {"model.layers.0": "cpu"}},
            "device_map: the model has no 'model.layers.0'; its parts are called llm.model.embed_tokens, ",
        ),
        ({"device_map": {"": "disk"}}, "device_map: some of the weights go to the disk: give offload_folder="),
        ({"device_map": "auto", "device": "cpu"}, "device='cpu' and device_map='auto': give one of them"),
        ({"max_memory": {"cpu": 1}}, "max_memory and offload_folder go with device_map"),
    ):
        with pytest.raises(ValueError, match=f"^{words}") as error:
            fusion.load(folder, **how)
        assert "\n" not in str(error.value)
    placed = fusion.load(folder, device_map={"": "disk"}, offload_folder=tmp_path)
    for name, change in (
        ("to", lambda: placed.to("cpu")),
        ("export_llm", lambda: placed.export_llm(tmp_path / "llm")),
        ("add_lora", placed.add_lora),
        ("save_pretrained", lambda: placed.save_pretrained(tmp_path / "beside", base=folder)),
    ):
        with pytest.raises(
            ValueError, match=rf"^{name}: this model's weights are spread or offloaded, load it without device_map$"
        ):
            change()


@pytest.mark.parametrize(
    "case",
    [
        ("llama", "adaln", "axial"),
        ("gemma2", "added", "axial+sincos"),
        ("gpt2", "adaln", "shared", "conv+reference"),
        ("olmo2", "adaln", "axial", "linear", "mot"),
        ("gpt_neox", "adaln", "axial", "linear", "frozen"),
        ("llama", "adaln", "axial", "linear", "frozen+hidden"),
    ],
    ids="-".join,
)
@torch.no_grad()
def test_layers_on_several_devices_answer_as_on_one(case):
    """Our hooks beside those that move rows from device to device: no tensor meets one from elsewhere, and nothing is
    rounded otherwise."""
    model, packed = (
        copy.deepcopy(mixed.tiny_fusion(*case)).requires_grad_(False),
        mixed.packed_rows([[mixed.drawing()], [mixed.story()]]),
    )
    model.set_attention("eager")
    plain = model(packed=packed)
    with devices.Several():
        first = over_four(model)
        output = model(packed=packed.to(first).with_patches(packed.patches.to(first), packed.time.to(first)))
    assert model.device == output.logits.device == output.prediction.device == first
    assert torch.equal(output.logits.inner, plain.logits) and torch.equal(output.prediction.inner, plain.prediction)


def over_four(model: fusion.FusionModel) -> torch.device:
    """Spread a model over four devices; returns the one of what is new."""
    first, *others = (torch.device("meta", number) for number in range(4))
    own, before, *layers, behind = blocks(model)
    places = dict.fromkeys(own, first) | dict.fromkeys(before, others[2]) | dict.fromkeys(behind, others[1])
    for number, layer in enumerate(layers):
        places |= dict.fromkeys(layer, others[number % 2])
    devices.spread(model, places)
    return first


@pytest.mark.parametrize("name", ["tied", "hidden"])
@torch.no_grad()
def test_layers_on_several_devices_draw_as_on_one(saved, name, monkeypatch):
    monkeypatch.setattr(Generator, "events", Generator.events.__wrapped__)  # inference mode would take nothing apart
    model = fusion.load(saved(name))
    model.model.requires_grad_(False).set_attention("eager")
    prompt = [photo(), "make it red"]
    drawn, written = model.draw("a dog", guidance=2.0, **QUICK)[0].tobytes(), pixels(model.generate(prompt, **QUICK))
    with devices.Several():
        over_four(model.model)
        assert (
            model.draw("a dog", guidance=2.0, **QUICK)[0].tobytes() == drawn
            and pixels(model.generate(prompt, **QUICK)) == written
        )
