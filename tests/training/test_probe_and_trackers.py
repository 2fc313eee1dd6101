"""What is followed beside the losses: the forgetting probe, drawing when asked, trackers."""

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fusion
from fusion.generation.cost import flops
from fusion.testing import tiny_runs as training
from fusion.training.devices import Device, this_device
from fusion.training.learner import UnifiedLearner
from fusion.training.metrics import read
from fusion.training.probe_and_trackers import Forgetting, Probe, trackers
from fusion.training.validation import validate
from fusion.unified.objective import Objective


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def model(llm):
    return fusion.from_llm(llm, dtype=torch.float32)


def test_a_model_that_learned_nothing_forgot_nothing_and_a_spoiled_one_did(llm, model):
    probe = Forgetting(str(llm), Probe(count=8))
    fresh = probe(model.model)
    assert fresh["forgetting"] == pytest.approx(0, abs=1e-6) and fresh["perplexity/now"] > 1
    assert sum(map(len, probe.ids)) > 40
    with torch.no_grad():
        model.model.llm.get_input_embeddings().weight.mul_(-1)
    assert probe(model.model)["perplexity/of_the_llm"] == fresh["perplexity/of_the_llm"]
    assert probe(model.model)["forgetting"] != fresh["forgetting"]


def test_texts_of_ones_own(llm, tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a cat sat\n\non a mat today\nand a third\n")
    assert Probe(texts=str(path), count=2).read() == ["a cat sat", "on a mat today"]
    path.write_text("\n")
    for texts, line in ((path, "has no text"), (tmp_path / "none.txt", "cannot be read")):
        with pytest.raises(ValueError, match=line):
            Forgetting(str(llm), Probe(texts=str(texts)))
    with pytest.raises(ValueError, match="context=1"):
        Probe(context=1)


def test_drawing_is_counted_where_it_is_asked_for(model):
    """Of a head that always begins an image everything asked for is drawn, and little of what is drawn was asked
    for."""
    held_out = {"world": training.held_out(model.processor)}

    def look():
        return validate(UnifiedLearner(model), held_out, Objective(), 0, torch.autocast("cpu", enabled=False))

    labels = torch.cat([batch.packed.labels.flatten() for batch in held_out["world"]])
    asked, learned = int((labels == model.processor.control.image_start).sum()), int((labels != -100).sum())
    assert look()["val/draws/when_asked"] == 0 and "val/draws/rightly" not in look()
    with torch.no_grad():
        model.model.llm.model.norm.weight.zero_()  # every logit is 0 now, but for what a bias adds
    tokens = model.model.config.control_tokens
    model.model.control_head.bias = torch.nn.Parameter(torch.tensor([20.0] + [0.0] * (tokens - 1)))
    found = look()
    assert found["val/draws/when_asked"] == 1 and found["val/draws/rightly"] == pytest.approx(asked / learned)


def test_trackers_have_what_the_log_has_and_the_samples(llm, model, tmp_path):
    def sample(folder):
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 8), "red").save(folder / "prompts.png")

    follow = lambda model: {"forgetting": 0.5}  # noqa: E731
    training.make(llm, tmp_path / "run", sample=sample, trackers=["tensorboard"], documents=20, follow=follow).fit()
    told = EventAccumulator(str(tmp_path / "run" / "tracked" / "run")).Reload()
    rows = [row for row in read(tmp_path / "run" / "metrics.jsonl") if "loss/total" in row]
    assert [event.step for event in told.Scalars("loss/total")] == [row["step"] for row in rows]
    assert [event.value for event in told.Scalars("loss/total")] == pytest.approx(
        [row["loss/total"] for row in rows], rel=1e-4
    )
    assert {event.value for event in told.Scalars("forgetting")} == {0.5}
    assert {"per_second/images", "memory_gib", "grad_norm"} <= set(told.Tags()["scalars"])
    (image, *_) = told.Images("samples/prompts")
    assert (image.width, image.height) == (16, 8)


@pytest.mark.parametrize("chip", [None, Device("a chip", 2e9, 1e9)])
def test_throughput_is_told_in_operations(llm, model, tmp_path, monkeypatch, chip):
    """As many as the step has, and what share of a known device's speed that is."""
    monkeypatch.setattr("fusion.training.trainer.this_device", lambda device: chip)
    given = training.Given(training.held_out(model.processor, count=1))
    trainer = training.make(llm, tmp_path / "run", loader=given, documents=3, validate=False)
    trainer.model.set_attention("matmul")
    (batch,) = given.given

    def step() -> None:
        trainer.learner.losses(batch, trainer.objective, torch.Generator().manual_seed(0)).total(1, 1).backward()

    work, counts = flops(step), trainer.learner.counts(batch)
    trainer.optimizers.zero_grad()
    trainer.fit()
    assert trainer.log.work == pytest.approx(work / (counts.tokens - counts.padding))
    for row in read(tmp_path / "run" / "metrics.jsonl"):
        assert row["per_second/teraflop"] == pytest.approx(row["per_second/tokens"] * trainer.log.work / 1e12, abs=1e-6)
        assert row.get("per_second/share_of_peak") == (
            chip and pytest.approx(row["per_second/teraflop"] * 1e12 / 1e9, abs=1e-3)
        )


def test_gpus_are_known_by_their_names(monkeypatch):
    known = {
        "NVIDIA H100 80GB HBM3": "H100 SXM",
        "NVIDIA H200": "H200 SXM",
        "NVIDIA GeForce RTX 4090": "RTX 4090",
        "Tesla T4": None,
    }
    for name, found in known.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert getattr(this_device(torch.device("cuda")), "name", None) == found
    assert this_device(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("names", "line"), [(["abacus"], "'abacus' is not known"), (["wandb"], "wandb is not installed; pip install wandb")]
)
def test_trackers_that_are_not_there_are_refused(names, line, monkeypatch):
    monkeypatch.setattr("fusion.training.probe_and_trackers.find_spec", lambda name: None)
    assert trackers(None) == []
    with pytest.raises(ValueError, match=line):
        trackers(names)
