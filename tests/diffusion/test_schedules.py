"""Schedules of pipelines: the times of diffusers' schedulers, and what networks are told of them."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fusion.diffusion.schedules import read_schedule
from tests.support.pipelines import BY_SIZE, DDIM, DPM


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_steps_are_chosen_and_weighed_as_diffusers_does(tmp_path, spacing, betas):
    theirs = (DPM if spacing == "linspace" else DDIM).from_config(
        DDIM.config, timestep_spacing=spacing, beta_schedule=betas
    )
    theirs.save_pretrained(tmp_path)
    ours = read_schedule(tmp_path, even=False)
    torch.testing.assert_close(ours.signal**2, theirs.alphas_cumprod)
    for steps in (1, 3, 20, 50):
        theirs.set_timesteps(steps)
        assert ours.chosen(steps).tolist() == theirs.timesteps.tolist()
        assert (ours.times(steps, 1).diff() < 0).all()


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_shifts_by_size_are_diffusers(tmp_path, kind):
    theirs = FlowMatchEulerDiscreteScheduler.from_config(BY_SIZE.config, time_shift_type=kind)
    theirs.save_pretrained(tmp_path)
    mu = 0.5 + (1.15 - 0.5) / (64 - 16) * (24 - 16)
    theirs.set_timesteps(6, mu=mu)
    torch.testing.assert_close(read_schedule(tmp_path, even=False).times(6, 24), theirs.sigmas)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("shifts", [{"flow_shift": 3.0}, {"use_dynamic_shifting": True}])
def test_flows_of_solvers_have_diffusers_times(tmp_path, kind, shifts):
    theirs = kind(prediction_type="flow_prediction", use_flow_sigmas=True, **shifts)
    theirs.save_pretrained(tmp_path)
    ours = read_schedule(tmp_path, even=False, by_size=lambda tokens, steps: 0.9)
    for steps in (1, 6, 20):
        theirs.set_timesteps(steps, **({"mu": 0.9} if "flow_shift" not in shifts else {}))
        torch.testing.assert_close(ours.times(steps, 24), theirs.sigmas, atol=2e-6, rtol=0)
        told = ours.velocity(lambda x, t: t)
        assert [round(1000 * told(None, t).item()) for t in ours.times(steps, 24)[:-1]] == theirs.timesteps.tolist()
