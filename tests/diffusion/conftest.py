"""Tiny pipelines of diffusers, saved once, and copies of them to be damaged."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.support import pipelines as tiny
from tests.support.pipelines import BY_SIZE, DPM, FLOW, SHIFTED

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


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """case -> diffusers' pipeline and the folder it was saved in, made once."""
    made = {}

    def get(case: str):
        if case not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                build, params = CASES[case]
                made[case] = build(**params), tmp_path_factory.mktemp("pipeline")
            made[case][0].save_pretrained(made[case][1])
        return made[case]

    return get


@pytest.fixture
def copied(saved, tmp_path):
    """case -> a copy of its folder, to be damaged."""
    return lambda case="flux": Path(shutil.copytree(saved(case)[1], tmp_path / "copy"))
