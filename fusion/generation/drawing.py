"""Draw an image behind a cached prefix: solver steps over the patch block alone, guidance branches as a batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fusion.flow.matching import PATHS, estimate
from fusion.flow.solvers import SOLVERS, schedule, steps
from fusion.generation.prefix import Prefix, arranged
from fusion.generation.sampling import Sampling
from fusion.nn.kv_cache import PrefixCache
from fusion.sequence.rows import Rows, padding
from fusion.unified.model import FusionModel
from fusion.unified.step import Images
from fusion.unified.stream_backbone import StreamMask


@dataclass(frozen=True)
class Canvas:
    """Where one image is drawn: its prefixes by branch name and its row in each, its grid, and the noise it starts
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
    """Integrate the flow of several images at once; yields after every step, the last time with the finished
    images."""
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
        self.model, self.guidance, self.images = model, settings.flow_guidance, len(canvases)
        names = list(canvases[0].prefixes)
        branches = [canvas.prefixes[name] for name in names for canvas in canvases]
        groups = _grouped(branches)
        self.cache = PrefixCache.stack([prefix.cache for prefix, _ in groups], [rows for _, rows in groups])
        length = self.cache.get_seq_length()
        seen = Rows.cat([_padded(prefix.rows, rows, length) for prefix, rows in groups], dim=-2)
        writers = [prefix.writers[row] for prefix, row in branches]
        grids = [canvas.grid for _ in names for canvas in canvases]
        tables = [writer.noised_block(grid) for writer, grid in zip(writers, grids, strict=True)]
        block = arranged(tables, length, model.device)
        self.mask = model.backbone.mask(block, Rows.cat([seen, block]))
        # The padding behind smaller images goes in as patches too, so that nothing but patches goes in.
        self.block = replace(block, image_index=torch.zeros_like(block.image_index))
        self.grid = torch.tensor(grids, device=model.device)
        self.references = self._references(branches, grids) if model.looks_back else None
        self.cache.freeze(len(block))
        self.rows: dict[int, Rows] = {}

    def _references(self, branches: list[tuple[Prefix, int]], grids: list[tuple[int, int]]) -> list[Tensor]:
        """What each image may be an edit of, (n, p), branch by branch; zeros where there is nothing."""
        nothing = torch.zeros(len(self.block), self.model.config.patch_width, device=self.model.device)
        found = [prefix.reference(row, grid) for (prefix, row), grid in zip(branches, grids, strict=True)]
        return [
            nothing[: rows * columns] if reference is None else reference.to(nothing)
            for reference, (rows, columns) in zip(found, grids, strict=True)
        ]

    def velocity(self, x: Float[Tensor, "b n p"], t: Tensor) -> Float[Tensor, "b n p"]:
        """The guided velocity of every image at time t."""
        branches = self.guidance.branches(t)
        predictions = self._predict(x.repeat(len(branches), 1, 1), t).chunk(len(branches))
        config = self.model.config
        return estimate(
            self.guidance.combine(predictions), x, t.to(x.device), config.target, PATHS[config.path]
        ).velocity

    def _predict(self, x: Float[Tensor, "k n p"], t: Tensor) -> Float[Tensor, "k n p"]:
        """Prediction of the patches that there are; zero for the padding behind smaller images."""
        count = len(x)
        if count not in self.rows:
            self.rows[count] = self.block.map(lambda column: column[..., :count, :])
        rows = self.rows[count]
        reference = None if self.references is None else torch.cat(self.references[:count])
        images = Images(x.flatten(0, 1), t.to(x.device)[None], self.grid[:count], reference)
        done = self.model.step(rows, _first(self.mask, count), images, self.cache.head(count))
        prediction = x.new_zeros(x.shape)
        prediction[rows.noised] = done.prediction
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
    """Take the mask of the first rows of the batch, in whatever form a decoder has made it."""
    if isinstance(mask, StreamMask):
        return StreamMask(_first(mask.text, count), _first(mask.images, count))
    return {kind: part[:count] for kind, part in mask.items()} if isinstance(mask, dict) else mask[:count]
