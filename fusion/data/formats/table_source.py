"""TableSource: the rows of a table as samples of one form, on one side of the split."""

import random
from collections.abc import Sequence
from pathlib import Path

from fusion.data.formats.row_parsers import NATIVE, Fit, Form, Pictures, resolve
from fusion.data.formats.sample import BadSample, Sample
from fusion.data.formats.split import Split, Subjects
from fusion.data.formats.stream import Stream
from fusion.data.formats.tables import Rows, scan


class TableSource:
    """Rows of a table read as samples of one form: what all sources but the hub and the world are.

    name: what it is called in metrics and messages. form: how a row becomes a sample. root: what paths in rows are
    relative to. tied: further tables whose rows say which files are of one subject. subjects: all there are, on both
    sides of the split. chosen: the (row number, subject) of each sample. Raises ValueError if a column is missing in
    every row, or nothing is on the asked side.
    """

    def __init__(
        self,
        name: str,
        rows: Rows,
        form: Form,
        root: Path,
        columns: dict[str, str] | None = None,
        split: Split | str = "all",
        fit: Fit = NATIVE,
        tied: Sequence[Rows] = (),
    ):
        self.name, self.form, self.root, self.rows = name, form, root, rows
        self._pictures = Pictures(root, fit)
        if not len(rows):
            raise ValueError(f"{name}: its table is empty; write at least one row")
        split = Split(split) if isinstance(split, str) else split
        subjects, seen, names = Subjects(split.variant), set(), []
        for row in scan(rows):
            seen.update(row.values)
            names.append(subjects.add(row.values, row.key))
        for row in (row for table in tied for row in scan(table)):
            subjects.add(row.values, row.key)
        if not seen:
            raise ValueError(f"{name}: none of its {len(rows)} rows can be read; write one JSON object per line")
        self.columns = resolve(form.names, columns or {}, seen, name)
        self.subjects = subjects.all()
        shown = split.chosen(self.subjects)
        self.chosen = [(index, subject) for index, subject in enumerate(map(subjects.of, names)) if subject in shown]
        if not self.chosen:
            raise ValueError(f"{name}: none of its {len(rows)} samples is for {split.side}; change held_out")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, always made in the same way. Raises BadSample."""
        return self.sample(index, random.Random(index))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Sample number `index`; `rng` chooses prompt and direction. Raises BadSample, which names the row and what is
        wrong."""
        number, subject = self.chosen[index]
        try:
            row = self.rows[number]
        except BadSample as bad:
            raise BadSample(str(self.root / bad.key), bad.reason) from None
        key = str(self.root / row.key)
        try:
            made = self.form(row.values, self.columns, self._pictures, rng)
        except ValueError as error:  # BadImage is one too
            raise BadSample(key, str(error)) from None
        return Sample(made.get("messages"), made.get("content"), self.name, key, subject)

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """All samples, endlessly, in shuffled order."""
        return Stream(self, seed, shard, shards)
