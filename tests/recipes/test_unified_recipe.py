"""train.unified from a config to a report, and sample sheets."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

import fusion
from fusion.common.config import load_config
from fusion.data.formats import Sample
from fusion.planning.forecast import forecast
from fusion.recipes import unified
from fusion.testing import tiny_runs as training
from fusion.training.metrics import read
from fusion.training.optim import hidden_matrices
from fusion.training.samples import Prompt, ask, from_samples, sheet


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of captioned images and edit pairs; one image is broken."""
    root, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    colours = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
    rows, pairs = [], []
    for number in range(24):
        name = rng.choice(sorted(colours))
        Image.new("RGB", (rng.choice((16, 24)), 16), colours[name]).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a {name} image"})
        if number % 2:
            pairs.append(
                {
                    "input_file_name": f"{number - 1}.png",
                    "instruction": f"make it {name}",
                    "edited_file_name": f"{number}.png",
                }
            )
    (root / "0.png").write_bytes(b"broken")
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return root


def words(llm: Path, folder: Path, run: Path) -> list[str]:
    return [
        f"run={run}",
        f"model.llm={llm}",
        f"data.path={folder}",
        "data.held_out=0.3",
        "data.sources=[{kind: images, describe: 0.5}, {kind: edits}]",
        "packing.length=128",
        "packing.rows=2",
        "packing.lookahead=8",
        "training.workers=0",
        "training.documents=60",
        "training.log_every=1",
        "training.validate_every=3",
        "training.sample_every=3",
        "training.precision=fp32",
        "training.save_every=3",
        "validation.documents=4",
        "samples.held_out=2",
        "samples.steps=2",
        "samples.max_new_tokens=4",
        "samples.prompts=[draw a red image]",
    ]


def test_from_a_config_to_a_report(llm, folder, tmp_path, capsys, root):
    run = tmp_path / "run"
    argv = [str(root / "configs" / "unified.yaml"), *words(llm, folder, run)]
    assert unified.main(argv) == 0
    assert "report.html" in capsys.readouterr().out
    assert (run / "report.html").stat().st_size > 1000
    assert load_config(unified.Unified, run / "config.yaml").model.llm == str(llm)
    assert {"title", "started", "command", "device"} <= json.loads((run / "run.json").read_text()).keys()
    rows = read(run / "metrics.jsonl")
    assert {"val/text", "val/x_error"} <= {name for row in rows for name in row}
    last = max((run / "samples").iterdir(), key=lambda path: int(path.name.removeprefix("step_")))
    assert {path.stem for path in last.iterdir()} > {"prompts"}
    assert "0.png" in (run / "skipped.txt").read_text()
    model = fusion.load(run / "model")
    assert all(
        isinstance(part, str | Image.Image) for part in model.generate("draw a red image", steps=2, max_new_tokens=4)
    )
    assert unified.main(argv) == 1  # a second run does not write over the first
    assert "resume=true" in capsys.readouterr().err
    assert unified.main([*argv, "resume=true", "training.documents=80"]) == 0
    assert read(run / "metrics.jsonl")[-1]["seen"] >= 80 > rows[-1]["seen"]


def test_weights_by_modality_learn_to_draw_and_leave_the_language_model_as_it_was(llm, folder, tmp_path, root):
    run = tmp_path / "run"
    freeze = [
        "model.mode=mot",
        "training.optim.rates={llm.*: 0}",
        "training.validate_every=0",
        "training.sample_every=0",
    ]
    assert unified.main([str(root / "configs" / "unified.yaml"), *words(llm, folder, run), *freeze]) == 0
    trained, ids = fusion.load(run / "model").model, torch.arange(1, 33)[None]
    base = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(trained(input_ids=ids).logits, base(input_ids=ids).logits)
    moved = (trained.twins[0]["mlp"].up_proj.weight - base.model.layers[0].mlp.up_proj.weight).abs().max()
    assert moved > 1e-4


@pytest.mark.parametrize("join", ["model.lora={rank: 4}", "model.mode=frozen"])
def test_a_frozen_llm_is_left_where_it_is_and_training_goes_on_from_a_checkpoint(llm, folder, tmp_path, root, join):
    runs = tmp_path / "whole", tmp_path / "parts"
    quiet = [
        "training.validate_every=0",
        "training.sample_every=0",
        "training.optim.schedule=wsd",
        "training.optim.decay=0.0",
    ]
    argv = [[str(root / "configs" / "unified.yaml"), *words(llm, folder, run), *quiet, join] for run in runs]
    assert unified.main(argv[0]) == 0
    assert unified.main([*argv[1], "training.documents=30"]) == 0
    assert unified.main([*argv[1], "resume=true"]) == 0
    models = [fusion.load(run / "model").model for run in runs]
    weights = [model.own_weights() for model in models]
    assert weights[0].keys() == weights[1].keys() and all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
    )
    size = (runs[0] / "model" / "model.safetensors").stat().st_size
    assert size < 4.2 * sum(tensor.numel() for tensor in weights[0].values())
    assert any("lora_B" in name and tensor.any() for name, tensor in weights[0].items()) == ("lora" in join)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("model.lora={rank: 0}", "rank=0: give an integer from 1 to 4096"),
        ("training.optim.rates={llms.*: 0}", "no parameter is called 'llms.*'"),
        ("model.split=[mlp]", "'mlp': choose one of attention, norms, feed_forward"),
        ("data.sources=[]", "data.sources is empty"),
        ("model.time=sometimes", "time='sometimes'"),
        ("training.documents=null", "a run needs an end"),
        ("model.llm=nowhere/at_all", "nowhere/at_all"),
    ],
)
def test_a_mistake_is_one_line(llm, folder, tmp_path, capsys, root, word, line):
    argv = [
        str(root / "configs" / "unified.yaml"),
        *words(llm, folder, tmp_path / "run"),
        "training.minutes=null",
        word,
    ]
    try:
        code = unified.main(argv)
    except SystemExit as exit:
        code = exit.code
        said = str(code)
    else:
        said = capsys.readouterr().err
    assert code not in (0, None) and line in said and len(said.strip().splitlines()) == 1


def test_a_sheet_shows_what_was_given_drawn_and_true():
    red, blue = Image.new("RGB", (32, 24), (255, 0, 0)), Image.new("RGB", (500, 300), (0, 0, 255))
    edit = Prompt(
        [{"role": "user", "content": [{"type": "image", "image": red}, {"type": "text", "text": "make it blue"}]}],
        (blue,),
    )
    page = sheet([edit, ask("what is this?")], [[blue], ["a " + "very" * 60 + " long answer"]])
    colours = {colour: count for count, colour in page.getcolors(maxcolors=2**24)}
    assert colours[255, 0, 0] == 128 * 96
    assert colours[0, 0, 255] == 2 * 128 * 77
    assert page.width < 6 * 160


def test_conversations_lose_their_last_answer_and_pages_are_left_out():
    talk = [{"role": "user", "content": "red?"}, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    (prompt,) = from_samples(
        [Sample(talk, None, "a", "a:1"), Sample(None, [{"type": "text", "text": "page"}], "a", "a:2")]
    )
    assert prompt.messages == talk[:1] and prompt.truth == ("yes",)


def test_a_shrunk_llm_keeps_its_embeddings_norms_and_head(llm):
    whole, shrunk = (
        unified.build(unified.Model(llm=str(llm), patch_size=16, shrink=share)).model.llm for share in (1.0, 0.3)
    )
    matrices = {id(p) for p in hidden_matrices(shrunk)}
    assert len(matrices) == 7 * len(shrunk.model.layers)
    for one, other in zip(whole.parameters(), shrunk.parameters(), strict=True):
        assert torch.equal(other, one * 0.3 if id(other) in matrices else one)


def test_training_goes_on_from_a_saved_model(llm, tmp_path):
    before = unified.build(unified.Model(llm=str(llm), patch_size=4, head="linear", embed="linear"))
    before.save_pretrained(tmp_path)
    after = unified.build(unified.Model(llm=str(llm), start=str(tmp_path), patch_size=16, shrink=0.5))
    assert after.model.config.patch_size == 4 and after.model.dtype == torch.float32
    assert all(torch.equal(p, q) for p, q in zip(before.model.parameters(), after.model.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"leave it out, and give the settings that it was made with$"):
        forecast(unified.Unified(run="", model=unified.Model(llm=str(llm), start=str(tmp_path))))
    with pytest.raises(ValueError, match="nowhere"):
        unified.build(unified.Model(llm=str(llm), start="nowhere"))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_does_not_shrink_is_refused(share):
    with pytest.raises(ValueError, match=rf"^shrink={share}: give a number above 0 and at most 1"):
        unified.Model(shrink=share)
