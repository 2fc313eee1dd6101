"""Draw an image behind a cached prefix: solver steps over the patch block alone, guidance branches as a batch."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.flow.matching import PATHS, estimate
from fusion.flow.solvers import SOLVERS, schedule, steps
from fusion.generation.prefix import Prefix, arranged
from fusion.generation.sampling import Sampling
from fusion.nn.kv_cache import PrefixCache
from fusion.nn.layers import Seen
from fusion.sequence.rows import Rows, padding
from fusion.unified.model import FusionModel


@dataclass(frozen=True)
class Canvas:
    """Where one picture is drawn: its prefixes by branch name and its row in each, its grid, and the noise it starts
    from."""

    prefixes: dict[str, tuple[Prefix, int]]
    grid: tuple[int, int]
    noise: Float[Tensor, "n p"]


@dataclass(frozen=True)
class Drawn:
    """What a solver step left: x_hat of each canvas, (n, p)."""

    step: int
    steps: int
    x_hat: list[Float[Tensor, "_ p"]]


def draw(model: FusionModel, canvases: list[Canvas], settings: Sampling) -> Iterator[Drawn]:
    """Integrate the flow of several pictures at once; yields after every step, the last time with the finished
    pictures."""
    block = _Block(model, canvases, settings)
    times = schedule(settings.steps, settings.shift)
    noise = torch.nn.utils.rnn.pad_sequence([canvas.noise for canvas in canvases], batch_first=True)
    counts = [len(canvas.noise) for canvas in canvases]
    walk = steps(SOLVERS[settings.solver], block.velocity, noise.to(model.device), times, PATHS[model.config.path])
    for state in walk:
        yield Drawn(state.index + 1, settings.steps, [x[:count] for x, count in zip(state.x_hat, counts, strict=True)])


class _Block:
    """The patch rows of all canvases behind their prefixes, branch by branch: what one evaluation of the velocity
    runs."""

    def __init__(self, model: FusionModel, canvases: list[Canvas], settings: Sampling):
        self.model, self.guidance, self.pictures = model, settings.flow_guidance, len(canvases)
        names = list(canvases[0].prefixes)
        branches = [canvas.prefixes[name] for name in names for canvas in canvases]
        groups = _grouped(branches)
        self.cache = PrefixCache.stack([prefix.cache for prefix, _ in groups], [rows for _, rows in groups])
        length = self.cache.get_seq_length()
        seen = Rows.cat([_padded(prefix.rows, rows, length) for prefix, rows in groups], dim=-2)
        writers = [prefix.writers[row] for prefix, row in branches]
        grids = [canvas.grid for _ in names for canvas in canvases]
        tables = [writer.noised_block(grid) for writer, grid in zip(writers, grids, strict=True)]
        self.block = arranged(tables, length, model.device)
        self.mask = model.backbone.mask(self.block, Rows.cat([seen, self.block]))
        self.cell = self.block.position[1:].sub(self.block.position[0]).permute(1, 2, 0)
        self.grid = torch.tensor(grids, device=model.device)
        self.reference = self._references(branches, grids) if model.looks_back else None
        self.cache.freeze(self.block.ids.shape[1])

    def _references(self, branches: list[tuple[Prefix, int]], grids: list[tuple[int, int]]) -> Float[Tensor, "k n p"]:
        """What each picture may be an edit of, branch by branch; zeros where there is nothing."""
        references = torch.zeros(*self.block.ids.shape, self.model.config.patch_width, device=self.model.device)
        for place, ((prefix, row), grid) in enumerate(zip(branches, grids, strict=True)):
            if (reference := prefix.reference(row, grid)) is not None:
                references[place, : len(reference)] = reference
        return references

    def velocity(self, x: Float[Tensor, "b n p"], t: Tensor) -> Float[Tensor, "b n p"]:
        """The guided velocity of every picture at time t."""
        branches = self.guidance.branches(t)
        predictions = self._predict(x.repeat(len(branches), 1, 1), t).chunk(len(branches))
        config = self.model.config
        return estimate(
            self.guidance.combine(predictions), x, t.to(x.device), config.target, PATHS[config.path]
        ).velocity

    def _predict(self, x: Float[Tensor, "k n p"], t: Tensor) -> Float[Tensor, "k n p"]:
        model, count = self.model, len(x)
        time = model.embed_time(t.to(x.device)[None])
        picture = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
        reference = None if self.reference is None else self.reference[:count].flatten(0, 1)
        embeds = model.embed_patches(
            x.flatten(0, 1), time, picture.flatten(), self.cell[:count].flatten(0, 1), reference
        ).view(*x.shape[:2], -1)
        hidden = model.backbone(
            embeds.to(model.dtype),
            self.block.position[:, :count],
            _first(self.mask, count),
            model.modulate_rows(time, picture),
            self.cache.head(count),
            picture,
        )
        return self._head(hidden, x, time)

    def _head(self, hidden: Float[Tensor, "k n d"], x: Float[Tensor, "k n p"], time) -> Float[Tensor, "k n p"]:
        """Prediction of the patches that there are; zero for the padding behind smaller pictures."""
        grid = self.grid[: len(x)]
        there = torch.arange(x.shape[1], device=x.device) < grid.prod(-1, keepdim=True)
        image = torch.zeros(int(there.sum()), dtype=torch.long, device=x.device)
        prediction = x.new_zeros(x.shape)
        seen = Seen(x[there], grid, None if self.reference is None else self.reference[: len(x)][there])
        prediction[there] = self.model.flow_head(hidden[there][:, : self.model.image_width], seen, time, image)
        return prediction


def _grouped(branches: list[tuple[Prefix, int]]) -> list[tuple[Prefix, list[int]]]:
    """Runs of rows of the same prefix."""
    groups: list[tuple[Prefix, list[int]]] = []
    for prefix, row in branches:
        if groups and groups[-1][0] is prefix:
            groups[-1][1].append(row)
        else:
            groups.append((prefix, [row]))
    return groups


def _padded(rows: Rows, chosen: list[int], length: int) -> Rows:
    """Choose rows of a prefix's batch, padded as PrefixCache.stack pads."""
    which = torch.tensor(chosen, device=rows.ids.device)
    kept = rows.map(lambda column: column.index_select(-2, which))
    pad = torch.from_numpy(padding(len(chosen), length - len(kept), start=len(kept)))
    return Rows.cat([kept, Rows.of(pad.to(kept.ids.device))])


def _first(mask, count: int):
    """The mask of the first rows of the batch."""
    return {kind: part[:count] for kind, part in mask.items()} if isinstance(mask, dict) else mask[:count]
