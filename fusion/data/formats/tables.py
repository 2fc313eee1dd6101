"""Tables of rows from JSON lines, CSV and Parquet, read one row at a time."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fusion.data.formats.sample import BadSample

TABLES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of a table. key: its table and line ("metadata.jsonl:17"); values: by column."""

    key: str
    values: dict[str, Any]


@runtime_checkable
class Rows(Protocol):
    """Rows read by index. A row that cannot be read raises BadSample, which is why this is no Sequence: those iterate
    to the end."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class JsonLines:
    """The objects of a JSON lines file. Only the places of the lines are kept in memory; a broken line raises
    BadSample."""

    def __init__(self, path: Path):
        self.path = path
        starts, numbers, start = [], [], 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    starts.append((start, len(line)))
                    numbers.append(number)
                start += len(line)
        self._spans, self._numbers = np.array(starts, np.int64).reshape(-1, 2), np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Row:
        start, length = map(int, self._spans[index])
        key = f"{self.path.name}:{self._numbers[index]}"
        try:
            values = json.loads(read_bytes(self.path, start, length))
        except (ValueError, RecursionError) as error:  # broken JSON, bytes that are not UTF-8, thousands of brackets
            raise BadSample(key, f"is not a JSON object ({error}); mend or remove the line") from None
        if not isinstance(values, dict):
            raise BadSample(key, f"holds a {type(values).__name__}, not a JSON object; mend or remove the line")
        return Row(key, values)


class ListTable:
    """Rows held in memory, a string where one cannot be read, which says why; `numbers` are those that they have in
    messages."""

    def __init__(self, path: Path, rows: list[dict | str], numbers: Sequence[int]):
        self.path, self._rows, self._numbers = path, rows, numbers

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        key, values = f"{self.path.name}:{self._numbers[index]}", self._rows[index]
        if isinstance(values, str):
            raise BadSample(key, values)
        return Row(key, values)


def read_csv(path: Path) -> ListTable:
    """The rows of a CSV file, numbered by the lines they begin in. What is wrong with a row costs that row.

    Bytes that are not UTF-8 come as halves of surrogate pairs, which are refused where they would be a text or a file's
    name.
    """
    rows, numbers = [], []
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        while True:
            number = reader.line_num + 1
            try:
                values = _named(next(reader), names)
            except StopIteration:
                return ListTable(path, rows, numbers)
            except csv.Error as error:
                values = f"is not a row of CSV ({error}); mend or remove it"
            if values:
                rows.append(values)
                numbers.append(number)


def _named(cells: list[str], names: list[str]) -> dict | str:
    """A row of CSV by column. One with too many or too few cells would have its texts cut, or in the wrong column."""
    if cells and len(cells) != len(names):
        return f"has {len(cells)} cells where the first line has {len(names)}; put texts that hold commas in quotes"
    return dict(zip(names, cells))


def open_table(path: Path) -> Rows:
    """The rows of a .jsonl, .csv or .parquet file; raises ValueError in one line if there is none, or it cannot be
    read."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path")
    try:
        if path.suffix == ".jsonl":
            return JsonLines(path)
        if path.suffix == ".csv":
            return read_csv(path)
        if path.suffix == ".parquet":
            import pyarrow.parquet  # slow to import, and rarely needed

            rows = pyarrow.parquet.read_table(path).to_pylist()
            return ListTable(path, rows, range(len(rows)))
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise ValueError(
            f"{path}: cannot be read as a table ({' '.join(str(error).split())}); write it again"
        ) from None
    raise ValueError(f"{path}: not a table; give one of {', '.join(TABLES)}")


def find_table(path: Path, stem: str) -> Path | None:
    """The one table of that name in a folder, or None. More than one is an error: which is meant?"""
    found = [path / f"{stem}{suffix}" for suffix in TABLES if (path / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{path} has {' and '.join(f.name for f in found)}; keep one of them")
    return found[0] if found else None


def scan(rows: Rows) -> Iterator[Row]:
    """All rows in order; a broken one comes without values."""
    for index in range(len(rows)):
        try:
            yield rows[index]
        except BadSample as bad:
            yield Row(bad.key, {})


def read_bytes(path: Path, start: int, length: int) -> bytes:
    """Part of a file. It is opened anew each time: an open file shared by forked workers would share its position
    too."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
