"""Presets: saved and loaded with a model, used by every way to draw, overridden by options, one-line errors."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel

import fusion
from fusion import Sampling
from fusion.cli import main as cli
from fusion.evaluation.subjects import with_preset
from fusion.generation import drawing, presets
from fusion.generation.cost import passes
from fusion.testing import tiny_runs as training
from fusion.testing.mixed_documents import stirred

GIVEN = {
    "fast": {"steps": 2, "solver": "heun", "guidance": 1.5, "image_guidance": 2.0, "guidance_interval": [0.2, 1.0]},
    "best": {"steps": 3, "shift": 2.0},
}
USED = {
    name: {param: tuple(value) if isinstance(value, list) else value for param, value in params.items()}
    for name, params in GIVEN.items()
}
SIZE = {"image_size": (16, 16)}


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("presets") / "llm")


@pytest.fixture(scope="module")
def model(llm) -> fusion.Fusion:
    made = fusion.from_llm(llm, max_side=64, dtype=torch.float32)
    stirred(made.model)
    made.presets = GIVEN
    return made


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(place)
    return place


# ---- kept ----


def test_they_are_saved_and_loaded(model, folder, tmp_path):
    assert model.presets == USED and fusion.load(folder).presets == USED and presets.read(folder) == USED
    assert json.loads((folder / "generation_config.json").read_text())["presets"] == GIVEN
    fusion.load(folder).save_pretrained(tmp_path / "again")
    assert fusion.load(tmp_path / "again").presets == USED


def test_automodel_keeps_them_and_still_writes(folder, tmp_path):
    auto = AutoModel.from_pretrained(folder)
    assert auto.generation_config.presets == GIVEN
    assert auto.generate(torch.arange(1, 6)[None], max_new_tokens=3, do_sample=False).shape[1] > 5
    auto.save_pretrained(tmp_path / "auto")
    assert presets.read(tmp_path / "auto") == USED


def test_a_model_beside_its_llm_keeps_them(llm, tmp_path):
    made = fusion.from_llm(llm, mode="frozen", image_width=32, max_side=64)
    made.presets = GIVEN
    made.save_pretrained(tmp_path / "beside", base=llm)
    assert fusion.load(tmp_path / "beside").presets == USED


def test_written_into_a_folder_they_change_nothing_else(llm, tmp_path, monkeypatch):
    fusion.from_llm(llm, max_side=64).save_pretrained(tmp_path / "model")
    before = {file: file.read_bytes() for file in (tmp_path / "model").rglob("*") if file.is_file()}
    file = tmp_path / "model" / "generation_config.json"
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            presets.write(tmp_path / "model", GIVEN)
    assert file.read_bytes() == before[file] and presets.read(tmp_path / "model") == {}
    assert presets.write(tmp_path / "model", GIVEN) == file
    assert (
        fusion.load(tmp_path / "model").presets
        == USED
        == AutoModel.from_pretrained(tmp_path / "model").generation_config.presets | USED
    )
    kept, now = json.loads(before[file]), json.loads(file.read_text())
    assert {name: value for name, value in now.items() if name != "presets"} == {
        k: v for k, v in kept.items() if k != "_from_model_config"
    }
    assert all(other.read_bytes() == data for other, data in before.items() if other != file)


# ---- used ----


def drawn(monkeypatch) -> list[int]:
    """How many images' passes each evaluation runs, from now on."""
    counted, real = [], drawing._Block._predict
    monkeypatch.setattr(drawing._Block, "_predict", lambda block, x, t: (counted.append(len(x)), real(block, x, t))[1])
    return counted


def test_every_way_to_draw_takes_them(model):
    photo, params = Image.new("RGB", (16, 16), "red"), USED["fast"]
    assert pixels(model.draw("a cat", preset="fast", **SIZE)) == pixels(
        model.draw("a cat", **{**params, "image_guidance": 1.0}, **SIZE)
    )
    assert pixels([model.edit(photo, "bluer", preset="fast")]) == pixels([model.edit(photo, "bluer", **params)])
    assert pixels([model.edit(photo, "bluer", preset="fast")]) != pixels([model.edit(photo, "bluer")])
    limits = {"max_new_tokens": 4, "max_images": 1, **SIZE}
    assert pixels(model.generate([photo, "more"], preset="fast", **limits)) == pixels(
        model.generate([photo, "more"], **params, **limits)
    )
    streamed = [type(event) for event in model.stream("a", preset="fast", **limits)]
    assert streamed == [type(event) for event in model.stream("a", **params, **limits)]


def pixels(parts: list) -> list:
    return [part if isinstance(part, str) else part.tobytes() for part in parts]


def test_what_is_said_beside_a_preset_has_the_last_word(model):
    assert model._settings({"preset": "fast"}) == Sampling(**USED["fast"])
    assert model._settings({"preset": "fast", "steps": 9, "guidance": 3.0}) == Sampling(
        **USED["fast"] | {"steps": 9, "guidance": 3.0}
    )
    assert model._settings({"preset": None}) == Sampling()


def test_the_passes_that_are_counted_are_those_that_run(model, monkeypatch):
    photo, counted = Image.new("RGB", (16, 16), "red"), drawn(monkeypatch)
    shapes = [
        {"solver": "heun"},
        {"shift": 3.0, "guidance_interval": (0.2, 0.8)},
        {"solver": "dpmpp_2m", "guidance": 1.0},
        {"image_guidance": 1.5},
    ]
    for params in ({"steps": 4, **one} for one in shapes):
        model.edit(photo, "bluer", **params)
        assert sum(counted) == passes(Sampling(**params)), params
        counted.clear()
    model.draw("a cat", n=3, preset="fast", **SIZE)  # which is guided by images, and there is none
    assert (
        sum(counted)
        == 3 * passes(Sampling(**USED["fast"] | {"image_guidance": 1.0}))
        < 3 * passes(Sampling(**USED["fast"]))
    )


def test_the_command_line_and_the_evaluation_take_them(model, folder, tmp_path, monkeypatch, capsys):
    counted = drawn(monkeypatch)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)
    for words, params in (
        ([], USED["fast"]),
        (["--steps", "1", "--guidance", "1"], USED["fast"] | {"steps": 1, "guidance": 1.0}),
    ):
        assert cli.main(["edit", str(folder), "red.png", "bluer", "--preset", "fast", *words]) == 0
        assert sum(counted) == passes(Sampling(**params))
        counted.clear()
    assert cli.main(["edit", str(folder), "red.png", "bluer", "--preset", "quick"]) == 2
    assert capsys.readouterr().err == "fusion: error: preset='quick': this model has best, fast\n"
    assert with_preset(folder, {"preset": "best", "steps": 1}) == {"steps": 1, "shift": 2.0}
    assert with_preset("anything at all", {"steps": 1}) == {"steps": 1}


# ---- refused ----


def test_a_model_without_presets_says_how_to_get_them(llm):
    made = fusion.from_llm(llm, max_side=64)
    with pytest.raises(
        ValueError,
        match=r"^preset='fast': this model has no presets; `fusion tune MODEL -o OUT --save` finds some",
    ):
        made.draw("a cat", preset="fast")
    with pytest.raises(TypeError, match=r"^prest: no such sampling parameter; there are .*, preset, "):
        made.draw("a cat", prest="fast")


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ([], "presets are sampling parameters by name, by the preset's name, and not list"),
        ({"fast": 3}, "preset 'fast' is int and not sampling parameters by name"),
        (
            {"fast": {"negative_prompt": "blurry"}},
            "preset 'fast': negative_prompt cannot be set by a preset; what can is steps, ",
        ),
        ({"fast": {"steps": 0}}, "preset 'fast': steps is at least 1, not 0"),
        (
            {"fast": {"steps": "many"}},
            'preset \'fast\': {"steps": "many"} are not values that the sampling parameters can have',
        ),
        ({"fast": {"solver": ["euler"]}}, "preset 'fast': "),
        ({"fast": {"guidance_interval": [0.5]}}, "preset 'fast': "),
        ({"fast": {"guidance_interval": [0.5, 2]}}, "preset 'fast': guidance interval "),
    ],
)
def test_broken_presets_are_one_line(model, tmp_path, wrong, line):
    (tmp_path / "generation_config.json").write_text(json.dumps({"presets": wrong}))
    for call in (
        lambda: presets.checked(wrong),
        lambda: presets.resolved({"preset": "fast"}, wrong),
        lambda: presets.write(tmp_path, wrong),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value).startswith(line) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"generation_config\.json: pre"):
        presets.read(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"presets": wrong}
