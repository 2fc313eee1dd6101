"""Read tables in JSON lines, CSV or Parquet, one row at a time."""

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
    """One row of a table. key: its table and line ("metadata.jsonl:17"). values: column -> value."""

    key: str
    values: dict[str, Any]


@runtime_checkable
class Rows(Protocol):
    """The rows of a table, read by index; a row that cannot be read raises BadSample.

    It is not a Sequence, because iterating a Sequence would stop at the first broken row.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class JsonLines:
    """The rows of a JSON lines file, read on access; only the byte offsets of the lines are held in memory.

    A line that is not a JSON object raises BadSample; empty lines are left out.
    """

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
        except (ValueError, RecursionError) as error:  # broken JSON, not UTF-8, or nested too deeply
            raise BadSample(key, f"is not a JSON object ({error}); mend or remove the line") from None
        if not isinstance(values, dict):
            raise BadSample(key, f"holds a {type(values).__name__}, not a JSON object; mend or remove the line")
        return Row(key, values)


class ListTable:
    """Rows held in memory.

    rows: a dict of column -> value, or for a row that cannot be read a string, the reason of its BadSample. numbers:
    the row numbers in messages.
    """

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
    """Read a CSV file, whose first line names the columns; rows are numbered by the lines they begin in.

    A broken row costs that row alone. Bytes that are not UTF-8 become lone surrogates (surrogateescape), which are
    refused where they would be a text or a file's name.
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
    """Return a CSV row as column -> value, or a reason string if its number of cells is wrong.

    Such a row would have its texts cut, or in the wrong column.
    """
    if cells and len(cells) != len(names):
        return f"has {len(cells)} cells where the first line has {len(names)}; put texts that hold commas in quotes"
    return dict(zip(names, cells))


def open_table(path: Path) -> Rows:
    """Open a .jsonl, .csv or .parquet file as rows; raises ValueError if it is missing or cannot be read."""
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
    """Return the table called `stem` in a folder, or None; raises ValueError if there is more than one."""
    found = [path / f"{stem}{suffix}" for suffix in TABLES if (path / f"{stem}{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{path} has {' and '.join(f.name for f in found)}; keep one of them")
    return found[0] if found else None


def scan(rows: Rows) -> Iterator[Row]:
    """Yield all rows in order; a broken row is yielded without values."""
    for index in range(len(rows)):
        try:
            yield rows[index]
        except BadSample as bad:
            yield Row(bad.key, {})


def read_bytes(path: Path, start: int, length: int) -> bytes:
    """Read `length` bytes of a file from offset `start`.

    The file is opened anew each time: an open file shared by forked workers would share its position too.
    """
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
