"""Runs compared: in what they differ, what each draws of subjects that none was trained on, and the errors."""

import json

import numpy as np
import pytest
from PIL import Image

from fusion.common.config import load_config
from fusion.evaluation import runs
from fusion.recipes import unified
from fusion.testing.tiny_runs import save_llm


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "text": f"image {number}"}) for number in range(12)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def two(images, tmp_path_factory):
    """Two tiny runs, of two modes."""
    place = tmp_path_factory.mktemp("runs")
    llm = save_llm(place / "llm")
    for mode in ("shared", "frozen"):
        words = [
            f"run={place / mode}",
            f"model.llm={llm}",
            f"model.mode={mode}",
            f"data.path={images}",
            "data.sources=[{kind: images}]",
            "data.held_out=0.3",
            "packing.length=64",
            "packing.rows=1",
            "packing.lookahead=4",
            "training.documents=4",
            "training.workers=0",
            "training.precision=fp32",
            "training.sample_every=0",
            "training.trackers=[]",
            "validation.documents=2",
            "samples.held_out=1",
            "samples.prompts=[]",
            "samples.steps=2",
        ]
        unified.train(load_config(unified.Unified, None, words))
    return [place / "shared", place / "frozen"]


def test_two_runs_beside_each_other(two, tmp_path, capsys):
    assert runs.main([str(tmp_path), *map(str, two), "--count", "2"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["differences"] == {"model.mode": ["shared", "frozen"]}
    shared, frozen = results["runs"]
    assert frozen["after"] == frozen["perplexity of prose, before"] and frozen["rise"] == 0
    assert shared["after"] != shared["perplexity of prose, before"] and shared["trained"] > frozen["trained"] > 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figcaption>wanted") == page.count("<figcaption>frozen") == 2 and "Validation error of x" in page
    assert Image.open(tmp_path / "samples.png").width <= 1200
    assert "from their names, median PSNR, dB" in capsys.readouterr().out


def test_what_cannot_be_compared(two, tmp_path, capsys):
    assert runs.main([str(tmp_path / "out"), str(tmp_path)]) == 1
    assert "no config.yaml; give the folders of finished runs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
