"""One step of the network: it is spelled in one file, and what it is given enters where it should."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.testing.mixed_documents import (
    assert_close,
    drawing,
    everything,
    ids,
    image_piece,
    packed_rows,
    text,
    tiny_fusion,
)
from fusion.unified.step import Images

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"embed_time", "embed_patches", "modulate_rows", "backbone", "flow_head", "patch_embed"}


def called(path: Path) -> set[str]:
    """Parts of the network that a file calls as attributes: `model.flow_head(...)`."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return {call.attr for call in calls if isinstance(call, ast.Attribute)} & PARTS


def test_the_network_call_is_assembled_in_one_file():
    files = [path for top in ("fusion", "train", "eval", "bench") for path in (ROOT / top).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): parts for path in files if (parts := called(path))}
    assert found == {"fusion/unified/step.py": PARTS}


def images_of(model, packed) -> Images:
    return Images(packed.patches, packed.time, packed.grid[packed.noised_image], packed.references)


@torch.no_grad()
def test_without_a_grid_nothing_is_predicted_and_the_rest_stays():
    model, packed = tiny_fusion("llama"), everything()
    images, mask = images_of(model, packed), model.backbone.mask(packed, packed)
    full, read = model.step(packed, mask, images), model.step(packed, mask, replace(images, grid=None))
    assert read.prediction is None and torch.equal(full.hidden, read.hidden)
    assert torch.equal(full.prediction, model(packed=packed).prediction)


@pytest.mark.parametrize("case", [("llama", "added", "shared"), ("gpt2", "none", "shared")], ids="-".join)
@torch.no_grad()
def test_rows_of_nothing_but_patches_enter_as_those_beside_text_do(case):
    model, packed = tiny_fusion(*case), packed_rows([[drawing()]])
    time = model.embed_time(packed.time)
    mixed = model.embed(packed, packed.patches, time)[packed.noised]
    rows = packed.map(lambda column: column[..., packed.noised[0]])
    alone = model.embed(rows, packed.patches[packed.noised_patch], time)
    assert len(rows) == len(mixed) and torch.equal(alone[0], mixed)


@pytest.mark.parametrize("part", ["linear+reference", "conv+reference"])
@torch.no_grad()
def test_the_edited_image_reaches_noised_patches_and_never_the_clean_stream(part):
    model = tiny_fusion("llama", head=part)
    edit = [text(5, 1), image_piece(2, 3, 2, target=False), text(2, 3), image_piece(2, 3, 4)]
    packed = packed_rows([[edit]])
    images, mask = images_of(model, packed), model.backbone.mask(packed, packed)
    assert model.looks_back and images.reference.any()
    seen, other = (
        model.step(packed, mask, replace(images, reference=reference))
        for reference in (images.reference, -images.reference)
    )
    assert torch.equal(seen.hidden[~packed.noised], other.hidden[~packed.noised])
    changes = (seen.prediction - other.prediction).abs().amax(-1)
    assert len(changes) == 6 and (changes > 0).all()


@pytest.mark.parametrize("case", [("llama", "adaln", "axial", "conv"), ("gpt2", "added", "shared")], ids="-".join)
@torch.no_grad()
def test_each_image_is_told_its_own_time_and_nobody_elses(case):
    """Two images at two times, as one batch and each alone."""
    model, times = tiny_fusion(*case), torch.tensor([0.3, 0.8])
    documents = [[text(5, 1), image_piece(2, 3, 2, clean=False)], [text(5, 3), image_piece(3, 2, 4, clean=False)]]
    packed = packed_rows([documents])
    together = model(packed=packed.with_patches(packed.patches, times)).prediction
    for number, document in enumerate(documents):
        alone = packed_rows([[document]])
        at_its_time = model(packed=alone.with_patches(alone.patches, times[[number]])).prediction
        assert_close(together[packed.image_of_patch == number], at_its_time)


@torch.no_grad()
def test_text_is_told_nothing_of_images():
    model, x = tiny_fusion("llama"), ids()
    out = model(input_ids=x)
    assert torch.equal(out.logits, tiny_fusion("llama", time="none")(input_ids=x).logits)
