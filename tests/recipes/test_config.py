"""Configs: merging, and one line per mistake."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from fusion.common.config import ConfigError, load, load_config, save_config


@dataclass(frozen=True)
class Data:
    path: str = "???"
    size: int = 64
    kind: Literal["flat", "3d"] = "flat"


@dataclass(frozen=True)
class Run:
    data: Data = field(default_factory=Data)
    lr: float = 1e-3
    channels: tuple[int, ...] = (1, 2)
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError(f"lr: {self.lr} must be positive")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  path: images\nlr: 3e-4\n")
    return path


def test_defaults_then_file_then_words(file):
    config = load_config(Run, file, ["data.size=32", "channels=[4,5,6]", "weights.edits=0.5", "data.path=a=b"])
    assert config == Run(Data("a=b", 32), lr=3e-4, channels=(4, 5, 6), weights={"edits": 0.5})


def test_saved_config_loads_to_the_same(file, tmp_path):
    config = load_config(Run, file, ["weights.edits=0.5"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Run, tmp_path / "config.yaml") == config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "run.yaml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {pth: x}", "data.pth"),
        ("data: {path: x}\nlr: fast", "lr"),
        ("data: {path: x, size: 1.5}", "data.size"),
        ("data: {path: x, kind: round}", "data.kind"),
        ("lr: 1", "data.path"),
        ("data: 3", "Data"),
        ("- a\n- b", "key: value"),
        ("data: {path: x}\nlr: -1", "lr: -1.0 must be positive"),
        ("data: {path: [", "not YAML"),
        ("data: {path: x}\nchannels: [a]", "Integer"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_and_key(tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(Run, path)
    assert "\n" not in str(error.value) and str(path) in str(error.value) and says in str(error.value)


@pytest.mark.parametrize(
    ("word", "says"), [("lr", "key=value"), ("data.sixe=3", "size"), ("lr=x", "Float"), ("lr=[1", "YAML")]
)
def test_a_mistake_on_the_command_line_is_one_line_with_the_word(file, word, says):
    with pytest.raises(ConfigError) as error:
        load_config(Run, file, [word])
    assert "\n" not in str(error.value) and f"command line, {word}" in str(error.value) and says in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_config(Run, tmp_path / "none.yaml")


def test_programs_end_with_the_line(file, capsys):
    assert load(Run, [str(file), "lr=0.5"]).lr == 0.5
    assert load(Run, ["data.path=x"]).data.path == "x"
    with pytest.raises(SystemExit) as exit:
        load(Run, [str(file), "lr=x"])
    assert exit.value.code.startswith("error: command line, lr=x: lr:")


def test_a_file_tells_the_differences_to_its_base(file, tmp_path):
    (tmp_path / "small.yaml").write_text("base: run.yaml\ndata: {size: 16}\n")
    assert load_config(Run, tmp_path / "small.yaml") == Run(Data("images", 16), lr=3e-4)
    (tmp_path / "lost.yaml").write_text("base: nowhere.yaml\n")
    (tmp_path / "round.yaml").write_text("base: round.yaml\n")
    for name, said in (("lost", r"base: .*nowhere\.yaml: No such file"), ("round", "leads back to itself")):
        with pytest.raises(ConfigError, match=said) as error:
            load_config(Run, tmp_path / f"{name}.yaml")
        assert "\n" not in str(error.value)
