"""Whole pipelines: conditioning, latents and images equal those of diffusers from the same seed."""

from inspect import signature

import pytest
import torch
from einops import rearrange

from fusion.diffusion import Conditioning, pipeline
from fusion.diffusion.pipelines import INDEX
from fusion.sequence.patches import unpatchify
from tests.support.pipelines import edit, noise, refusal

PROMPTS = ["a red cat", "Two Dogs, 3 hats!"]
WORDS = {"negative": "blur", "guidance": 4.0}
SIZE = {"width": 24, "height": 16}


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
        (ours.condition(PROMPTS[1:]), tokens, mask),
        (ours.condition(["Blur "], ours.recipe.unlike), negative, negative_mask),
    ):
        assert torch.equal(cond.tokens, given) and torch.equal(cond.mask, seen.bool()) and tokens.shape == (1, 300, 32)


@torch.no_grad()
def test_lumina2_reads_as_diffusers_does(saved):
    theirs, folder = saved("lumina2")
    ours = pipeline(folder)
    tokens, mask, negative, negative_mask = theirs.encode_prompt(PROMPTS, negative_prompt=["blur"] * 2)
    for cond, given, seen in (
        (ours.condition(PROMPTS), tokens, mask),
        (ours.condition(["blur"] * 2, ours.recipe.unlike), negative, negative_mask),
    ):
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
    assert (
        torch.equal(cond.tokens, given[0]) and torch.equal(cond.layers, given[2]) and torch.equal(cond.pooled, given[4])
    )
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
    latents = theirs(
        PROMPTS,
        negative_prompt="blur",
        guidance_scale=4.0,
        num_inference_steps=5,
        generator=noise(3),
        output_type="latent",
        **SIZE,
    )
    assert difference(pipeline(folder).sample(PROMPTS, size=(24, 16), seed=3, steps=5, **WORDS), latents.images) < 1e-5


@pytest.mark.parametrize("case", ["flux", "flux, schnell", "flux, shift"])
def test_flux_draws_what_diffusers_draws(saved, case):
    theirs, folder = saved(case)
    rows = theirs(
        PROMPTS, guidance_scale=2.5, num_inference_steps=5, generator=noise(3), output_type="latent", **SIZE
    ).images
    ours = pipeline(folder).sample(PROMPTS, size=(24, 16), seed=3, steps=5, guidance=2.5)
    assert difference(ours, unpatchify(rows, (4, 6), 2, 4)) < 1e-5


@pytest.mark.parametrize("steps", [5, 7, 16])
def test_sana_draws_what_diffusers_draws(saved, steps):
    theirs, folder = saved("sana")
    params = {
        "negative_prompt": "blur",
        "guidance_scale": 4.0,
        "use_resolution_binning": False,
        "height": 32,
        "width": 64,
    }
    latents = theirs(PROMPTS, num_inference_steps=steps, generator=noise(3), output_type="latent", **params).images
    assert difference(pipeline(folder).sample(PROMPTS, size=(64, 32), seed=3, steps=steps, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case", ["lumina2", "lumina2, shift by size"])
def test_lumina2_draws_what_diffusers_draws(saved, case):
    theirs, folder = saved(case)
    params = {"negative_prompt": ["blur"] * 2, "guidance_scale": 4.0, "height": 64, "width": 96}
    latents = theirs(PROMPTS, num_inference_steps=5, generator=noise(3), output_type="latent", **params).images
    assert difference(pipeline(folder).sample(PROMPTS, size=(96, 64), seed=3, steps=5, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case", ["flux2", "klein, distilled", "klein"])
@pytest.mark.parametrize("steps", [3, 5])
def test_flux2_draws_what_diffusers_draws(saved, case, steps):
    theirs, folder = saved(case)
    rows = theirs(
        prompt=PROMPTS, guidance_scale=2.5, num_inference_steps=steps, generator=noise(3), output_type="latent", **SIZE
    ).images
    ours = pipeline(folder)
    mine = ours.sample(PROMPTS, size=(24, 16), seed=3, steps=steps, guidance=2.5)
    if rows.ndim == 4:  # klein's come unfolded, and as its VAE has them
        folded = rearrange(rows, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        given = (folded - ours.codec.shift) * ours.codec.scale
    else:
        given = unpatchify(rows, (4, 6), 1, 16)
    assert difference(mine, given) < 1e-4


@pytest.mark.parametrize(
    "case, size", [("hidream", (16, 16)), ("hidream", (32, 8)), ("hidream, shift by size", (16, 16))]
)
def test_hidream_draws_what_diffusers_draws(saved, case, size):
    theirs, folder = saved(case)
    theirs.default_sample_size = 8  # it draws every size at this area
    params = {"negative_prompt": "blur", "guidance_scale": 4.0, "width": size[0], "height": size[1]}
    latents = theirs(PROMPTS, num_inference_steps=5, generator=noise(3), output_type="latent", **params).images
    assert difference(pipeline(folder).sample(PROMPTS, size=size, seed=3, steps=5, **WORDS), latents) < 1e-4


@pytest.mark.parametrize("case, solver", [("pixart", "euler"), ("pixart, dpm", "dpmpp_2m")])
@pytest.mark.parametrize("steps", [5, 7])
def test_pixart_draws_what_diffusers_draws_by_ddim_and_dpm_solver(saved, case, solver, steps):
    theirs, folder = saved(case)
    params = {"negative_prompt": "blur", "guidance_scale": 4.0, "use_resolution_binning": False}
    latents = theirs(
        PROMPTS, num_inference_steps=steps, generator=noise(3), output_type="latent", **params, **SIZE
    ).images
    assert (
        difference(
            pipeline(folder).sample(PROMPTS, size=(24, 16), seed=3, steps=steps, solver=solver, **WORDS), latents
        )
        < 1e-4
    )


@pytest.mark.parametrize("case, solver", [("dit", "euler"), ("dit, dpm", "dpmpp_2m")])
def test_dit_draws_what_diffusers_draws_by_ddim_and_dpm_solver(saved, monkeypatch, case, solver):
    theirs, folder = saved(case)
    seen, decode = [], theirs.vae.decode
    monkeypatch.setattr(
        theirs.vae, "decode", lambda raw: seen.append(raw * theirs.vae.config.scaling_factor) or decode(raw)
    )
    theirs(class_labels=[3, 7], guidance_scale=4.0, num_inference_steps=5, generator=noise(3))
    assert difference(pipeline(folder).sample([3, 7], seed=3, steps=5, guidance=4.0, solver=solver), seen[0]) < 1e-4


@pytest.mark.parametrize("case", ["sd3", "flux"])
def test_images_are_diffusers_to_a_level(saved, case):
    theirs, folder = saved(case)
    given = theirs(
        PROMPTS[0], num_images_per_prompt=2, num_inference_steps=2, guidance_scale=3.0, generator=noise(3), **SIZE
    ).images
    ours = pipeline(folder).draw(PROMPTS[0], n=2, size=(24, 16), seed=3, steps=2, guidance=3.0)
    assert len(ours) == 2 and ours[0].size == (24, 16)
    for mine, expected in zip(ours, given, strict=True):
        pair = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int() for image in (mine, expected)]
        assert (pair[0] - pair[1]).abs().max() <= 1 and pair[1].float().std() > 1


def test_without_params_a_pipeline_draws_as_is_usual_for_it(copied):
    folder = copied("pixart")
    pixart = pipeline(folder)
    latents = pixart.sample("a red cat")
    usual = pixart.sample(
        ["a red cat"], n=1, size=(16, 16), seed=0, steps=20, guidance=4.5, negative="", solver="dpmpp_2m"
    )
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
