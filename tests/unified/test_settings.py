"""Settings of a unified model: declared once, and refused in one line by every way in."""

import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from transformers import AutoConfig, AutoModel

import fusion
from fusion.common.checked import SettingError, default_of, element, kinds, manual, wanted
from fusion.common.config import ConfigError, load_config, save_config
from fusion.flow.matching import PATHS
from fusion.generation.api import BUNDLED
from fusion.planning.plan import plan
from fusion.recipes.unified import Model, Unified
from fusion.testing import tiny_runs as training
from fusion.testing.tiny_llms import tiny_config
from fusion.unified.config import FusionConfig
from fusion.unified.model import FusionModel
from fusion.unified.settings import PARTS, Lora, ModelSettings, NetworkSettings, SavedSettings

NETWORK = {
    "patch_size": [0, 257, True, 8.0, "big", None],
    "time": ["adalnn", None, 3],
    "positions": ["axail"],
    "target": ["velocity"],
    "embed": ["convv"],
    "head": ["lineer", ["conv"]],
    "path": ["winding"],
    "mode": ["frozn"],
    "split": ["attention", ["attention", "mlp"], [], ["norms", "norms"]],
    "image_width": [3, 65537, 1.5, "wide"],
    "deep": ["hiden"],
    "see": ["non"],
    "reads": ["all", 3],
    "image_size": ["32x32", 32],
}
"""For each field of the network, what it cannot be: wrong choices, types and numbers out of bounds."""
IMAGES = {"max_side": [0, 65537, "long"], "max_patches": [0, 2**20 + 1, None]}
SAVED = {
    "channels": [0, 4097, "3"],
    "downsample": [0, 1025, 1.0],
    "lora": [3, {"rank": 0}, {"rank": 4097}, {"alpha": 0}, {"alpha": "x"}, {"targets": "mlp"}, {"rnk": 8}],
    "base": [3],
    "base_weights": [True],
    "vocab_base": [-1, 2**31],
    "control_tokens": [0, 1025],
    "position_scale": [-1.0, float("nan"), "1"],
    "position_base": [0, float("inf")],
    "position_wave": [0.0, None],
    "stop_ids": [2, "end"],
    "control_start": [0.5, -101, "low"],
    "preamble": ["user"],
    "format_version": [2, "1"],
}
COERCED = [
    ("patch_size", 8.0),
    ("time", 3),
    ("patch_size", True),
]  # YAML has words, of which OmegaConf makes what is meant


def cases(*tables: dict) -> list:
    return [
        pytest.param(name, value, id=f"{name}-{value}")
        for table in tables
        for name, values in table.items()
        for value in values
    ]


def said(kind: type, name: str, value) -> str:
    """What a line about a wrong value has to tell beside it: the choices or bounds of the field."""
    if name == "lora" and isinstance(value, dict):
        (inner,) = value
        return f"lora.{inner}={value[inner]!r}: " + (
            wanted(Lora, inner) if inner in kinds(Lora) else "there is no such setting; choose one of rank"
        )
    if name == "format_version" and value == 2:
        return "format_version=2: this fusion reads 1"
    return "attention, norms, feed_forward" if name == "split" else wanted(kind, name)


def assert_refused(error, kind: type, name: str, value) -> None:
    message = str(error.value)
    assert isinstance(error.value, ValueError) and "\n" not in message
    assert name in message and said(kind, name, value) in message
    item = (
        next((one for one in value if one not in PARTS), value)
        if name == "split" and isinstance(value, list)
        else value
    )
    assert name == "lora" or repr(item) in message


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def saved(llm, tmp_path_factory) -> Path:
    """A small model's folder, whose config tests exchange."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    fusion.from_llm(llm, max_side=64).save_pretrained(folder)
    return folder


def tampered(saved: Path, tmp_path: Path, **changes) -> Path:
    """The same folder with other values in its config.json; Ellipsis takes a key away."""
    for file in saved.rglob("*"):
        if file.is_file():
            target = tmp_path / "tampered" / file.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(file)
    path = tmp_path / "tampered" / "config.json"
    config = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return path.parent


# ---- every field, by every way in ----


def test_the_tables_of_mistakes_name_every_field():
    assert list(NETWORK) == [one.name for one in fields(NetworkSettings)]
    assert {*NETWORK, *IMAGES} == {one.name for one in fields(ModelSettings)}
    assert {*NETWORK, *SAVED} == {one.name for one in fields(SavedSettings)}


@pytest.mark.parametrize(("name", "value"), cases(NETWORK, IMAGES))
def test_from_llm_refuses(name, value):
    with pytest.raises(SettingError) as error:
        fusion.from_llm("an llm that nobody looks for", **{name: value})
    assert_refused(error, ModelSettings, name, value)


@pytest.mark.parametrize(("name", "value"), cases(NETWORK, SAVED))
def test_a_config_refuses(name, value):
    with pytest.raises(SettingError) as error:
        FusionConfig(text_config=tiny_config("llama"), **{name: value})
    assert_refused(error, SavedSettings, name, value)


@pytest.mark.parametrize(("name", "value"), cases(NETWORK, SAVED))
def test_a_folder_is_refused(name, value, saved, tmp_path):
    folder = tampered(saved, tmp_path, **{name: value})
    # fusion.load itself has a line for folders of other versions, see test_api.py.
    reading = [FusionConfig.from_pretrained, AutoConfig.from_pretrained, FusionModel.from_pretrained]
    for read in [*reading, AutoModel.from_pretrained, fusion.load] if name != "format_version" else reading:
        with pytest.raises(SettingError) as error:
            read(folder)
        assert_refused(error, SavedSettings, name, value)
    if name != "format_version":
        assert str(error.value).startswith(f"{folder}/config.json: ")


@pytest.mark.parametrize(
    ("name", "value"), [case for case in cases(NETWORK, IMAGES) if tuple(case.values) not in COERCED]
)
def test_yaml_and_the_command_line_refuse(name, value, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({"model": {"llm": "x", name: value}}))
    word = f"model.{name}={'null' if value is None else json.dumps(value)}"
    for path, words in ((tmp_path / "run.yaml", []), (None, ["model.llm=x", word])):
        with pytest.raises(ConfigError) as error:
            load_config(Unified, path, words)
        assert_refused(error, ModelSettings, name, value)
        assert path is None or str(error.value).startswith(str(path))


@pytest.mark.parametrize("value", [{"rank": 0}, {"rank": "x"}, {"alpha": -1}, {"targets": "mlp"}, {"rnk": 8}], ids=str)
def test_yaml_refuses_adapters(value, tmp_path):
    (name,) = value
    (tmp_path / "run.yaml").write_text(json.dumps({"model": {"llm": "x", "lora": value}}))
    with pytest.raises(ConfigError) as error:
        load_config(Unified, tmp_path / "run.yaml")
    assert "\n" not in str(error.value) and (wanted(Lora, name) if name in kinds(Lora) else "'rank'") in str(
        error.value
    )


@pytest.mark.parametrize(("name", "value"), [("attention", "flash"), ("shrink", 2.0), ("shrink", "x"), ("codec", None)])
def test_yaml_refuses_what_is_done_with_the_model(name, value, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({"model": {"llm": "x", name: value}}))
    with pytest.raises(ConfigError) as error:
        load_config(Unified, tmp_path / "run.yaml")
    assert f"{name}={value!r}: {wanted(Model, name)}" in str(error.value)


def test_planning_refuses(llm, tmp_path):
    (tmp_path / "run.yaml").write_text(f"model: {{llm: {llm}}}")
    refused = {
        "model.head=lineer": "model.head='lineer': choose one of linear, conv, conv+reference, or None",
        "model.image_width=999": "image_width=999: the image stream is at most as wide as the language model, 64",
    }
    for word, line in refused.items():
        with pytest.raises(ValueError, match=re.escape(line)):
            plan(str(tmp_path / "run.yaml"), ["model.mode=frozen", word], 1, "cpu", 0.4, None, None)


# ---- names, and combinations ----


def test_unknown_names_are_refused(llm, saved, tmp_path):
    line = "haed='linear': there is no such setting; choose one of patch_size, time, positions"
    (tmp_path / "run.yaml").write_text("model: {llm: x, haed: linear}")
    for way in (
        lambda: fusion.from_llm(llm, haed="linear"),
        lambda: FusionConfig(haed="linear"),
        lambda: fusion.load(tampered(saved, tmp_path, haed="linear")),
        lambda: ModelSettings.of({"haed": "linear"}),
    ):
        with pytest.raises(SettingError, match=line):
            way()
    with pytest.raises(ConfigError, match=r"run\.yaml: model\.haed: Key 'haed' not in 'Model'\. Did you mean: 'head'"):
        load_config(Unified, tmp_path / "run.yaml")


FORBIDDEN = [
    ({"mode": "shared", "deep": "hidden"}, "deep='hidden' is for mode='frozen'"),
    ({"mode": "mot", "image_width": 32}, "image_width=32 is for mode='frozen'"),
    ({"mode": "mot", "see": "none"}, "see='none' is for mode='frozen'"),
    ({"mode": "frozen", "see": "none", "deep": "hidden"}, "deep='hidden' is for see='projected'"),
    ({"mode": "frozen", "reads": [1]}, r"reads=\[1\] is for see='none'"),
    ({"mode": "frozen", "see": "none", "reads": [2, 1]}, "in ascending order"),
    ({"mode": "frozen", "see": "none", "image_size": [32]}, r"image_size=\[32\] is for see='none'"),
    ({"mode": "frozen", "split": ["norms"]}, r"split=\['norms'\] is for mode='mot'"),
]


@pytest.mark.parametrize(("settings", "line"), FORBIDDEN)
def test_forbidden_combinations_are_refused(settings, line, saved, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({"model": {"llm": "x", **settings}}))
    ways = [lambda: fusion.from_llm("x", **settings), lambda: load_config(Unified, tmp_path / "run.yaml")]
    if "split" not in settings:
        ways += [lambda: FusionConfig(**settings), lambda: fusion.load(tampered(saved, tmp_path, **settings))]
    for way in ways:
        with pytest.raises(ValueError, match=line):
            way()


def test_a_split_that_nothing_was_made_of_still_loads(saved, tmp_path):
    assert fusion.load(tampered(saved, tmp_path, split=["norms"])).model.config.split == ["norms"]


def test_adapters_go_with_shared_weights_alone(tmp_path):
    line = r"lora=.* is for mode='shared': in 'mot' images have weights of their own"
    with pytest.raises(SettingError, match=line):
        FusionConfig(mode="mot", lora={"rank": 8})
    with pytest.raises(SettingError, match=line):
        Model(llm="x", mode="mot", lora=Lora())
    assert Model(llm="x", mode="mot", lora=Lora(), start="saved").lora == Lora()  # of the mode is not read then


@pytest.mark.parametrize(
    ("part", "value"),
    [("num_hidden_layers", 10**9), ("hidden_size", 0), ("vocab_size", 2**40), ("num_hidden_layers", "2")],
)
def test_an_llm_that_is_larger_than_any_is_refused_before_it_is_made(part, value, saved, tmp_path):
    llm = json.loads((saved / "config.json").read_text())["text_config"] | {part: value}
    with pytest.raises(SettingError, match=part) as error:
        fusion.load(tampered(saved, tmp_path, text_config=llm))
    assert "\n" not in str(error.value)


def test_patches_are_bounded_by_their_numbers():
    with pytest.raises(SettingError, match="patch_size=256: a patch of 64 channels has more than 1048576 numbers"):
        FusionConfig(patch_size=256, channels=64)


def test_what_is_no_config_of_an_llm_is_refused():
    with pytest.raises(SettingError, match="text_config=3: give the config of an LLM"):
        FusionConfig(text_config=3)


def test_what_was_changed_in_a_config_is_checked_when_it_is_used(saved):
    config = FusionConfig.from_pretrained(saved)
    config.mode = "frozn"
    with pytest.raises(SettingError, match="mode='frozn': choose one of shared, mot, frozen"):
        FusionModel(config)
    with pytest.raises(SettingError, match="deep='hiden': choose one of kv, hidden"):
        FusionConfig.from_pretrained(saved, deep="hiden")


def test_long_values_are_cut_to_one_short_line():
    with pytest.raises(SettingError) as error:
        NetworkSettings(head="x\n" * 500)
    assert "\n" not in str(error.value) and len(str(error.value)) < 160 and "choose one of" in str(error.value)


# ---- declared once ----


def test_all_ways_in_agree_on_defaults(llm):
    made = fusion.from_llm(llm)
    chosen, config = load_config(Unified, None, ["model.llm=x"]).model, FusionConfig(text_config=tiny_config("llama"))
    assert chosen.part(ModelSettings) == vars(ModelSettings())
    for name, value in vars(NetworkSettings().resolved(downsample=1)).items():
        assert getattr(made.model.config, name) == getattr(config, name) == value
    assert (made.processor.max_side, made.processor.max_patches) == (chosen.max_side, chosen.max_patches)
    assert inspect.signature(fusion.from_llm).parameters["codec"].default == chosen.codec


@pytest.mark.parametrize(
    ("function", "kind"), [(fusion.from_llm, ModelSettings), (FusionConfig.__init__, SavedSettings)]
)
def test_help_tells_every_setting_with_default_and_choices(function, kind):
    shown = inspect.signature(function).parameters
    for one in fields(kind):
        assert shown[one.name].default == default_of(one) and shown[one.name].annotation == kinds(kind)[one.name]
        assert f"{one.name}: {one.metadata['doc']}; {wanted(kind, one.name)}" in function.__doc__
    assert manual(kind).count("\n") == len(fields(kind)) - 1


@pytest.mark.parametrize("kind", [ModelSettings, SavedSettings, Lora, Model])
def test_every_setting_is_documented_in_one_line_and_every_number_bounded(kind):
    for one in fields(kind):
        assert one.metadata["doc"] and "\n" not in one.metadata["doc"]
        number = {int, float} & {
            kinds(kind)[one.name],
            *get_args(kinds(kind)[one.name]),
            element(kinds(kind)[one.name]),
        }
        assert (
            not number or one.name == "format_version" or (one.metadata["least"], one.metadata["above"]) != (None, None)
        )


def test_the_paths_are_those_of_the_flow():
    assert get_args(kinds(NetworkSettings)["path"]) == tuple(PATHS)


def test_none_is_what_the_codec_suggests():
    pixels, latents = (FusionConfig(downsample=side) for side in (1, 8))
    assert (pixels.target, pixels.embed, pixels.head) == ("x", "conv", "conv")
    assert (latents.target, latents.embed, latents.head) == ("v", "linear", "linear")
    assert (
        FusionConfig(downsample=8, target="eps", head="conv").to_dict().items()
        >= {"target": "eps", "head": "conv"}.items()
    )


# ---- what is on disk ----


def test_a_config_without_what_was_added_later_means_what_it_meant_then(saved, tmp_path):
    later = (
        "target",
        "embed",
        "head",
        "path",
        "mode",
        "split",
        "image_width",
        "deep",
        "lora",
        "base",
        "position_base",
        "position_wave",
    )
    config = FusionConfig.from_pretrained(tampered(saved, tmp_path, **dict.fromkeys(later, ...)))
    assert (config.target, config.embed, config.head, config.path, config.mode) == (
        "x",
        "linear",
        "linear",
        "linear",
        "shared",
    )
    assert (config.deep, config.split, config.position_base) == ("kv", list(PARTS), 10000.0)


def test_the_keys_of_the_bundled_model_are_those_that_are_written(tmp_path):
    written = json.loads((BUNDLED / "shapes" / "config.json").read_text())
    FusionConfig.from_pretrained(BUNDLED / "shapes").save_pretrained(tmp_path)
    again = json.loads((tmp_path / "config.json").read_text())
    assert again == written and {one.name for one in fields(SavedSettings)} <= set(again)


def test_what_others_set_on_a_config_is_read_again(saved, tmp_path):
    foreign = {
        "use_cache": False,
        "name_or_path": "x",
        "num_labels": 3,
        "torch_dtype": "float32",
        "_commit_hash": "x",
        "tie_word_embeddings": False,
    }
    config = FusionConfig.from_pretrained(tampered(saved, tmp_path, **foreign))
    assert config.num_labels == 3 and config.head == "conv"


def test_a_run_keeps_its_settings_in_yaml(tmp_path):
    config = load_config(
        Unified, None, ["model.llm=x", "model.mode=mot", "model.split=[norms]", "model.target=eps", "model.max_side=64"]
    )
    save_config(config, tmp_path / "config.yaml")
    assert (
        load_config(Unified, tmp_path / "config.yaml").model
        == config.model
        == Model(llm="x", mode="mot", split=["norms"], target="eps", max_side=64)
    )
