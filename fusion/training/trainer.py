"""The training loop: batches in, a trained model and a run folder out; stops and goes on anywhere, bit for bit."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, gather_object
from torch import Tensor, nn

from fusion.data.loader import Loader
from fusion.generation.cost import counting
from fusion.training import checkpoint
from fusion.training import sharding as shards
from fusion.training.devices import this_device
from fusion.training.ema import EMA
from fusion.training.interrupt import Interrupts
from fusion.training.learner import Learner, compiles
from fusion.training.log import Counts, Log, Moment, Sums
from fusion.training.optim import Optim, Optimizers, rate
from fusion.training.precision import autocast, bf16_is_faster
from fusion.training.probe_and_trackers import Tracked, trackers
from fusion.training.validation import validate
from fusion.unified.objective import FlowObjective

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "trainer.json"


class NotFinite(ArithmeticError):
    """A loss or gradient that is not a number; one line that names the step and the documents. The weights are those
    before it."""


@dataclass
class Training:
    """Settings of a run.

    documents, minutes: the run ends at whichever comes first, and the learning rate has then reached its end.
    accumulate: batches per step. ema: decay of the averaged weights, which are the ones that are saved. precision: auto
    takes bf16 where it is faster. sharded: the ranks share out weights, averages and optimizer states
    (fusion.training.sharding) instead of each having all of them; so they do too when accelerate is told to launch
    FSDP. recompute: keep little of each layer for the backward pass, for a third more operations. compile: compile the
    layers of the decoder, where torch can. conv_from: documents before which a convolutional head rests: while it
    learns to draw, the decoder does not learn what to (docs/log.md). workers: processes that make batches. The `_every`
    are in steps, 0 for never; save_minutes: a checkpoint after so many too; keep: checkpoints kept. trackers: of
    tensorboard, wandb and trackio, which show what metrics.jsonl has and the samples, in the run's folder `tracked` or
    where they keep things; null for TensorBoard where it is installed. Whoever makes a file `save` or `stop` in the
    run's folder has a checkpoint written, or the run stopped as by a signal, after the next step.
    """

    documents: int | None = 100_000
    minutes: float | None = None
    accumulate: int = 1
    ema: float = 0.999
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    sharded: bool = False
    recompute: bool = False
    compile: bool = False
    conv_from: int = 0
    workers: int = 1
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    sample_every: int = 1000
    save_every: int = 1000
    save_minutes: float = 0.0
    keep: int = 2
    trackers: list[str] | None = None
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self):
        if not (self.documents or self.minutes):
            raise ValueError("a run needs an end: set documents or minutes")
        if self.accumulate < 1 or self.keep < 1 or self.log_every < 1:
            raise ValueError(
                f"accumulate={self.accumulate}, keep={self.keep}, log_every={self.log_every}: each is at least 1"
            )
        if self.sharded and self.optim.optimizer == "adamw8bit":
            raise ValueError(
                "sharded: the states of optim.optimizer='adamw8bit' cannot be shared out; choose adamw, whose shares "
                "are small too"
            )


@dataclass(frozen=True)
class Summary:
    """How a run ended. interrupted: by which signal, None if it reached its end."""

    steps: int
    seen: int
    seconds: float
    interrupted: str | None


class Trainer:
    """Trains a Learner on a Loader's batches and writes the run folder `run`.

    held_out: batches for validation by name (as fusion.data.packing.fixed_batches makes them). sample: called as
    sample(folder) with the averaged weights in place. resume: go on from the newest complete checkpoint in `run`;
    without one, begin. follow: what else is taken of the model at each validation, by name.
    """

    def __init__(
        self,
        learner: Learner,
        loader: Loader,
        objective: FlowObjective,
        settings: Training,
        run: str | Path,
        held_out: Mapping[str, Sequence[Any]] | None = None,
        sample: Callable[[Path], None] | None = None,
        resume: bool = False,
        follow: Callable[[nn.Module], dict[str, float]] | None = None,
    ):
        self.learner, self.loader, self.objective, self.settings, self.run = (
            learner,
            loader,
            objective,
            settings,
            Path(run),
        )
        self.held_out, self.sample, self.follow = held_out or {}, sample, follow
        places = ProjectConfiguration(project_dir=str(run), logging_dir=str(Path(run) / "tracked"))
        self.accelerator = Accelerator(log_with=trackers(settings.trackers) or None, project_config=places)
        if loader.batches.world != self.accelerator.num_processes:
            raise ValueError(
                f"the batches are dealt to {loader.batches.world} ranks but {self.accelerator.num_processes} run: make "
                "Batches with rank and world"
            )
        if settings.conv_from:
            learner.rest(True)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        loader.pinned = self.device.type == "cuda"
        self.sharded = settings.sharded or self.accelerator.distributed_type is DistributedType.FSDP
        if self.sharded:
            learner.to(torch.device("cpu"))
            shards.share_out(learner, self.device, self.accelerator.num_processes, self.main)
        learner.to(self.device)
        self.model = learner.model.train()
        self.optimizers = Optimizers(self.model, settings.optim)
        self.ema = EMA(self.model, settings.ema)
        self.parameters = self.ema.live
        self.step = self.seen = 0
        self.skipped = 0  # bad samples met so far, each once
        self.progress = self.factor = 0.0  # the share of the run that is done, and of the peak learning rate
        self.saved, self.saved_at, self.due = (
            -1,
            0.0,
            False,
        )  # step and seconds of the last checkpoint; whether one is wanted now
        self.before = 0.0  # seconds of training before this process began
        # Measured once and kept in the checkpoint: on a busy machine a second measurement could come out otherwise.
        self.precision = settings.precision
        if self.precision == "auto":
            self.precision = "bf16" if self.device.type != "cpu" or bf16_is_faster() else "fp32"
        if resume and (newest := checkpoint.newest(self.run / "checkpoints")):
            self._load(newest)
        self.autocast = autocast(self.precision, self.device)

    # ---- the loop ----

    def fit(self) -> Summary:
        """Train to the end, or until SIGINT or SIGTERM; either way a checkpoint is there afterwards.

        At the end the model holds the averaged weights. Raises NotFinite.
        """
        # One bar is enough: saving a model would draw another over it.
        transformers.utils.logging.disable_progress_bar()
        self._start = time.monotonic()
        self.log = Log(self.run, self.step, self.main, self.skipped)
        if self.main and self.accelerator.log_with:
            self.log.tracked = Tracked(self.accelerator, self.run, self.step)
        asked = None
        recomputed = self.learner.recomputed() if self.settings.recompute else nullcontext()
        compiled = self.learner.compiled() if self.settings.compile and self._compiles() else nullcontext()
        with Interrupts() as interrupts, closing(self.log), recomputed, compiled:
            self._look_at_the_clock(interrupts)
            while self.progress < 1 and not asked:
                asked = self._one_step(interrupts)
                if not asked:
                    began = time.monotonic()
                    self._at_intervals()
                    self.log.rested(time.monotonic() - began)
            self._save()
        if not asked:
            self._end()
        self.loader.close()
        return Summary(self.step, self.seen, self.seconds, asked)

    def _compiles(self) -> bool:
        """Whether layers can be compiled here; where they cannot, that is told, and the run goes on without."""
        why = compiles(self.device)
        if why and self.main:
            self.log.bar.write(
                f"training.compile: torch.compile does not work here, and layers run as they are ({why})",
                file=sys.stderr,
            )
        return why is None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return self.before + time.monotonic() - self._start

    def _look_at_the_clock(self, interrupts: Interrupts) -> str | None:
        """Set `progress`: the share of the run that is done, of its documents or of its minutes, whichever is nearer to
        its end.

        Returns the signal that asks to stop; the ranks agree on both.
        """
        seconds, signals, saving = self._together(
            self.seconds if self.main else 0.0,
            float((self._wish("stop") or interrupts.asked) is not None),
            float(self._save_is_due()),
        )
        self.due = saving > 0
        documents, minutes = self.settings.documents, self.settings.minutes
        self.progress = min(
            1.0, max(self.seen / documents if documents else 0.0, seconds / (60 * minutes) if minutes else 0.0)
        )
        return (interrupts.asked or self._wish("stop") or "a signal to another rank") if signals else None

    def _wish(self, name: str) -> str | None:
        """Says so where somebody has put a file of this name into the run's folder."""
        return f"the file {self.run / name}" if self.main and (self.run / name).exists() else None

    def _save_is_due(self) -> bool:
        minutes = (self.seconds - self.saved_at) / 60
        return self.main and (self._wish("save") is not None or 0 < self.settings.save_minutes <= minutes)

    def _one_step(self, interrupts: Interrupts) -> str | None:
        """One update; returns the signal that asks to stop, if one came."""
        if self.settings.conv_from:
            self.learner.rest(self.seen < self.settings.conv_from)
        window = [next(self.loader) for _ in range(self.settings.accumulate)]
        counts = self._count(window)
        self.factor = rate(self.settings.optim, self.step, self.progress)
        if self.main and self.log.work is None and not (self.settings.compile or self.sharded):
            self._count_work(window[0])
        sums = [self._backward(batch, number, counts) for number, batch in enumerate(window)]
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.optim.clip, foreach=True)
        *rows, norm = torch.cat([*sums, shards.whole(norm).view(1)]).tolist()  # the one wait for the device in a step
        table = [Sums(*rows[start : start + 5]) for start in range(0, len(rows), 5)]
        total = Sums(*self._together(*(sum(values) for values in zip(*map(astuple, table), strict=True))))
        self._check(window, table, total, norm)
        self.optimizers.set_rate(self.factor)
        with self.autocast:  # Muon's products, too
            self.optimizers.step()
        self.optimizers.zero_grad()
        self.step, self.seen = self.step + 1, self.seen + counts.documents
        self.ema.update(self.step)
        asked = self._look_at_the_clock(interrupts)
        self.log.add(total, counts, norm)
        if counts.skipped:  # by whichever rank
            self.skipped = self.log.skipped(gather_object([pair for batch in window for pair in batch.skipped]))
        if self.step % self.settings.log_every == 0 or self.step == 1:
            self.log.write(self._moment())
        return asked

    def _count_work(self, batch: Any) -> None:
        """Count the operations of the first batch, those of a second forward pass included, for the log. In a pass of
        its own: a counter takes composite operations apart, and they would round otherwise. Compiled code and what the
        ranks share out cannot be counted so."""
        counts = self.learner.counts(batch)
        with counting() as counter:
            with self.autocast:
                result = self.learner.losses(batch, self.objective, torch.Generator(self.device).manual_seed(0))
            result.total(counts.text, counts.images).backward()
        self.optimizers.zero_grad()
        self.log.work = counter.get_total_flops() / max(1, counts.tokens - counts.padding)
        device = this_device(self.device)
        self.log.peak = device and device.speed(self.precision) * self.accelerator.num_processes

    def _moment(self) -> Moment:
        return Moment(
            self.step, self.seen, self.skipped, self.seconds, self.progress, self.settings.optim.lr * self.factor
        )

    def _backward(self, batch: Any, number: int, counts: Counts) -> Tensor:
        """Gradients of one batch; returns the five numbers of Sums, on the device."""
        # Noise follows from the place of the batch in the run, not from a generator that a checkpoint would have to
        # carry.
        place = self.accelerator.process_index * self.settings.accumulate + number
        seed = hashlib.blake2b(f"{self.settings.seed}/{self.step}/{place}".encode(), digest_size=7).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(seed))
        with self.autocast:
            result = self.learner.losses(batch, self.objective, generator)
        total = result.total(counts.text, counts.images)
        total.backward()
        measured = (total, result.text, result.control, result.flow, result.control_count)
        return torch.stack(
            [torch.as_tensor(value, dtype=torch.float32, device=self.device).detach() for value in measured]
        )

    def _count(self, window: list) -> Counts:
        """Counts of the whole window on all ranks, known before the first backward pass so that every mean is exact."""
        counts = map(sum, zip(*(astuple(self.learner.counts(batch)) for batch in window), strict=True))
        return Counts(*map(int, self._together(*counts)))

    def _together(self, *values: float) -> list[float]:
        """Sums over all ranks."""
        if self.accelerator.num_processes == 1:
            return list(values)
        tensor = torch.tensor(
            values, dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device
        )
        return self.accelerator.reduce(tensor, "sum").tolist()

    def _sum_gradients(self) -> None:
        """Add up the ranks' gradients. Counts are global already, so the sum is the gradient of the mean; a rank
        without images (or without text) has no gradient for some weights, which is why this is not left to DDP."""
        if self.accelerator.num_processes == 1 or self.sharded:  # shards are added up on the way back
            return
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in self.parameters])
        flat = self.accelerator.reduce(flat, "sum")
        for p, gradient in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            p.grad.copy_(gradient.view_as(p))

    def _check(self, window: list, table: list[Sums], total: Sums, norm: float) -> None:
        """Raise NotFinite, on all ranks alike, and name the documents of the batches that did it where they are
        known."""
        if math.isfinite(total.total) and math.isfinite(norm):
            return
        guilty = [batch for batch, sums in zip(window, table, strict=True) if not math.isfinite(sums.total)]
        what = "the gradient" if math.isfinite(total.total) else "the loss" if guilty else "another rank's loss"
        keys = ", ".join(key for batch in guilty or window for key in batch.keys)
        advice = "nothing was updated; look at these documents, or lower the learning rate"
        raise NotFinite(f"step {self.step + 1}: {what} is not finite; {advice}: {keys}")

    def _at_intervals(self) -> None:
        settings, ended = self.settings, self.progress == 1
        validating = self.held_out and settings.validate_every and (self.step % settings.validate_every == 0 or ended)
        sampling = self.sample and settings.sample_every and (self.step % settings.sample_every == 0 or ended)
        if validating or sampling:
            with self._averaged():
                self._look(validating, sampling)
        if (self.due or (settings.save_every and self.step % settings.save_every == 0)) and not ended:
            self._save()
        self.accelerator.wait_for_everyone()

    def _look(self, validating: bool, sampling: bool) -> None:
        """What the main rank does while the others wait."""
        if validating and self.main:
            values = validate(self.learner, self.held_out, self.objective, self.settings.seed, self.autocast)
            self.log.row(self._moment(), values | (self.follow(self.learner.model) if self.follow else {}))
        if sampling and self.main:
            folder = self.run / "samples" / f"step_{self.step}"
            self.sample(folder)
            self.log.drawn(self.step, folder)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the main rank's model is ready to be looked at: averaged weights, eval mode, and eager, as shapes
        vary."""
        shown = (
            shards.averaged(self.learner, self.ema, self.device, self.main) if self.sharded else self.ema.swapped_in()
        )
        with shown, torch.compiler.set_stance("force_eager"):
            self.learner.model.eval()
            yield
            self.learner.model.train()

    def _end(self) -> None:
        """Leave the averaged weights in the model that users get."""
        if self.sharded:
            shards.load(self.learner.kept, shards.gathered(self.ema.state_dict(), self.main))
        else:
            self.ema.copy_to_model()
        self.learner.kept.eval()

    # ---- checkpoints ----

    def _save(self) -> None:
        if self.saved == self.step:
            return
        self.saved = self.step
        streams = gather_object([self.loader.state_dict()])
        weights, optimizer = (
            shards.gathered(self._weights(), self.main),
            shards.gathered(self.optimizers.state_dict(), self.main),
        )
        self.saved_at = self.seconds
        with self._averaged():
            if self.main:
                for wish in ("save", "stop"):
                    (self.run / wish).unlink(missing_ok=True)
                write = partial(self._write, weights=weights, optimizer=optimizer, streams=streams)
                checkpoint.save(self.run / "checkpoints", self.step, write, self.settings.keep)
        self.accelerator.wait_for_everyone()

    def _weights(self) -> dict[str, Tensor]:
        """The network's own and the averages."""
        own = zip(self.ema.names, self.parameters, strict=True)
        return {f"own/{name}": p.data for name, p in own} | {
            f"ema/{name}": average for name, average in self.ema.state_dict().items()
        }

    def _write(
        self, folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], streams: list[dict]
    ) -> None:
        self.learner.save_pretrained(folder / "model")
        checkpoint.write_tensors(folder / WEIGHTS, weights)
        checkpoint.write_tensors(folder / OPTIMIZER, optimizer)
        counts = {"step": self.step, "seen": self.seen, "skipped": self.skipped, "seconds": self.seconds}
        state = counts | {"precision": self.precision, "streams": streams}
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")

    @torch.no_grad()
    def _load(self, folder: Path) -> None:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = checkpoint.read_tensors(folder / WEIGHTS)
        for name, p in zip(self.ema.names, self.parameters, strict=True):
            p.copy_(shards.like(tensors[f"own/{name}"], p))
        self.ema.load_state_dict(
            {
                name: shards.like(tensors[f"ema/{name}"], p)
                for name, p in zip(self.ema.names, self.parameters, strict=True)
            }
        )
        self.optimizers.load_state_dict(checkpoint.read_tensors(folder / OPTIMIZER))
        self.step, self.seen, self.skipped = state["step"], state["seen"], state["skipped"]
        self.before, self.precision = state["seconds"], state["precision"]
        self.saved = self.step
        if len(state["streams"]) != self.accelerator.num_processes:
            raise ValueError(f"{folder} was saved by {len(state['streams'])} ranks: go on with as many")
        self.loader.load_state_dict(state["streams"][self.accelerator.process_index])
