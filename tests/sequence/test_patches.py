"""patches.py: law 6 (unpatchify inverts patchify at every rank), order of patches, positions, and bad sizes."""

import math

import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from fusion.sequence.patches import cells, grid, patchify, sincos, unpatchify

SHAPES = [
    ((24,), 4),
    ((8, 12), 4),
    ((12, 8), 1),
    ((6, 10), 2),
    ((4, 6, 8), 2),
    ((3, 8, 6), (1, 4, 2)),
    ((6, 10), (3, 5)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape, patch_size", SHAPES, ids=str)
def test_unpatchify_undoes_patchify(shape, patch_size, batch, dtype):
    latent = torch.randn(*batch, 3, *shape, dtype=dtype)
    patches = patchify(latent, patch_size, rank=len(shape))
    assert patches.shape[:-2] == batch and patches.dtype == dtype
    assert torch.equal(unpatchify(patches, grid(shape, patch_size), patch_size, 3), latent)


@pytest.mark.parametrize("shape, patch_size", SHAPES, ids=str)
def test_patch_k_is_what_lies_at_cell_k_channel_first(shape, patch_size):
    latent = torch.randn(3, *shape)
    sides = (patch_size,) * len(shape) if isinstance(patch_size, int) else patch_size
    patches, where = patchify(latent, patch_size), cells(grid(shape, patch_size))
    assert len(patches) == len(where)
    for patch, cell in zip(patches, where.tolist()):
        window = latent[(slice(None), *(slice(i * side, (i + 1) * side) for i, side in zip(cell, sides)))]
        assert torch.equal(patch, window.flatten())


def test_a_batch_is_cut_image_by_image():
    latents = torch.randn(4, 3, 8, 12)
    assert torch.equal(patchify(latents, 4, rank=2), torch.stack([patchify(latent, 4) for latent in latents]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_embedding_patches_is_a_strided_convolution(rank):
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[rank - 1](3, 7, kernel_size=2, stride=2)
    latent = torch.randn(3, *(8, 6, 4)[:rank])
    rows = torch.nn.functional.linear(patchify(latent, 2), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(rows, conv(latent[None])[0].flatten(1).T, atol=1e-5, rtol=0)


def test_gradients_pass_through():
    latent = torch.randn(3, 8, 8, requires_grad=True)
    patchify(latent, 4).mul(2).sum().backward()
    assert torch.equal(latent.grad, torch.full_like(latent, 2))


def test_cells_count_the_last_axis_fastest():
    assert cells((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert cells((3,)).tolist() == [[0], [1], [2]]
    assert cells((2, 1, 2)).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert cells((2, 3)).dtype == torch.long


@pytest.mark.parametrize("rank, width", [(1, 32), (2, 64), (3, 96), (3, 64), (2, 30)])
def test_sincos_tells_positions_apart_and_distances_alike(rank, width):
    where = cells((5,) * rank)
    features = sincos(where, width)
    assert features.shape == (len(where), width) and features.dtype == torch.float32
    assert (torch.cdist(features, features) + 10 * torch.eye(len(where))).min() > 0.1
    # A product of two positions' features depends on their difference alone, so a common shift leaves all products.
    moved = sincos(where + 7, width)
    torch.testing.assert_close(moved @ moved.T, features @ features.T, atol=1e-3, rtol=0)


def test_sincos_leaves_zero_what_does_not_divide():
    features = sincos(cells((3, 3, 3)), 64)  # 10 frequencies x 2 x 3 axes
    assert features[:, 60:].abs().max() == 0 and features[:, :60].abs().sum(0).min() > 0


@pytest.mark.parametrize("shortest, base", [(2.0, 16.0), (2.0, 128.0), (5.0, 4.0)])
def test_sincos_waves_are_from_the_shortest_to_base_times_it(shortest, base):
    (sine, *_, slowest), width = sincos(torch.tensor([[shortest / 4]]), 64, base, shortest)[0, :32], 64
    assert sine == pytest.approx(1)  # a quarter of the shortest wave
    assert slowest == pytest.approx(math.sin(math.pi / 2 * base ** -(1 - 2 / width)))


@pytest.mark.parametrize("base_size", [6, 16])
def test_sincos_is_dits_embedding_once_the_column_comes_first(base_size):
    ours = sincos(cells((6, 6)).flip(-1) * (base_size / 6), 48)  # diffusers stretches every grid to a base size
    theirs = get_2d_sincos_pos_embed(48, 6, base_size=base_size, output_type="pt")
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "shape, patch_size, message",
    [
        ((30, 45), 8, "size 30x45 does not divide into patches of 8x8: resize or crop to 24x40"),
        ((4, 8), 8, "size 4x8 does not divide into patches of 8x8: resize or crop to 8x8"),
        ((0, 8), 8, "size 0x8 does not divide"),
        ((8, 8), 0, "patch_size 0 does not fit 2 axes"),
        ((8, 8), (2, 2, 2), "patch_size (2, 2, 2) does not fit 2 axes"),
    ],
)
def test_bad_sizes_are_one_clear_line(shape, patch_size, message):
    with pytest.raises(ValueError) as error:
        grid(shape, patch_size)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_patchify_refuses_what_does_not_divide_and_other_ranks():
    with pytest.raises(ValueError, match="size 10x8 does not divide into patches of 4x4"):
        patchify(torch.zeros(3, 10, 8), 4)
    with pytest.raises(ValueError, match="4 axes besides channels"):
        patchify(torch.zeros(1, 3, 4, 4, 4), 2)


def test_unpatchify_names_the_shape_it_needs():
    with pytest.raises(ValueError, match="pass 6x48"):
        unpatchify(torch.zeros(5, 48), (2, 3), 4, channels=3)


def test_sincos_needs_room_for_every_axis():
    with pytest.raises(ValueError, match="use at least 6"):
        sincos(cells((2, 2, 2)), 4)
