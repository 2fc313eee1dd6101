"""train.diffusion from a config to a report and back: the loss, what is saved, resuming, real folders, mistakes."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fusion.data.pairs import PairBatch
from fusion.diffusion import load_text_to_image, make_text_to_image
from fusion.diffusion.text_encoders import EncoderConfig
from fusion.diffusion.text_to_image import TextToImageConfig
from fusion.flow.matching import PATHS
from fusion.recipes import diffusion
from fusion.recipes.diffusion import TextToImageLearner
from fusion.testing import tiny_runs as training
from fusion.training.metrics import read
from fusion.training.optim import Optim, Optimizers, hidden_matrices
from fusion.training.processes import run_ranks
from fusion.unified.objective import FlowObjective
from tests.support import marks


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Captioned images of two sizes; one is broken."""
    root = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(24):
        Image.new("RGB", ((16, 24)[number % 2], 16), ("red", "blue")[number % 3 > 0]).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a {('red', 'blue')[number % 3 > 0]} image"})
    (root / "0.png").write_bytes(b"broken")
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def words(llm: Path, run: Path) -> list[str]:
    return [
        f"run={run}",
        f"text_to_image.texts=[{{path: {llm}}}]",
        "text_to_image.network={patch_size: 8, width: 32, layers: 2, heads: 2}",
        "pairing.rows=8",
        "training.minutes=null",
        "training.documents=60",
        "training.log_every=1",
        "training.validate_every=3",
        "training.sample_every=3",
        "training.save_every=3",
        "training.precision=fp32",
        "training.workers=0",
        "validation.documents=8",
        "samples.held_out=2",
        "samples.steps=2",
        "samples.prompts=[draw a red circle]",
    ]


def test_from_a_config_to_a_report(llm, tmp_path, capsys, root):
    run = tmp_path / "run"
    argv = [str(root / "configs" / "dit.yaml"), *words(llm, run), "scoring.count=12"]
    assert diffusion.main(argv) == 0
    assert "report.html" in capsys.readouterr().out
    rows = read(run / "metrics.jsonl")
    assert {"loss/flow", "val/x_error", "val/x_error_of/world"} <= {name for row in rows for name in row}
    assert not {"loss/text", "val/text"} & {name for row in rows for name in row}
    assert {path.stem for path in (run / "samples" / "step_3").iterdir()} == {"prompts", "world"}
    scores = json.loads((run / "scores" / "scores.json").read_text())
    assert 0 <= scores["overall"]["value"] <= 1 and (run / "scores" / "drawings.png").stat().st_size > 1000
    report = (run / "report.html").read_text()
    assert "GenEval in miniature" in report and "Scored images" in report
    assert load_text_to_image(run / "model").draw("draw a red circle", steps=2)[0].size == (32, 32)
    assert diffusion.main(argv) == 1 and "resume=true" in capsys.readouterr().err
    assert diffusion.main([*argv, "resume=true", "training.documents=80"]) == 0
    assert read(run / "metrics.jsonl")[-1]["seen"] >= 80


@marks.needs_shards
def test_two_ranks_that_share_a_text_to_image_model_out_learn_the_same(llm, tmp_path, root, monkeypatch):
    """Documents that divide by both ranks' batches, so that the text-to-image models of both kinds see the same."""
    monkeypatch.setenv("PYTHONPATH", str(root))
    fixed = ["scoring.count=0", "training.documents=80", "training.optim.optimizer=muon"]
    losses, text_to_image_models = {}, {}
    for sharded in ("true", "false"):
        run = tmp_path / sharded
        assert (
            run_ranks(
                2,
                "train.diffusion",
                [str(root / "configs" / "dit.yaml"), *words(llm, run), *fixed, f"training.sharded={sharded}"],
            )
            == 0
        )
        losses[sharded] = [row["loss/flow"] for row in read(run / "metrics.jsonl") if "loss/flow" in row]
        text_to_image_models[sharded] = load_text_to_image(run / "model").network.state_dict()
    assert len(losses["true"]) == 5 and losses["true"] == pytest.approx(losses["false"], rel=1e-5)
    for name, tensor in text_to_image_models["true"].items():
        torch.testing.assert_close(tensor, text_to_image_models["false"][name], atol=2e-4, rtol=0)


def test_networks_with_experts_do_not_recompute(llm, tmp_path, capsys, root):
    argv = [str(root / "configs" / "hidream.yaml"), *words(llm, tmp_path / "run"), "training.recompute=true"]
    argv[2] = f"text_to_image.texts=[{{path: {llm}, layers: [0, 1]}}]"
    assert diffusion.main(argv) == 1 and "networks with experts keep their activations" in capsys.readouterr().err


def test_a_run_that_was_cut_ends_as_one_that_was_not(llm, tmp_path, root):
    config, fixed = (
        str(root / "configs" / "dit.yaml"),
        ["scoring.count=0", "training.optim.schedule=wsd", "training.optim.decay=1e-9"],
    )
    assert diffusion.main([config, *words(llm, tmp_path / "whole"), *fixed]) == 0
    assert diffusion.main([config, *words(llm, tmp_path / "cut"), *fixed, "training.documents=24"]) == 0
    assert diffusion.main([config, *words(llm, tmp_path / "cut"), *fixed, "resume=true"]) == 0
    whole, cut = (load_text_to_image(tmp_path / name / "model").network.state_dict() for name in ("whole", "cut"))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, msg=name)


def test_on_a_folder_with_an_encoder_that_learns(llm, folder, tmp_path, root):
    run = tmp_path / "run"
    sources = [
        f"data.path={folder}",
        "data.held_out=0.2",
        "data.sources=[{kind: images}]",
        "stages=[]",
        "scoring.count=0",
    ]
    both = f"text_to_image.texts=[{{path: {llm}, trained: true}}, {{path: {llm}, layer: 0}}]"
    assert diffusion.main([str(root / "configs" / "dit.yaml"), *words(llm, run), *sources, both]) == 0
    assert "0.png" in (run / "skipped.txt").read_text()
    made = load_text_to_image(run / "model")
    before = (
        make_text_to_image(
            TextToImageConfig(network={"width": 32, "layers": 1, "heads": 2}, texts=[EncoderConfig(str(llm))])
        )
        .texts[0]
        .model.state_dict()
    )
    moved = [not torch.equal(tensor, before[name]) for name, tensor in made.texts[0].model.state_dict().items()]
    still = [torch.equal(tensor, before[name]) for name, tensor in made.texts[1].model.state_dict().items()]
    assert sum(moved) > 5 and all(still)


@pytest.mark.parametrize("target", ["x", "v", "eps"])
@pytest.mark.parametrize("path", PATHS)
def test_a_network_that_knows_the_answer_has_no_loss(llm, target, path):
    network = {"patch_size": 8, "width": 32, "layers": 1, "heads": 2}
    made = make_text_to_image(
        TextToImageConfig(network=network, texts=[EncoderConfig(str(llm))], target=target, path=path)
    )
    learner, pixels = TextToImageLearner(made), torch.rand(4, 3, 16, 16) * 2 - 1
    batch = PairBatch(pixels, ("a", "b", "", "c"), ("1", "2", "3", "4"))

    def knows(x, t, cond):
        t = t.view(-1, 1, 1, 1)
        alpha, sigma = made.flow_path.alpha(t), made.flow_path.sigma(t)
        noise = (x - alpha * pixels) / sigma
        answers = {
            "x": pixels,
            "eps": noise,
            "v": made.flow_path.alpha_dot(t) * pixels + made.flow_path.sigma_dot(t) * noise,
        }
        return answers[target]

    learner.text_to_image.network.forward = knows
    losses = learner.losses(batch, FlowObjective(), torch.Generator().manual_seed(0))
    assert losses.flow_count == 4 and float(losses.flow) < 1e-6 and losses.x_error.max() < 1e-6
    assert losses.text_count == 0 and learner.counts(batch).tokens == 4 * 4


def test_muon_takes_the_matrices_of_blocks_and_nothing_that_is_several(llm):
    made = make_text_to_image(
        TextToImageConfig(
            architecture="pixart", network={"width": 32, "layers": 2, "heads": 2}, texts=[EncoderConfig(str(llm))]
        )
    )
    matrices = {id(p) for p in hidden_matrices(made)}
    names = {name for name, p in made.named_parameters() if id(p) in matrices}
    assert "network.blocks.0.attention.q.weight" in names and "network.blocks.1.feed_forward.up.weight" in names
    assert not any("table" in name or "modulation" in name or "embed" in name or "texts" in name for name in names)
    assert len(Optimizers(made, Optim(optimizer="muon")).parts) == 2


def test_experts_are_kept_even(llm):
    texts = [EncoderConfig(str(llm), layers=[0, 1, 2])]
    network = {"patch_size": 8, "width": 32, "layers": 1, "single": 1, "heads": 2}
    made = make_text_to_image(TextToImageConfig(architecture="hidream", network=network, texts=texts))
    batch = PairBatch(torch.rand(4, 3, 16, 16) * 2 - 1, ("a", "b", "", "c"), ("1", "2", "3", "4"))

    def loss(balance: float):
        return TextToImageLearner(made, balance).losses(batch, FlowObjective(), torch.Generator().manual_seed(0)).flow

    router = made.network.blocks[0].image.feed_forward.router.proj.weight
    assert (loss(0.5) - loss(0.0)).item() == pytest.approx(4 * 0.5, rel=0.3)  # near 1 where all are chosen alike
    (gradient,) = torch.autograd.grad(loss(1.0) - loss(0.0), router)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        assert torch.equal(loss(0.5), loss(0.0))  # what is validated is the flow alone


@pytest.mark.parametrize("name, count", [("dit", 2), ("hidream", 2 + 1 + 1), ("unet", 3 + 3 + 3), ("uvit", 1 + 1 + 1)])
def test_what_is_compiled_are_the_outermost_blocks(llm, name, count, monkeypatch):
    levels = {"ratios": [1, 2, 2], "attention": [0, 1, 1], "others": {"norm_num_groups": 8}}
    own = {"hidream": {"layers": 1, "single": 1}, "uvit": {"layers": 3}, "unet": levels}
    network = {"width": 32, "heads": 2, "layers": 2} | own.get(name, {})
    made = make_text_to_image(
        TextToImageConfig(architecture=name, network=network, texts=[EncoderConfig(str(llm), layers=[0, 1])])
    )
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    with TextToImageLearner(made).compiled():
        inside = [part for part in made.network.modules() if "forward" in vars(part)]
        assert len(inside) == count
    assert not any("forward" in vars(part) for part in made.network.modules())


@pytest.mark.parametrize(
    "word, said",
    [
        ("text_to_image.architecture=dlt", "architecture 'dlt': choose one of"),
        ("text_to_image.network.depth=3", "dit has no setting 'depth'"),
        ("text_to_image.texts=[{path: nowhere}]", "nowhere: no text encoder"),
        ("training.conv_from=5", "conv_from: this model's head has no convolutions"),
        ("text_to_image.network.heads=5", "width 32 does not divide into 5 heads"),
    ],
)
def test_a_mistake_is_one_line(llm, tmp_path, capsys, root, word, said):
    assert diffusion.main([str(root / "configs" / "dit.yaml"), *words(llm, tmp_path / "run"), word]) == 1
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("error: ") and said in error


def test_neither_or_both_kinds_of_data_are_refused(llm, tmp_path, capsys, root):
    for word, said in (("stages=[]", "data.sources is empty"), ("data.sources=[{kind: images}]", "give one of them")):
        assert diffusion.main([str(root / "configs" / "dit.yaml"), *words(llm, tmp_path / "run"), word]) == 1
        assert said in capsys.readouterr().err
