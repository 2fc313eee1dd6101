"""Datasets that `datasets.load_dataset` can stream: hub names, WebDataset shards, Parquet files with images."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from fusion.data.formats.row_parsers import DRAW, NATIVE, Chats, Edits, Fit, Form, ImageOpener, Pages, Texts, resolve
from fusion.data.formats.sample import BadSample, Sample
from fusion.data.formats.split import Split, fraction, image_names, split_of

FORMS = {"images": DRAW, "edits": Edits(), "pages": Pages(), "chats": Chats(), "text": Texts()}


class Hub:
    """A source that streams a dataset with `datasets.load_dataset`, read in order and shuffled within a buffer.

    path, subset, hub_split, data_files: as `load_dataset` takes them ("webdataset" and "parquet" are paths too). form:
    the row parser, a name in FORMS or an instance such as `Captions(describe=0.5)`. columns: standard name -> column
    ("file_name": "jpg"). buffer: size of the shuffle buffer in rows. A stream cannot group rows by shared files, so
    `split` goes by the column `subject` if there is one, else by the text of the row. Raises ValueError if the dataset
    cannot be opened, is empty, or lacks a column.
    """

    def __init__(
        self,
        path: str,
        form: str | Form,
        columns: dict[str, str] | None = None,
        split: Split | str = "all",
        fit: Fit = NATIVE,
        hub_split: str = "train",
        subset: str | None = None,
        data_files: str | list[str] | None = None,
        buffer: int = 1000,
        name: str | None = None,
    ):
        self.name = name or Path(path).name
        if isinstance(form, str) and form not in FORMS:
            raise ValueError(f"{self.name}: unknown form {form!r}; choose one of {', '.join(FORMS)}")
        self.form = FORMS[form] if isinstance(form, str) else form
        self.split = Split(split) if isinstance(split, str) else split
        self.buffer, self._opener = buffer, ImageOpener(fit=fit)
        self.dataset = _load(path, subset, hub_split, data_files)
        first = next(iter(self.dataset.take(1)), None)
        if first is None:
            raise ValueError(f"{self.name}: it is empty; check hub_split={hub_split!r} and data_files")
        self.columns = resolve(self.form.names, columns or {}, first, self.name)

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> "HubStream":
        """Return an endless stream of all samples of this shard.

        On resume, the rows already read in the current epoch are read again.
        """
        return HubStream(self, seed, shard, shards)

    def shows(self, values: dict[str, Any]) -> bool:
        """Return whether a row (column -> value) is on this source's side of the split."""
        return self.split.side in ("all", split_of(_subject(values), self.split.seed, self.split.held_out))

    def sample(self, values: dict[str, Any], rng: Random) -> Sample:
        """Convert a row (column -> value) to a sample; raises BadSample."""
        key = f"{self.name}:{_name(values)}"
        try:
            made = self.form(values, self.columns, self._opener, rng)
        except ValueError as error:
            raise BadSample(key, str(error)) from None
        return Sample(made.get("messages"), made.get("content"), self.name, key, _subject(values))


class HubStream:
    """An endless, resumable stream over the samples of a Hub, shuffled anew in every epoch.

    Like Stream, but the position in its state counts the rows read of this shard's part of the epoch.
    """

    def __init__(self, hub: Hub, seed: int | str, shard: int, shards: int):
        if not 0 <= shard < shards:
            raise ValueError(f"shard={shard} of shards={shards}: number the shards from 0")
        self._hub, self._seed, self._shard, self._shards = hub, seed, shard, shards
        self.load_state_dict({"epoch": 0, "position": 0})

    def __iter__(self) -> "HubStream":
        return self

    def __next__(self) -> Sample:
        empty = 0
        while True:
            values = next(self._rows, None)
            if values is None:
                empty += 1
                if empty > 1:
                    raise ValueError(f"{self._hub.name}: no row is for {self._hub.split.side}; change held_out")
                self.load_state_dict({"epoch": self._epoch + 1, "position": 0})
                continue
            self._position += 1
            if self._hub.shows(values):
                place = f"{self._epoch}/{self._shard}/{self._position - 1}"
                return self._hub.sample(values, Random(f"{self._seed}/{place}"))

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of rows read in it."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a `state_dict` taken with the same source, seed and shards."""
        self._epoch, self._position = state["epoch"], state["position"]
        self._rows = islice(self._read(self._epoch), self._position, None)

    def _read(self, epoch: int) -> Iterator[dict]:
        """Yield this shard's rows of one epoch; all rows if the dataset has fewer rows than shards."""
        from datasets.distributed import split_dataset_by_node

        seed = int(fraction("hub", self._seed, epoch) * 2**32)
        whole = self._hub.dataset.shuffle(seed=seed, buffer_size=self._hub.buffer)
        mine = split_dataset_by_node(whole, rank=self._shard, world_size=self._shards)
        none_yet = True
        for row in _rows(mine):
            none_yet = False
            yield row
        if none_yet:
            yield from _rows(whole)


def _load(path: str, subset: str | None, split: str, data_files: str | list[str] | None) -> Any:
    """Open the dataset as a stream with its images left encoded; raises ValueError if that fails.

    The images are decoded by this package, so that a broken image costs one sample, not the run.
    """
    import datasets  # slow to import, and needed by this source alone

    try:
        return datasets.load_dataset(path, name=subset, split=split, data_files=data_files, streaming=True).decode(
            False
        )
    except Exception as error:  # network, missing split, error of a builder: any type is possible
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: cannot be opened by load_dataset ({type(error).__name__}: {reason}); check name, split and files"
        ) from None


def _rows(dataset: Any) -> Iterator[dict]:
    """Yield rows one by one through `dataset.iter`.

    Iterating the dataset itself would distribute the rows among torch's DataLoader workers a second time.
    """
    for batch in dataset.iter(batch_size=1):
        yield {column: values[0] for column, values in batch.items()}


def _name(values: dict[str, Any]) -> str:
    """Return a row's name for messages: its file, its webdataset key, or a digest.

    It is the same in every epoch and shard.
    """
    return (
        next(iter(image_names(values)), None)
        or values.get("__key__")
        or hashlib.blake2b(repr(values).encode(), digest_size=6).hexdigest()
    )


def _subject(values: dict[str, Any]) -> str:
    """Return the row's subject for the split: the column `subject`, else its text and list columns as JSON."""
    if values.get("subject"):
        return str(values["subject"])
    return json.dumps(
        {column: value for column, value in values.items() if isinstance(value, str | list)},
        default=_no_bytes,
        sort_keys=True,
    )


def _no_bytes(value: Any) -> str:
    return type(value).__name__
