"""`fusion plan`: what a run of train.unified or train.diffusion would take, without GPU and without weights."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from fusion.common.config import keys, load_config
from fusion.common.files import image_path, save_image
from fusion.diffusion.text_encoders import KEPT
from fusion.planning.forecast import Forecast, forecast
from fusion.recipes.diffusion import Diffusion
from fusion.recipes.unified import Unified
from fusion.training.devices import GIB

GLIBC = 1.25
"""By how much more than it needs at once a process grows where glibc's malloc is as it comes: 1.18, 1.25 and 1.31 times
were measured."""
LABEL = 34  # characters of the first column
GIVES_BACK = "MALLOC_MMAP_THRESHOLD_=262144"
"""What has glibc map every tensor of some size on its own. Aligned blocks of one size do not fit the holes they leave
in its heap: bench.plan."""


def plan(
    config: str, words: list[str], gpus: int, device: str, mfu: float, price: float | None, out: str | None
) -> None:
    """Print the table; draw the first batch into `out`: a packed row and its mask, or pairs. ValueError in one line for
    what cannot be planned."""
    if not Path(config).is_file():
        raise ValueError(f"{config}: no such file; give the YAML file of a run of train.unified or train.diffusion")
    path = image_path(out, "plan.png") if out else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels, which what is imagined has none of
        told = forecast(load_config(kind_of(config, words), config, words), gpus, device, mfu, price)
    drawing = told.subject.drawing() if path else None
    print("\n".join(table(told)))
    if drawing:
        print(f"\n{save_image(drawing, path)}")


def kind_of(config: str, words: list[str]) -> type:
    """Whose config it is: one with a text-to-image model, in its file or in the files that it is based on, or in
    `words`, is train.diffusion's."""
    return Diffusion if "text_to_image" in keys(config, words) else Unified


def table(told: Forecast) -> Iterator[str]:
    """The lines of a forecast."""
    eager = ", imagined without compile, which keeps less" if told.config.training.compile else ""
    yield f"{told.subject.title}, {told.precision}{eager}"
    yield from _parameters(told)
    yield from _memory(told)
    yield from _tokens(told)
    yield from _time(told)


def _line(label: str, *values: str) -> str:
    return f"  {label:<{LABEL}}" + "".join(f"{value:>14}" for value in values)


def _parameters(told: Forecast) -> Iterator[str]:
    yield "\n" + _line("parameters", "all", "trained")
    for part, (count, trained) in told.parameters.items():
        yield _line(part, number(count), number(trained))
    count, trained = (sum(column) for column in zip(*told.parameters.values(), strict=True))
    yield _line("together", number(count), number(trained)) + f"  ({100 * trained / count:.3g}%)"


def _memory(told: Forecast) -> Iterator[str]:
    memory = told.memory
    sharing = "it holds its share" if told.config.training.sharded else "it holds everything, nothing is sharded"
    yield "\n  memory" + (f" of each device: {sharing}" if told.gpus > 1 else "")
    rows = {
        "weights, fp32": memory.weights,
        "autoencoder": memory.codec,
        "gradients": memory.gradients,
        f"optimizer ({told.config.training.optim.optimizer})": memory.optimizer,
        "averaged weights (EMA)": memory.average,
        "kept for the backward pass": memory.kept,
    }
    yield from (_line(name, memory_size(size)) for name, size in rows.items() if size or name != "autoencoder")
    limit = told.device.memory
    verdict = (
        ""
        if limit is None
        else f"; {told.device.name} has {limit / GIB:.0f}: {'fits' if memory.peak < 0.95 * limit else 'DOES NOT FIT'}"
    )
    yield _line("at most at once", memory_size(memory.peak)) + f"  {memory.when}{verdict}"
    if told.reading:
        yield f"  what encoders say of texts is kept, on top: at most {memory_size(KEPT)}"
    if limit is None:
        yield (
            _line("as glibc holds on to it, about", memory_size(GLIBC * memory.peak))
            + f"  less where {GIVES_BACK} is set"
        )


def _tokens(told: Forecast) -> Iterator[str]:
    shares, times = told.shares, told.batches
    yield f"\n  tokens of a step, {told.subject.source}"
    rows = {
        "text": shares.text,
        "patches of clean images": shares.clean,
        "patches of noised images": shares.noised,
        "padding": shares.padding,
    }
    yield from (
        _line(name, f"{times * count:,.0f}") + f"  {100 * count / shares.rows:.1f}%"
        for name, count in rows.items()
        if count
    )
    yield _line("together", f"{times * shares.rows:,.0f}") + f"  {times * shares.documents:,.0f} documents"


def _time(told: Forecast) -> Iterator[str]:
    yield (
        f"\n  time on {told.gpus} x {told.device.name}, at {100 * told.mfu:.0f}% (assumed) of {told.peak / 1e12:,.4g} "
        f"TFLOP/s in {told.precision}"
    )
    yield _line("operations of a step", f"{told.gpus * told.work / 1e12:,.4g}") + "  TFLOP, forward and backward"
    if told.reading:
        yield _line("reading texts, on top", f"{told.gpus * told.reading / 1e12:,.4g}") + "  TFLOP, where all are new"
    yield _line("step", duration(told.step_seconds))
    yield _line("steps", f"{told.steps:,}") + f"  {told.steps * told.batches * told.shares.documents:,.0f} documents"
    yield _line("all steps", duration(told.seconds))
    if told.cost is not None:
        yield _line("cost", f"${told.cost:,.2f}") + f"  at ${told.price:g} per device and hour"


def number(count: int) -> str:
    """1,234,567 -> 1.23 M"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def memory_size(size: float) -> str:
    """Bytes in GiB, or MiB below one."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """The two largest units."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    days, rest = divmod(minutes, 1440)
    return (
        f"{days} d {rest // 60} h"
        if days
        else f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
    )
