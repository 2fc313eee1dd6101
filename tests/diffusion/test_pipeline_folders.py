"""Where pipelines come from: folders, the hub and its cache, encoders that are given; what is refused, in one line."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from fusion.diffusion import DiT, load, pipeline
from fusion.diffusion.checkpoints import HUB, WEIGHTS
from fusion.diffusion.pipelines import INDEX
from tests.support.pipelines import edit, refusal

PROMPTS = ["a red cat", "Two Dogs, 3 hats!"]


def test_a_text_model_that_a_pipeline_comes_without_is_given(copied, saved):
    folder = copied("hidream")
    edit(folder / INDEX, text_encoder_4=[None, None], tokenizer_4=[None, None])
    llama = folder.with_name("llama")
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.copytree(folder / part, llama, dirs_exist_ok=True)
        shutil.rmtree(folder / part)
    assert 'give encoders={"text_encoder_4": a folder or hub id}' in refusal(lambda: pipeline(folder))
    given, whole = (
        one.condition(PROMPTS)
        for one in (pipeline(folder, encoders={"text_encoder_4": llama}), pipeline(saved("hidream")[1]))
    )
    assert torch.equal(given.layers, whole.layers)
    assert "reads text_encoder, text_encoder_2, text_encoder_3, text_encoder_4, and not llm" in refusal(
        lambda: pipeline(folder, encoders={"text_encoder_4": llama, "llm": llama})
    )
    assert "text_encoder_4, nowhere/at-all, cannot be read" in refusal(
        lambda: pipeline(folder, encoders={"text_encoder_4": "nowhere/at-all"})
    )


def test_a_processor_is_read_for_its_tokenizer(copied, saved):
    folder = copied("flux2")
    edit(folder / INDEX, tokenizer=["transformers", "PixtralProcessor"])
    assert torch.equal(
        pipeline(folder).condition(PROMPTS).tokens, pipeline(saved("flux2")[1]).condition(PROMPTS).tokens
    )


def test_a_distilled_pipeline_draws_without_a_second_branch(saved):
    distilled = pipeline(saved("klein, distilled")[1])
    assert torch.equal(
        distilled.sample("cat", size=(8, 8)), distilled.sample("cat", size=(8, 8), steps=4, guidance=7.0)
    )
    assert "has no second branch" in refusal(lambda: distilled.sample("cat", negative="blur"))


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A hub of one repository, someone/flux, with more in it than is read; what is asked of it is recorded, and only
    that is given."""
    folder, local, asked = tmp_path / "remote", tmp_path / "local", []
    shutil.copytree(saved("flux")[1], folder)
    for left in (
        "flux.safetensors",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.bin",
    ):
        (folder / left).touch()

    def snapshot_download(source, allow_patterns, ignore_patterns):
        names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        asked.extend(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        for name in asked:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, local / name)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_network_is_found_in_its_pipeline_here_and_on_the_hub(saved, hub):
    folder = saved("flux")[1]
    networks = [load(folder / "transformer"), load(folder), load("someone/flux")]
    for network in networks[1:]:
        assert all(torch.equal(ours, networks[0].state_dict()[name]) for name, ours in network.state_dict().items())
    assert sorted(hub) == ["transformer/config.json", f"transformer/{WEIGHTS}"]


def test_a_pipeline_of_the_hub_is_the_pipeline_here(saved, hub):
    folder = saved("flux")[1]
    assert torch.equal(
        pipeline("someone/flux").sample("cat", steps=1, size=(8, 8)),
        pipeline(folder).sample("cat", steps=1, size=(8, 8)),
    )
    assert f"transformer/{WEIGHTS}" in hub and "tokenizer/tokenizer.json" in hub
    assert not [name for name in hub if name == "flux.safetensors" or ".fp16" in name or name.endswith(".bin")]


def test_a_repository_in_the_cache_serves_without_a_network(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--dit"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    shutil.copytree(saved("dit")[1], repository / "snapshots" / ("0" * 40))
    assert isinstance(load("someone/dit"), DiT)
    assert "hub cannot be reached" in refusal(lambda: load("someone/else"))
    assert "hub cannot be reached" in refusal(lambda: pipeline("someone/else"))


@pytest.mark.parametrize(
    "error, said", [("RepositoryNotFoundError", "no such repository"), ("GatedRepoError", "owners want to be asked")]
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, said):
    def snapshot_download(*_, **__):
        raise getattr(huggingface_hub.errors, error)("401\n\nlong", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert said in refusal(lambda: load("someone/secret"))
    assert said in refusal(lambda: pipeline("someone/secret"))


def test_pickles_are_not_read_nor_asked_for(copied):
    folder = copied("dit")
    weights = folder / "transformer" / WEIGHTS
    weights.rename(weights.with_suffix(".bin"))
    assert "are pickles, which nothing here opens" in refusal(lambda: load(folder))
    assert not [pattern for pattern in HUB if pattern.endswith((".bin", ".pt", "*"))]


def test_published_dit_and_pixart_have_an_earlier_name(copied):
    folder = copied("dit")
    edit(folder / "transformer/config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    assert isinstance(load(folder), DiT)
    edit(folder / "transformer/config.json", norm_type="layer_norm")
    assert "a checkpoint of Transformer2DModel" in refusal(lambda: load(folder))


# ---- bad input ----


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda folder: edit(folder / INDEX, _class_name="KolorsPipeline"),
            "a KolorsPipeline; those that can be loaded are DiTPipeline",
        ),
        (
            lambda folder: edit(folder / INDEX, text_encoder=[None, None]),
            "names no text_encoder, which FluxPipeline needs",
        ),
        (
            lambda folder: edit(folder / INDEX, text_encoder=["mine", "Encoder"]),
            "give a model and a tokenizer of transformers",
        ),
        (
            lambda folder: edit(folder / INDEX, _class_name="StableDiffusion3Pipeline"),
            "the network, a Flux, does not draw",
        ),
        (lambda folder: (folder / INDEX).unlink(), "no diffusers pipeline there"),
        (lambda folder: (folder / INDEX).write_text("{"), "cannot be read"),
        (
            lambda folder: (folder / "text_encoder_2/model.safetensors").unlink(),
            "text_encoder_2 or tokenizer_2 cannot be read",
        ),
        (lambda folder: (folder / "vae/config.json").unlink(), "no codec found"),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json cannot be read"),
        (
            lambda folder: shutil.rmtree(folder / "transformer"),
            "has no folder transformer, which its model_index.json names",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "has no folder tokenizer_2"),
        (
            lambda folder: edit(folder / "scheduler/scheduler_config.json", shift_terminal=0.1),
            "sets shift_terminal, which our schedules leave out",
        ),
        (
            lambda folder: edit(folder / "scheduler/scheduler_config.json", _class_name="EulerScheduler"),
            "read are flow matching, and epsilon of",
        ),
    ],
)
def test_a_broken_pipeline_is_refused_in_one_line(copied, damage, said):
    folder = copied()
    damage(folder)
    assert said in refusal(lambda: pipeline(folder))


def test_a_bad_wish_is_refused_in_one_line(saved):
    flux, dit = pipeline(saved("flux")[1]), pipeline(saved("dit")[1])
    assert "prompt 3 is of type int: this pipeline reads str" in refusal(lambda: flux.draw(["a cat", 3]))
    assert "give at least one" in refusal(lambda: flux.draw([]))
    assert "size 18x16: give sides that 4 divides, the VAE's 2 times patches of 2" in refusal(
        lambda: flux.draw("cat", size=(18, 16))
    )
    assert "size 0x16" in refusal(lambda: flux.draw("cat", size=(0, 16)))
    assert "unknown solver 'ddim': use one of euler" in refusal(lambda: flux.draw("cat", solver="ddim"))
    assert "leave negative out" in refusal(lambda: flux.draw("cat", negative="blur"))
    assert "solver steps" in refusal(lambda: dit.draw(1, steps=0)) and "solver steps" in refusal(
        lambda: dit.draw(1, steps=1001)
    )
    assert "solver steps" in refusal(lambda: flux.draw("cat", steps=0, size=(8, 8)))
