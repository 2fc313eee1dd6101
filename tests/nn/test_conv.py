"""conv.py: what looks at whole images sees one at a time, where its pixels are, and changes nothing at the start."""

from dataclasses import replace

import pytest
import torch

from fusion.nn.conv import Cells, ConvEmbed, ConvHead, grids, places, rounded
from fusion.nn.layers import PatchEmbed, Seen
from fusion.sequence.patches import cells, unpatchify
from tests.nn.test_layers import seen, wake

GRIDS = torch.tensor([[1, 2], [2, 2], [1, 2], [3, 1], [1, 1]])
COUNTS = GRIDS.prod(-1).tolist()
CELL = torch.cat([cells(grid) for grid in GRIDS.tolist()])
IMAGE_INDEX = torch.arange(len(GRIDS)).repeat_interleave(GRIDS.prod(-1))


def test_grids_are_read_off_the_cells_and_cells_off_the_grids():
    image_index, grid = grids(CELL)
    assert torch.equal(image_index, IMAGE_INDEX) and torch.equal(grid, GRIDS)
    for found, known in zip(places(GRIDS, len(CELL)), (CELL, IMAGE_INDEX), strict=True):
        assert torch.equal(found, known)
    image_index, grid = grids(CELL[:0])
    assert image_index.shape == (0,) and grid.shape == (0, 2)


def test_images_are_arranged_by_size():
    found = {part.size: (part.cells, part.patches.tolist()) for part in Cells(3, 8).arranged(CELL, IMAGE_INDEX, GRIDS)}
    assert found == {
        (1, 2): ((4, 8), [0, 1, 6, 7]),
        (2, 2): ((8, 8), [2, 3, 4, 5]),
        (3, 1): ((12, 4), [8, 9, 10]),
        (1, 1): ((4, 4), [11]),
    }


def test_the_convolutional_embedding_starts_as_the_linear_one_and_then_looks_around():
    embed, patches, time = ConvEmbed(3, 8, 16, 8, inner=8), torch.randn(12, 192), torch.randn(5, 8)
    rows = embed(patches, CELL, time, IMAGE_INDEX)
    assert torch.equal(rows, PatchEmbed.forward(embed, patches))
    rows.square().sum().backward()
    assert embed.out.weight.grad.abs().max() > 0
    wake(embed)
    before = embed(patches, CELL, time, IMAGE_INDEX)
    changed = patches.clone()
    changed[0, -1] += 1  # the right lower corner of the left patch of the first image
    moved = (embed(changed, CELL, time, IMAGE_INDEX) - before).abs().amax(-1) > 0
    assert moved.tolist() == [True, True] + 10 * [False]


def test_the_convolutional_embedding_sees_one_image_at_a_time_and_its_time():
    embed, patches, time = wake(ConvEmbed(3, 8, 16, 8, inner=8)), torch.randn(12, 192), 10 * torch.randn(5, 8)
    together = embed(patches, CELL, time, IMAGE_INDEX).split(COUNTS)
    for index, (own, cell, out) in enumerate(zip(patches.split(COUNTS), CELL.split(COUNTS), together, strict=True)):
        torch.testing.assert_close(out, embed(own, cell, time, torch.full((len(own),), index)))
    later = embed(patches, CELL, time + torch.tensor([0, 0, 0, 5.0, 0])[:, None], IMAGE_INDEX)
    changed = (later - torch.cat(together)).abs().amax(-1) > 0
    assert changed.tolist() == (IMAGE_INDEX == 3).tolist()
    assert embed(patches[:0], CELL[:0], time, IMAGE_INDEX[:0]).shape == (0, 16)


def test_an_embedding_that_is_not_told_the_time_does_not_ask_for_it():
    embed = wake(ConvEmbed(3, 8, 16, None, inner=8))
    assert embed(torch.randn(12, 192), CELL).shape == (12, 16)
    assert not any("told" in name for name, _ in embed.named_parameters())


def test_a_bf16_embedding_gives_bf16_rows_from_fp32_convolutions():
    embed = wake(ConvEmbed(3, 8, 16, 8, inner=8)).bfloat16()
    patches, time = torch.randn(12, 192), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rows = embed(patches, CELL, time, IMAGE_INDEX)
    assert rows.dtype == torch.bfloat16
    wide = embed.float()
    torch.testing.assert_close(rows.float(), wide(patches, CELL, time, IMAGE_INDEX), atol=0.02, rtol=0.02)


def test_the_convolutional_head_starts_at_zero_and_then_looks_at_the_noised_patches():
    head, h, patches, time = ConvHead(16, 3, 8, 8, inner=8), torch.randn(5, 16), torch.randn(5, 192), torch.randn(1, 8)
    out = head(h, seen(patches), time)
    assert out.shape == (5, 192) and out.abs().max() == 0
    (out - 1).square().sum().backward()
    assert head.out.weight.grad.abs().max() > 0 and head.drawn.weight.grad.abs().max() > 0
    wake(head)
    assert not torch.allclose(head(h, seen(patches), time), head(h, seen(patches + 1), time))


def test_a_resting_convolutional_head_is_the_linear_one_and_nothing_else_learns():
    head, h, patches, time = ConvHead(16, 3, 8, 8, inner=8), torch.randn(5, 16), torch.randn(5, 192), torch.randn(1, 8)
    torch.nn.init.normal_(head.out.weight)
    linear = head(h, seen(patches), time)
    wake(head)
    assert not torch.allclose(head(h, seen(patches), time), linear)
    head.resting = True
    out = head(h, seen(patches), time)
    torch.testing.assert_close(out, head.out(head.conditioned(h, time, None)))
    out.square().sum().backward()
    assert head.out.weight.grad is not None and head.drawn.weight.grad is None and head.told.weight.grad is None


def test_the_convolutional_head_sees_one_image_at_a_time_whatever_stands_beside_it():
    """Images of three sizes, in any order: each comes out as it does alone, and a patch changes with its neighbours'
    pixels."""
    head = wake(ConvHead(16, 3, 8, 8, inner=8))
    grid = torch.tensor([[1, 2], [2, 2], [1, 2], [3, 1]])
    counts = grid.prod(-1)
    h, patches, time = torch.randn(11, 16), torch.randn(11, 192), torch.randn(4, 8)
    image = torch.arange(4).repeat_interleave(counts)
    together = head(h, seen(patches, grid), time, image).split(counts.tolist())
    for index, (rows, own, out) in enumerate(
        zip(h.split(counts.tolist()), patches.split(counts.tolist()), together, strict=True)
    ):
        torch.testing.assert_close(out, head(rows, seen(own, grid[index : index + 1]), time[index : index + 1]))
    changed = patches.clone()
    changed[0, -1] += 1  # the right lower corner of the left patch of the first image
    after = head(h, seen(changed, grid), time, image)
    moved = (after - torch.cat(together)).abs().amax(-1) > 0
    assert moved.tolist() == [True, True] + 9 * [False]


def test_one_strip_of_all_images_gives_what_images_of_one_size_do(monkeypatch):
    """As on a GPU: what comes out and what is learned stays."""
    embed, head = wake(ConvEmbed(3, 8, 16, 8, inner=8)), wake(ConvHead(16, 3, 8, 8, inner=8))
    h, patches, time = torch.randn(12, 16), torch.randn(12, 192), torch.randn(5, 8)
    found = []
    for arranged in (Cells.arranged, lambda *where: [Cells.strip(*where)]):
        monkeypatch.setattr(Cells, "arranged", arranged)
        outs = embed(patches, CELL, time, IMAGE_INDEX), head(h, seen(patches, GRIDS), time, IMAGE_INDEX)
        parameters = [p for part in (embed, head) for p in part.parameters()]
        found.append(
            [*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), parameters, allow_unused=True)]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_heights_of_strips_are_rounded_up_so_that_few_remain():
    heights = {height: rounded(height) for height in range(1, 20_000)}
    assert (
        all(height <= more <= 1.125 * height for height, more in heights.items()) and len(set(heights.values())) < 100
    )


@pytest.mark.parametrize("part", ["noised", "reference"])
def test_the_cells_of_the_convolutional_head_lie_where_the_pixels_do(part):
    """With convolutions that copy one place and nothing else at work, the head gives back the image it looked at, or
    moves it."""
    head = ConvHead(16, 3, 8, None, reference=True, inner=12, blocks=0)
    for weight in head.parameters():
        torch.nn.init.zeros_(weight)
    head.norm_drawn = torch.nn.Identity()
    head.drawn.weight.data[:, :, 1, 1] = torch.eye(12)
    channels = slice(0, 12) if part == "noised" else slice(12, 24)
    head.seen.weight.data[:, channels, 1, 1] = torch.eye(12)
    patches, grid = torch.randn(6, 192), torch.tensor([[2, 3]])
    looked_at = replace(Seen(torch.randn(6, 192), grid, torch.randn(6, 192)), **{part: patches})
    torch.testing.assert_close(head(torch.randn(6, 16), looked_at), patches)
    head.seen.weight.data = head.seen.weight.data.roll(-1, dims=3)  # what stands one cell to the left
    moved = torch.nn.functional.pad(unpatchify(patches, (2, 3), 8, 3), (2, 0))[..., :-2]
    torch.testing.assert_close(unpatchify(head(torch.randn(6, 16), looked_at), (2, 3), 8, 3), moved)


@pytest.mark.parametrize("patch_size, cells", [(1, 1), (2, 2), (3, 1), (6, 2), (16, 4)])
def test_any_patch_divides_into_cells(patch_size, cells):
    head = wake(ConvHead(16, 3, patch_size, None, inner=8))
    assert head.cells.count == cells
    assert head(torch.randn(5, 16), seen(torch.randn(5, 3 * patch_size**2))).shape == (5, 3 * patch_size**2)
