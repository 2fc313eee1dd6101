"""Several sources mixed by weight into one endless stream."""

from collections.abc import Iterator, Sequence, Sized
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

from fusion.data.formats.sample import BadSample, Sample
from fusion.data.formats.split import fraction

# This many different bad samples and no good one mean that the source is wrong, not the samples.
PATIENCE = 1000


@runtime_checkable
class Source(Protocol):
    """A source of samples that a Mixture can draw from."""

    name: str

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Iterator[Sample]:
        """Return an endless iterator of this shard's samples that also has `state_dict` and `load_state_dict`.

        Its `next()` raises BadSample for a bad sample and can be called again.
        """


class Mixture:
    """An endless stream that draws each sample from a source chosen at random, in proportion to the weights.

    Deterministic in (seed, shard, shards); give every rank and worker a shard of its own. A bad sample is left out,
    counted in `skipped_count` and listed once in `skipped` as (key, reason); a source whose samples are all bad raises
    ValueError. weights: one per source, equal by default.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float] | None = None,
        seed: int | str = 0,
        shard: int = 0,
        shards: int = 1,
    ):
        weights = [1.0] * len(sources) if weights is None else list(weights)
        names = [source.name for source in sources]
        if not sources or len(weights) != len(sources):
            raise ValueError(
                f"a mixture of {len(sources)} sources with {len(weights)} weights: give one weight per source"
            )
        if not all(weight >= 0 for weight in weights) or not sum(weights):
            raise ValueError(f"weights={weights}: none may be negative, and not all zero")
        if len(set(names)) != len(names):
            raise ValueError(f"two sources of the mixture are called the same ({', '.join(names)}); give each a name")
        self.sources, self._seed, self._shard = list(sources), seed, shard
        total = sum(weights)
        self._bounds = [bound / total for bound in accumulate(weights)]
        self._streams = [source.stream(f"{seed}/{source.name}", shard, shards) for source in sources]
        self._step = 0
        self._working: set[int] = set()
        self._bad: list[dict[str, str]] = [{} for _ in sources]
        self.skipped_count = 0

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The bad samples met so far, as (key, reason)."""
        return [pair for bad in self._bad for pair in bad.items()]

    def __iter__(self) -> "Mixture":
        return self

    def __next__(self) -> Sample:
        choice = fraction("mixture", self._seed, self._shard, self._step)
        self._step += 1
        return self._draw(next(number for number, bound in enumerate(self._bounds) if choice < bound))

    def _draw(self, number: int) -> Sample:
        while True:
            try:
                sample = next(self._streams[number])
            except BadSample as bad:
                self.skipped_count += 1
                self._bad[number][bad.key] = bad.reason
                self._check_hope(number)
            else:
                self._working.add(number)
                return sample

    def _check_hope(self, number: int) -> None:
        source, bad = self.sources[number], self._bad[number]
        if number not in self._working and len(bad) >= (
            min(len(source), PATIENCE) if isinstance(source, Sized) else PATIENCE
        ):
            key, reason = next(iter(bad.items()))
            raise ValueError(f"{source.name}: all of its first {len(bad)} samples are bad, as {key}: {reason}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values; after `load_state_dict`, the next sample is the one that is next now."""
        return {
            "step": self._step,
            "streams": {s.name: stream.state_dict() for s, stream in zip(self.sources, self._streams, strict=True)},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of a mixture made in the same way; raises ValueError if its sources differ."""
        if set(state["streams"]) != {source.name for source in self.sources}:
            raise ValueError(
                f"the saved state is of a mixture of {', '.join(state['streams'])}; make the same one to go on"
            )
        self._step = state["step"]
        for source, stream in zip(self.sources, self._streams, strict=True):
            stream.load_state_dict(state["streams"][source.name])
