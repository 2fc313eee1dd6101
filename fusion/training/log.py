"""Logs of a run: rows of metrics.jsonl, a progress bar with throughput and time left, and skipped samples."""

import re
import resource
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from fusion.common.atomic import save
from fusion.training.metrics import Means, Metrics
from fusion.training.probe_and_trackers import Tracked


@dataclass(frozen=True)
class Counts:
    """What the batches of one step hold together, over all ranks: what losses are divided by, and what the log
    tells."""

    text: int
    images: int
    documents: int
    tokens: int
    padding: int
    skipped: int


@dataclass(frozen=True)
class Sums:
    """What one step measured, summed over its batches and all ranks; `control` is the part of `text` on control
    tokens."""

    total: float
    text: float
    control: float
    flow: float
    control_count: float


@dataclass(frozen=True)
class Moment:
    """Where a run stands. seconds: of training. progress: the share of the run that is done. lr: the learning rate of
    the step."""

    step: int
    seen: int
    skipped: int
    seconds: float
    progress: float
    lr: float


class LeftOut:
    """skipped.txt: every sample that was left out, once, however many epochs, workers and ranks met it.

    Lines after the first `count` are cut off first, so that a resumed run does not tell the same samples twice.
    """

    def __init__(self, path: Path, count: int = 0):
        self.path = path
        told = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines = told[:count]
        if told and not lines:
            path.unlink()
        elif len(told) > count:
            save("".join(line + "\n" for line in lines).encode(), path)
        # A line is "key: reason", and a key may hold ": " too: each of its beginnings may be the key.
        self.known = {line[: colon.start()] for line in lines for colon in re.finditer(": ", line)}
        self.count = len(lines)

    def add(self, skipped: Iterable[tuple[str, str]]) -> int:
        """List those (key, reason) that are new; returns how many there are now in all."""
        new = {key: reason for key, reason in skipped if key not in self.known}
        self.known.update(new)
        self._append([f"{key}: {reason}" for key, reason in new.items()])
        return self.count

    def _append(self, lines: list[str]) -> None:
        self.count += len(lines)
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)


class Log:
    """The log of a run folder; only the main rank writes. skipped: how many samples had been left out by `step`."""

    def __init__(self, run: Path, step: int, main: bool, skipped: int = 0):
        self.metrics = Metrics(run / "metrics.jsonl", step) if main else None
        self.left_out = LeftOut(run / "skipped.txt", skipped) if main else None
        self.bar = tqdm(total=100, disable=not main, bar_format="{percentage:3.0f}% |{bar:24}| {desc}", mininterval=1.0)
        self.means = Means()
        self.tracked: Tracked | None = None
        self.since, self.documents, self.tokens, self.images = time.monotonic(), 0, 0, 0
        self.work: float | None = None  # operations per token, padding not counted, once they are known
        self.peak: float | None = None  # operations per second that all devices promise

    def add(self, sums: Sums, counts: Counts, norm: float) -> None:
        """Take in a step."""
        self.means.add(
            **{
                "loss/total": (sums.total, 1),
                "loss/text": (sums.text, counts.text),
                "loss/control": (sums.control, sums.control_count),
                "loss/flow": (sums.flow, counts.images),
                "grad_norm": (norm, 1),
                "padding": (counts.padding, counts.tokens),
            }
        )
        self.documents, self.tokens = self.documents + counts.documents, self.tokens + counts.tokens - counts.padding
        self.images += counts.images

    def skipped(self, skipped: Iterable[tuple[str, str]]) -> int:
        """List samples that were left out, as (key, reason) of all ranks, in skipped.txt; returns how many there are by
        now."""
        return self.left_out.add(skipped) if self.left_out else 0

    def write(self, moment: Moment) -> None:
        """The means since the last call as a row and in the bar."""
        elapsed = max(time.monotonic() - self.since, 1e-9)
        documents, tokens, images, means = (
            self.documents / elapsed,
            self.tokens / elapsed,
            self.images / elapsed,
            self.means.take(),
        )
        self.since, self.documents, self.tokens, self.images = time.monotonic(), 0, 0, 0
        rates = {
            "per_second/documents": documents,
            "per_second/tokens": tokens,
            "per_second/images": images,
        } | self._work_done(tokens)
        self.row(moment, means | {"skipped": moment.skipped, "lr": moment.lr, "memory_gib": peak_gib()} | rates)
        left = moment.seconds * (1 - moment.progress) / max(moment.progress, 1e-9)
        self.bar.n = round(100 * moment.progress, 1)
        self.bar.set_description_str(
            f"step {moment.step:,}  {moment.seen:,} documents  loss {means['loss/total']:.4f}  "
            f"{documents:,.0f} documents/s  {tokens:,.0f} tokens/s  {_clock(left)} left"
        )

    def _work_done(self, tokens: float) -> dict[str, float]:
        """Of so many tokens per second: trillions of operations, and the share of what the devices promise (model-FLOPs
        utilisation, PaLM's appendix B, arXiv 2204.02311)."""
        if not self.work:
            return {}
        done = tokens * self.work
        return {"per_second/teraflop": done / 1e12} | (
            {"per_second/share_of_peak": done / self.peak} if self.peak else {}
        )

    def row(self, moment: Moment, values: dict[str, float]) -> None:
        """Any values as a row."""
        if self.metrics:
            self.metrics.log(moment.step, moment.seen, moment.seconds, **values)
        if self.tracked:
            self.tracked.row(moment.step, values)

    def drawn(self, step: int, folder: Path) -> None:
        """Sheets of samples that lie in a folder."""
        if self.tracked:
            self.tracked.images(step, folder)

    def rested(self, seconds: float) -> None:
        """Take time that was not spent on steps out of the throughput."""
        self.since += seconds

    def close(self) -> None:
        """End the bar's line, and what the trackers have not written yet."""
        self.bar.close()
        if self.tracked:
            self.tracked.close()


def peak_gib() -> float:
    """The most memory that this process has had so far: of the GPU, or else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(min(seconds, 359_999)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
