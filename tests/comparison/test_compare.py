"""Comparisons: matched sizes, a record per run that is not repeated, intervals and ranks, the page."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fusion.common.config import load_config
from fusion.comparison import compare
from fusion.comparison import contenders as comparison
from fusion.comparison.contenders import Contender, Record, resolve
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.text_encoders import EncoderConfig
from fusion.diffusion.text_to_image import make_text_to_image
from fusion.generation.cost import flops, parameters
from fusion.testing import tiny_runs as training


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


CONTENDERS = (
    "contenders=[{name: 'DiT, a', architecture: dit, network: {layers: 1, heads: 2, patch_size: 8}},{name: Unified}]"
)


def words(llm: Path, folder: Path) -> list[str]:
    short = ("minutes=null", "documents=24", "validate_every=1", "precision=fp32")
    end = [f"{kind}.training.{word}" for kind in ("text_to_image", "unified") for word in short]
    return [
        f"out={folder}/out",
        f"records={folder}/records",
        CONTENDERS,
        "seeds=[3,5]",
        "target=4e5",
        *end,
        f"text_to_image.text_to_image.texts=[{{path: {llm}}}]",
        f"unified.model.llm={llm}",
        "text_to_image.pairing.rows=8",
        "text_to_image.validation.documents=8",
        "unified.validation.documents=4",
        "unified.packing.lookahead=8",
        "unified.packing.rows=2",
        "scored.count=12",
        "scored.steps=2",
        "pairs=[['DiT, a', Unified]]",
    ]


@pytest.fixture(scope="module")
def done(llm, tmp_path_factory, root) -> tuple[list[str], Path]:
    """A comparison that ran, and its command line."""
    folder = tmp_path_factory.mktemp("compared")
    argv = [str(root / "configs" / "compare" / "shapes.yaml"), *words(llm, folder)]
    assert compare.main(argv) == 0
    return argv, folder


def test_unified_models_differ_in_their_settings(llm, tmp_path):
    both = (
        "contenders=[{name: axial, model: {positions: axial}}, {name: frozen, model: {mode: frozen, image_width: 32}}]"
    )
    made = load_config(
        comparison.Comparison, None, [*words(llm, tmp_path)[:2], both, f"unified.model.llm={llm}", "pairs=[]"]
    )
    axial, frozen = (resolve(made, contender, 0).model for contender in made.contenders)
    assert (axial.positions, axial.mode, frozen.mode, frozen.image_width) == ("axial", "shared", "frozen", 32)
    assert axial.llm == frozen.llm == str(llm)
    assert len({comparison.fingerprint(resolve(made, one, 0), made.scored) for one in made.contenders}) == 2


@pytest.mark.parametrize(
    ("contender", "said"),
    [
        ("{name: a, model: {width: 3}}", "has no setting 'width'"),
        ("{name: a, architecture: dit, model: {mode: mot}}", "an architecture has a network"),
    ],
)
def test_settings_of_another_kind_are_refused(contender, said):
    with pytest.raises(ValueError, match=said):
        load_config(comparison.Comparison, None, ["records=x", f"contenders=[{contender}]"])


def test_each_run_leaves_a_record_and_its_samples(done):
    _, folder = done
    assert {path.name for path in (folder / "records").iterdir()} == {
        f"{name}-{seed}.{kind}" for name in ("dit-a", "unified") for seed in (3, 5) for kind in ("json", "png")
    }
    record = Record(**json.loads((folder / "records" / "dit-a-3.json").read_text()))
    assert record.seen >= 24 and record.steps == len(record.curve) == 3 and record.seconds > 0
    assert record.parameters == pytest.approx(4e5, rel=0.1)
    assert 2.5 < record.training / record.forward < 3.5 and record.kept > 1000
    assert 0 <= record.scores["overall"]["value"] <= 1 and record.x_error == record.curve[-1][3] > 0
    assert Image.open(folder / "records" / "dit-a-3.png").size == (6 * 32, 32)


def test_nothing_is_run_twice_and_other_settings_are(done, capsys, monkeypatch):
    argv, folder = done
    monkeypatch.setattr(comparison.diffusion, "train", None)  # would fail if it were called
    monkeypatch.setattr(comparison.unified, "train", None)
    capsys.readouterr()
    assert compare.main(argv) == 0
    printed = capsys.readouterr().out
    assert "run 1" not in printed and "| DiT, a | 2 |" in printed and "| DiT, a | Unified | 2 |" in printed
    assert str(folder / "out" / "comparison.html") in printed
    with pytest.raises(TypeError):
        compare.main([*argv, "scored.steps=3"])


def test_a_record_is_of_the_weights_of_a_language_model_and_not_of_its_place(done, llm, tmp_path, root):
    argv, _ = done
    settings = load_config(comparison.Comparison, argv[0], argv[1:])
    for contender in settings.contenders:
        prints = []
        for number in (0, 0, 1):
            copy = tmp_path / f"{contender.slug}-{len(prints)}"
            shutil.copytree(llm, copy)
            tensors = load_file(copy / "model.safetensors")
            save_file(
                {name: tensor + number for name, tensor in tensors.items()},
                copy / "model.safetensors",
                metadata={"format": "pt"},
            )
            moved = load_config(
                comparison.Comparison,
                argv[0],
                [*argv[1:], f"unified.model.llm={copy}", f"text_to_image.text_to_image.texts=[{{path: {copy}}}]"],
            )
            prints.append(comparison.fingerprint(resolve(moved, contender, 3), moved.scored))
        assert prints[0] == prints[1] != prints[2]


def test_the_page_shows_all_of_it(done):
    page = (done[1] / "out" / "comparison.html").read_text()
    for words in (
        "DiT, a",
        "Unified",
        "against steps",
        "against TFLOP of training",
        "against seconds of training",
        "4 of 4 runs done",
    ):
        assert words in page
    assert page.count("data:image/png") == 2


@pytest.mark.parametrize("kind, target", [("parameters", 5e5), ("flops", 2e7)])
def test_contenders_are_of_the_size_that_is_asked_for(llm, tmp_path, root, kind, target):
    sized = [*words(llm, tmp_path), f"match={kind}", f"target={target}"]
    settings = load_config(comparison.Comparison, root / "configs" / "compare" / "shapes.yaml", sized)
    reader = replace(settings.text_to_image.text_to_image, texts=[EncoderConfig(str(llm), layers=[1])])
    settings = replace(settings, text_to_image=replace(settings.text_to_image, text_to_image=reader))
    for architecture in ("dit", "mmdit", "hidream"):
        single = {"single": 1} if architecture == "hidream" else {}
        text_to_image = make_text_to_image(
            resolve(
                settings, Contender("x", architecture, {"layers": 1, "heads": 2, "patch_size": 8} | single), 0
            ).text_to_image
        )
        layers = torch.zeros(1, 1, comparison.TOKENS, 64) if architecture == "hidream" else None
        cond = Conditioning(torch.zeros(1, comparison.TOKENS, 64), pooled=torch.zeros(1, 64), layers=layers)
        size = {
            "parameters": parameters(text_to_image.network),
            "flops": flops(
                lambda text_to_image=text_to_image, cond=cond: text_to_image.network(
                    torch.zeros(1, 3, 32, 32), torch.ones(1), cond
                )
            ),
        }
        assert size[kind] == pytest.approx(target, rel=0.1)


def test_differences_are_taken_seed_by_seed(done):
    _, folder = done
    records = [Record(**json.loads(path.read_text())) for path in sorted((folder / "records").glob("*.json"))]
    a, b = ([record.x_error for record in records if record.contender == name] for name in ("DiT, a", "Unified"))
    (row,) = compare.differences(records, [["DiT, a", "Unified"]])
    assert row["seeds"] == 2 and row["error of x"] == compare.interval([a[0] - b[0], a[1] - b[1]])
    assert compare.differences(records[:3], [["DiT, a", "Unified"]])[0]["seeds"] == 1
    assert "Differences, seed by seed" in (folder / "out" / "comparison.html").read_text()


def test_an_interval_is_students():
    found = compare.interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.303 / math.sqrt(3))
    assert str(compare.interval([0.5])) == "0.5"


def test_ranks_share_places_and_leave_out_seeds_that_not_all_have():
    blank = {
        "settings": "",
        "commit": "",
        "device": "",
        "parameters": 1,
        "forward": 1.0,
        "training": 1.0,
        "kept": 1.0,
        "seconds": 1.0,
        "seen": 1,
    }
    base = Record("a", 0, **blank, steps=1, curve=[[1, 1, 1, 0.5]], scores={})
    records = [
        base,
        replace(base, contender="b", curve=[[1, 1, 1, 0.5]]),
        replace(base, contender="c", curve=[[1, 1, 1, 0.1]]),
    ]
    records.append(replace(base, seed=1, curve=[[1, 1, 1, 0.01]]))
    places = compare.ranks(records, lambda one: float(one.x_error))
    assert {name: place.mean for name, place in places.items()} == {"a": 2.5, "b": 2.5, "c": 1.0}


def test_a_record_that_is_none_is_named(done, capsys):
    argv, folder = done
    (folder / "records" / "unified-5.json").write_text("{")
    assert compare.main(argv) == 1
    assert "unified-5.json is no record of a run" in capsys.readouterr().err


def test_two_contenders_of_one_name_are_refused(llm, tmp_path, root):
    with pytest.raises(SystemExit, match="none of them twice"):
        compare.main(
            [
                str(root / "configs" / "compare" / "shapes.yaml"),
                *words(llm, tmp_path),
                "contenders=[{name: A b}, {name: a-b}]",
            ]
        )
    with pytest.raises(SystemExit, match="are not two contenders; name two of DiT, a, Unified"):
        compare.main(
            [str(root / "configs" / "compare" / "shapes.yaml"), *words(llm, tmp_path), "pairs=[['DiT, a', UNet]]"]
        )
