"""Whole pipelines: conditions, latents and pictures are those of diffusers from the same seed; hub ids; bad input in one line."""

import json
import shutil
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from einops import rearrange
from huggingface_hub.utils import filter_repo_objects

from fusion.diffusion import Conditioning, DiT, load, pipeline
from fusion.diffusion.checkpoints import HUB, WEIGHTS
from fusion.diffusion.pipelines import INDEX
from fusion.sequence.patches import unpatchify
from tests.support import pipelines as tiny
from tests.support.pipelines import BY_SIZE, DPM, FLOW, SHIFTED, noise

PROMPTS = ["a red cat", "Two Dogs, 3 hats!"]
WORDS = {"negative": "blur", "guidance": 4.0}
SIZE = {"width": 24, "height": 16}

CASES = {
    "dit": (tiny.dit, {}),
    "dit, dpm": (tiny.dit, {"scheduler": DPM}),
    "pixart": (tiny.pixart, {}),
    "pixart, dpm": (tiny.pixart, {"scheduler": DPM}),
    "sd3": (tiny.sd3, {}),
    "sd3, shift by size": (tiny.sd3, {"scheduler": BY_SIZE}),
    "sd3 without t5": (tiny.sd3, {"with_t5": False}),
    "flux": (tiny.flux, {}),
    "flux, schnell": (tiny.flux, {"scheduler": FLOW, "guidance": False}),
    "flux, shift": (tiny.flux, {"scheduler": SHIFTED}),
    "sana": (tiny.sana, {}),
    "lumina2": (tiny.lumina2, {}),
    "lumina2, shift by size": (tiny.lumina2, {"scheduler": BY_SIZE}),
    "flux2": (tiny.flux2, {}),
    "klein": (tiny.klein, {}),
    "klein, distilled": (tiny.klein, {"distilled": True}),
    "hidream": (tiny.hidream, {}),
    "hidream, shift by size": (tiny.hidream, {"scheduler": BY_SIZE}),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """case -> diffusers' pipeline and the folder it was saved in, made once."""
    made = {}

    def get(case: str):
        if case not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                build, knobs = CASES[case]
                made[case] = build(**knobs), tmp_path_factory.mktemp("pipeline")
            made[case][0].save_pretrained(made[case][1])
        return made[case]

    return get


@pytest.fixture
def copied(saved, tmp_path):
    """case -> a copy of its folder, to be damaged."""
    return lambda case="flux": Path(shutil.copytree(saved(case)[1], tmp_path / "copy"))


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest, in units of the latents' std."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.std()).item()


# ---- what the text says ----
# Without gradients, as pipelines draw: with them attention takes another kernel, whose last bits differ.


@torch.no_grad()
def test_sd3_reads_as_diffusers_does(saved):
    for case in ("sd3", "sd3 without t5"):
        theirs, folder = saved(case)
        cond, (tokens, _, pooled, _) = pipeline(folder).condition(PROMPTS), theirs.encode_prompt(PROMPTS, None, None)
        assert torch.equal(cond.tokens, tokens) and torch.equal(cond.pooled, pooled) and cond.mask is None
        assert tokens.shape == (2, 77 + 256, 32)


@torch.no_grad()
def test_flux_reads_as_diffusers_does(saved):
    theirs, folder = saved("flux")
    cond, (tokens, pooled, _) = pipeline(folder).condition(PROMPTS), theirs.encode_prompt(PROMPTS)
    assert torch.equal(cond.tokens, tokens) and torch.equal(cond.pooled, pooled)


@torch.no_grad()
def test_pixart_reads_as_diffusers_does(saved):
    theirs, folder = saved("pixart")
    cond, (tokens, mask, _, _) = pipeline(folder).condition(PROMPTS), theirs.encode_prompt(PROMPTS, clean_caption=True)
    assert torch.equal(cond.tokens, tokens) and torch.equal(cond.mask, mask.bool()) and 0 < mask.float().mean() < 1


@torch.no_grad()
def test_sana_reads_as_diffusers_does(saved):
    theirs, folder = saved("sana")
    instruction = signature(theirs.__call__).parameters["complex_human_instruction"].default
    ours, other = pipeline(folder), {"complex_human_instruction": instruction, "negative_prompt": "Blur "}
    tokens, mask, negative, negative_mask = theirs.encode_prompt(["Two Dogs, 3 hats!"], **other)
    for cond, given, seen in (
        (ours.condition(PROMPTS[1:]), tokens, mask), (ours.condition(["Blur "], ours.recipe.unlike), negative, negative_mask),
    ):  # fmt: skip
        assert torch.equal(cond.tokens, given) and torch.equal(cond.mask, seen.bool()) and tokens.shape == (1, 300, 32)


@torch.no_grad()
def test_lumina2_reads_as_diffusers_does(saved):
    theirs, folder = saved("lumina2")
    ours = pipeline(folder)
    tokens, mask, negative, negative_mask = theirs.encode_prompt(PROMPTS, negative_prompt=["blur"] * 2)
    for cond, given, seen in ((ours.condition(PROMPTS), tokens, mask), (ours.condition(["blur"] * 2, ours.recipe.unlike), negative, negative_mask)):
        assert torch.equal(cond.tokens, given) and torch.equal(cond.mask, seen.bool())


@torch.no_grad()
@pytest.mark.parametrize("case", ["flux2", "klein"])
def test_flux2_reads_as_diffusers_does(saved, case):
    theirs, folder = saved(case)
    cond, (tokens, _) = pipeline(folder).condition(PROMPTS), theirs.encode_prompt(PROMPTS)
    assert torch.equal(cond.tokens, tokens) and cond.mask is None and tokens.shape == (2, 512, 24)


@torch.no_grad()
def test_hidream_reads_as_diffusers_does(saved):
    theirs, folder = saved("hidream")
    cond, given = pipeline(folder).condition(PROMPTS), theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    assert torch.equal(cond.tokens, given[0]) and torch.equal(cond.layers, given[2]) and torch.equal(cond.pooled, given[4])
    assert cond.layers.shape == (3, 2, 128, 8)


def test_dit_reads_numbers_and_names(copied):
    folder = copied("dit")
    edit(folder / INDEX, id2label={"3": "tiger shark, Galeocerdo cuvieri", "7": "cock"})
    dit = pipeline(folder)
    assert dit.condition(["cock", 5, "Galeocerdo cuvieri", ""]).label.tolist() == [7, 5, 3, 1000]
    for unknown in ("rooster", 1001, -1):
        assert "no class is called" in refusal(lambda unknown=unknown: dit.draw(unknown))


@torch.no_grad()
def test_a_long_text_is_cut_as_diffusers_does_and_said(saved):
    theirs, folder = saved("flux")
    long = "red " * 100 + "end"
    with pytest.warns(UserWarning, match=r"cut to 77, .*lost: .* end"):
        cond = pipeline(folder).condition([long])
    assert torch.equal(cond.pooled, theirs.encode_prompt([long])[1])


# ---- what is drawn ----


@pytest.mark.parametrize("case", ["sd3", "sd3, shift by size", "sd3 without t5"])
def test_sd3_draws_what_diffusers_draws(saved, case):
    theirs, folder = saved(case)
    latents = theirs(PROMPTS, negative_prompt="blur", guidance_scale=4.0, num_inference_steps=5, generator=noise(3), output_type="latent", **SIZE)
    assert difference(pipeline(folder).sample(PROMPTS, size=(24, 16), seed=3, steps=5, **WORDS), latents.images) < 1e-5


@pytest.mark.parametrize("case", ["flux", "flux, schnell", "flux, shift"])
def test_flux_draws_what_diffusers_draws(saved, case):
    theirs, folder = saved(case)
    rows = theirs(PROMPTS, guidance_scale=2.5, num_inference_steps=5, generator=noise(3), output_type="latent", **SIZE).images
    ours = pipeline(folder).sample(PROMPTS, size=(24, 16), seed=3, steps=5, guidance=2.5)
    assert difference(ours, unpatchify(rows, (4, 6), 2, 4)) < 1e-5


@pytest.mark.parametrize("steps", [5, 7, 16])
def test_sana_draws_what_diffusers_draws(saved, steps):
    theirs, folder = saved("sana")
    knobs = {"negative_prompt": "blur", "guidance_scale": 4.0, "use_resolution_binning": False, "height": 32, "width": 64}
    latents = theirs(PROMPTS, num_inference_steps=steps, generator=noise(3), output_type="latent", **knobs).images
    assert difference(pipeline(folder).sample(PROMPTS, size=(64, 32), seed=3, steps=steps, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case", ["lumina2", "lumina2, shift by size"])
def test_lumina2_draws_what_diffusers_draws(saved, case):
    theirs, folder = saved(case)
    knobs = {"negative_prompt": ["blur"] * 2, "guidance_scale": 4.0, "height": 64, "width": 96}
    latents = theirs(PROMPTS, num_inference_steps=5, generator=noise(3), output_type="latent", **knobs).images
    assert difference(pipeline(folder).sample(PROMPTS, size=(96, 64), seed=3, steps=5, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case", ["flux2", "klein, distilled", "klein"])
@pytest.mark.parametrize("steps", [3, 5])
def test_flux2_draws_what_diffusers_draws(saved, case, steps):
    theirs, folder = saved(case)
    rows = theirs(prompt=PROMPTS, guidance_scale=2.5, num_inference_steps=steps, generator=noise(3), output_type="latent", **SIZE).images
    ours = pipeline(folder)
    mine = ours.sample(PROMPTS, size=(24, 16), seed=3, steps=steps, guidance=2.5)
    if rows.ndim == 4:  # klein's come unfolded, and as its VAE has them
        folded = rearrange(rows, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        given = (folded - ours.codec.shift) * ours.codec.scale
    else:
        given = unpatchify(rows, (4, 6), 1, 16)
    assert difference(mine, given) < 1e-4


@pytest.mark.parametrize("case, size", [("hidream", (16, 16)), ("hidream", (32, 8)), ("hidream, shift by size", (16, 16))])
def test_hidream_draws_what_diffusers_draws(saved, case, size):
    theirs, folder = saved(case)
    theirs.default_sample_size = 8  # it draws every size at this area
    knobs = {"negative_prompt": "blur", "guidance_scale": 4.0, "width": size[0], "height": size[1]}
    latents = theirs(PROMPTS, num_inference_steps=5, generator=noise(3), output_type="latent", **knobs).images
    assert difference(pipeline(folder).sample(PROMPTS, size=size, seed=3, steps=5, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case, solver", [("pixart", "euler"), ("pixart, dpm", "dpmpp_2m")])
@pytest.mark.parametrize("steps", [5, 7])
def test_pixart_draws_what_diffusers_draws_by_ddim_and_dpm_solver(saved, case, solver, steps):
    theirs, folder = saved(case)
    knobs = {"negative_prompt": "blur", "guidance_scale": 4.0, "use_resolution_binning": False}
    latents = theirs(PROMPTS, num_inference_steps=steps, generator=noise(3), output_type="latent", **knobs, **SIZE).images
    assert difference(pipeline(folder).sample(PROMPTS, size=(24, 16), seed=3, steps=steps, solver=solver, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case, solver", [("dit", "euler"), ("dit, dpm", "dpmpp_2m")])
def test_dit_draws_what_diffusers_draws_by_ddim_and_dpm_solver(saved, monkeypatch, case, solver):
    theirs, folder = saved(case)
    seen, decode = [], theirs.vae.decode
    monkeypatch.setattr(theirs.vae, "decode", lambda raw: seen.append(raw * theirs.vae.config.scaling_factor) or decode(raw))
    theirs(class_labels=[3, 7], guidance_scale=4.0, num_inference_steps=5, generator=noise(3))
    assert difference(pipeline(folder).sample([3, 7], seed=3, steps=5, guidance=4.0, solver=solver), seen[0]) < 1e-4


@pytest.mark.parametrize("case", ["sd3", "flux"])
def test_pictures_are_diffusers_to_a_level(saved, case):
    theirs, folder = saved(case)
    given = theirs(PROMPTS[0], num_images_per_prompt=2, num_inference_steps=2, guidance_scale=3.0, generator=noise(3), **SIZE).images
    ours = pipeline(folder).draw(PROMPTS[0], n=2, size=(24, 16), seed=3, steps=2, guidance=3.0)
    assert len(ours) == 2 and ours[0].size == (24, 16)
    for mine, picture in zip(ours, given, strict=True):
        pair = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (mine, picture)]
        assert (pair[0] - pair[1]).abs().max() <= 1 and pair[1].float().std() > 1


def test_without_knobs_a_pipeline_draws_as_is_usual_for_it(copied):
    folder = copied("pixart")
    pixart = pipeline(folder)
    latents = pixart.sample("a red cat")
    usual = pixart.sample(["a red cat"], n=1, size=(16, 16), seed=0, steps=20, guidance=4.5, negative="", solver="dpmpp_2m")
    assert torch.equal(latents, usual) and latents.shape == (1, 4, 8, 8)
    other = pixart.sample(["a red cat", "a dog"], n=2, solver="heun", steps=4, guidance=1)
    assert other.shape == (4, 4, 8, 8) and other.isfinite().all()


def test_a_pipeline_in_half_precision_draws(saved):
    for case in ("sd3", "flux"):
        half = pipeline(saved(case)[1], dtype=torch.bfloat16)
        assert half.condition(PROMPTS).tokens.dtype == torch.bfloat16
        latents = half.sample(PROMPTS, steps=2, size=(16, 16))
        assert latents.dtype == torch.float32 and latents.isfinite().all()


def test_rows_of_a_condition_are_chosen_with_their_layers():
    cond = Conditioning(torch.randn(2, 5, 8), layers=torch.randn(3, 2, 5, 4)).rows(torch.tensor([1, 1, 0]))
    assert cond.tokens.shape == (3, 5, 8) and cond.layers.shape == (3, 3, 5, 4) and cond.mask is None
    assert torch.equal(cond.layers[:, 0], cond.layers[:, 1])


# ---- where it comes from ----


def test_a_text_model_that_a_pipeline_comes_without_is_given(copied, saved):
    folder = copied("hidream")
    edit(folder / INDEX, text_encoder_4=[None, None], tokenizer_4=[None, None])
    llama = folder.with_name("llama")
    for part in ("text_encoder_4", "tokenizer_4"):
        shutil.copytree(folder / part, llama, dirs_exist_ok=True)
        shutil.rmtree(folder / part)
    assert 'give encoders={"text_encoder_4": a folder or hub id}' in refusal(lambda: pipeline(folder))
    given, whole = (one.condition(PROMPTS) for one in (pipeline(folder, encoders={"text_encoder_4": llama}), pipeline(saved("hidream")[1])))
    assert torch.equal(given.layers, whole.layers)
    assert "reads text_encoder, text_encoder_2, text_encoder_3, text_encoder_4, and not llm" in refusal(
        lambda: pipeline(folder, encoders={"text_encoder_4": llama, "llm": llama})
    )
    assert "text_encoder_4, nowhere/at-all, cannot be read" in refusal(lambda: pipeline(folder, encoders={"text_encoder_4": "nowhere/at-all"}))


def test_a_processor_is_read_for_its_tokenizer(copied, saved):
    folder = copied("flux2")
    edit(folder / INDEX, tokenizer=["transformers", "PixtralProcessor"])
    assert torch.equal(pipeline(folder).condition(PROMPTS).tokens, pipeline(saved("flux2")[1]).condition(PROMPTS).tokens)


def test_a_distilled_pipeline_draws_without_a_second_branch(saved):
    distilled = pipeline(saved("klein, distilled")[1])
    assert torch.equal(distilled.sample("cat", size=(8, 8)), distilled.sample("cat", size=(8, 8), steps=4, guidance=7.0))
    assert "has no second branch" in refusal(lambda: distilled.sample("cat", negative="blur"))


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """A hub of one repository, someone/flux, with more in it than is read; what is asked of it is recorded, and only that is given."""
    folder, local, asked = tmp_path / "remote", tmp_path / "local", []
    shutil.copytree(saved("flux")[1], folder)
    for left in ("flux.safetensors", "transformer/diffusion_pytorch_model.fp16.safetensors", "transformer/diffusion_pytorch_model.bin"):
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
    assert torch.equal(pipeline("someone/flux").sample("cat", steps=1, size=(8, 8)), pipeline(folder).sample("cat", steps=1, size=(8, 8)))
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


@pytest.mark.parametrize("error, said", [("RepositoryNotFoundError", "no such repository"), ("GatedRepoError", "owners want to be asked")])
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


def refusal(action) -> str:
    """The one line that it is refused with."""
    with pytest.raises(ValueError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda folder: edit(folder / INDEX, _class_name="KolorsPipeline"), "a KolorsPipeline; those that can be loaded are DiTPipeline"),
        (lambda folder: edit(folder / INDEX, text_encoder=[None, None]), "names no text_encoder, which FluxPipeline needs"),
        (lambda folder: edit(folder / INDEX, text_encoder=["mine", "Encoder"]), "give a model and a tokenizer of transformers"),
        (lambda folder: edit(folder / INDEX, _class_name="StableDiffusion3Pipeline"), "the network, a Flux, does not draw"),
        (lambda folder: (folder / INDEX).unlink(), "no diffusers pipeline there"),
        (lambda folder: (folder / INDEX).write_text("{"), "cannot be read"),
        (lambda folder: (folder / "text_encoder_2/model.safetensors").unlink(), "text_encoder_2 or tokenizer_2 cannot be read"),
        (lambda folder: (folder / "vae/config.json").unlink(), "no codec found"),
        (lambda folder: (folder / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json cannot be read"),
        (lambda folder: shutil.rmtree(folder / "transformer"), "has no folder transformer, which its model_index.json names"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "has no folder tokenizer_2"),
        (lambda folder: edit(folder / "scheduler/scheduler_config.json", shift_terminal=0.1), "sets shift_terminal, which our schedules leave out"),
        (lambda folder: edit(folder / "scheduler/scheduler_config.json", _class_name="EulerScheduler"), "read are flow matching, and epsilon of"),
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
    assert "size 18x16: give sides that 4 divides, the VAE's 2 times patches of 2" in refusal(lambda: flux.draw("cat", size=(18, 16)))
    assert "size 0x16" in refusal(lambda: flux.draw("cat", size=(0, 16)))
    assert "unknown solver 'ddim': use one of euler" in refusal(lambda: flux.draw("cat", solver="ddim"))
    assert "leave negative out" in refusal(lambda: flux.draw("cat", negative="blur"))
    assert "solver steps" in refusal(lambda: dit.draw(1, steps=0)) and "solver steps" in refusal(lambda: dit.draw(1, steps=1001))
    assert "solver steps" in refusal(lambda: flux.draw("cat", steps=0, size=(8, 8)))
