"""train.bundle: a model goes into the package in bf16, without a trace of where it came from, if it is small enough."""

import pytest
import torch

import fusion
from fusion.generation import api
from fusion.testing import tiny_runs as training
from train import bundle


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A saved model, and a package without bundled ones."""
    llm = training.save_llm(tmp_path / "llm")
    fusion.from_llm(llm, patch_size=16, dtype=torch.float32).save_pretrained(tmp_path / "model")
    for module in (bundle, api):
        monkeypatch.setattr(module, "BUNDLED", tmp_path / "bundled")
    return tmp_path / "model"


def test_what_is_bundled_is_found_by_its_name(model, capsys):
    for _ in range(2):  # the second takes the place of the first
        assert bundle.main([str(model), "small"]) == 0
    folder = model.parent / "bundled" / "small"
    assert capsys.readouterr().out.split() == [str(folder)] * 2
    found, original = fusion.load("small"), fusion.load(model)
    for one, other in zip(found.model.parameters(), original.model.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))
    assert str(model.parent) not in "".join(path.read_text() for path in folder.rglob("*.json"))


def test_a_large_model_stays_outside(model, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "LIMIT", 1000)
    assert bundle.main([str(model), "large"]) == 1
    assert "is the limit of what the package carries" in capsys.readouterr().err
    assert not (model.parent / "bundled").exists()


@pytest.mark.parametrize("argv", [[], ["model"], ["model", "../name"]])
def test_what_it_needs_is_said(argv, capsys):
    assert bundle.main(argv) == 1
    assert capsys.readouterr().err.startswith("usage: ")


def test_a_folder_without_a_model_is_named(model, capsys):
    assert bundle.main([str(model.parent / "llm2"), "small"]) == 1
    assert "no fusion model there" in capsys.readouterr().err
