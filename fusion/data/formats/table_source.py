"""TableSource: the rows of a table, parsed into samples, on one side of the split."""

import random
from collections.abc import Sequence
from pathlib import Path

from fusion.data.formats.row_parsers import NATIVE, Fit, Form, ImageOpener, resolve
from fusion.data.formats.sample import BadSample, Sample
from fusion.data.formats.split import Split, Subjects
from fusion.data.formats.stream import Stream
from fusion.data.formats.tables import Rows, scan


class TableSource:
    """A source that parses the rows of a table into samples; the base of all sources but the hub and the world.

    name: its name in metrics and messages. form: the row parser. root: the folder that paths in rows are relative to.
    columns: standard name -> column. fit: how images are resized. tied: further tables whose rows show which files
    belong to one subject. Attributes: subjects, all of them, on both sides of the split; chosen, the (row number,
    subject) of each sample. Raises ValueError if the table is empty, a column is missing in every row, or no sample is
    on the chosen side.
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
        self._opener = ImageOpener(root, fit)
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
        """Return sample number `index`, with random choices that depend on the index alone; raises BadSample."""
        return self.sample(index, random.Random(index))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Return sample number `index`; raises BadSample, which names the row and what is wrong.

        rng: makes the random choices, such as the prompt and the direction (image to text or text to image).
        """
        number, subject = self.chosen[index]
        try:
            row = self.rows[number]
        except BadSample as bad:
            raise BadSample(str(self.root / bad.key), bad.reason) from None
        key = str(self.root / row.key)
        try:
            made = self.form(row.values, self.columns, self._opener, rng)
        except ValueError as error:  # BadImage is a ValueError too
            raise BadSample(key, str(error)) from None
        return Sample(made.get("messages"), made.get("content"), self.name, key, subject)

    def stream(self, seed: int | str = 0, shard: int = 0, shards: int = 1) -> Stream:
        """Return an endless stream of all samples of this shard, shuffled anew in each epoch."""
        return Stream(self, seed, shard, shards)
