"""Cut plain text from text files or tables into pieces that fit a training row."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fusion.data.formats.sample import BadSample
from fusion.data.formats.tables import Row, Rows, read_bytes, scan

# Where a piece may end, best first: between paragraphs, lines, sentences, words.
BREAKS = tuple(map(re.compile, (r"\n\s*\n", r"\n", r"(?<=[.!?])\s", r"\s")))


def cut(text: str, max_chars: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) spans of consecutive pieces of at most `max_chars` characters.

    Each piece ends at the best break in the second half of its window: paragraph, line, sentence, or word (see BREAKS).
    """
    start = 0
    while len(text) - start > max_chars:
        window = text[start + max_chars // 2 : start + max_chars]
        ends = ([match.end() for match in pattern.finditer(window)] for pattern in BREAKS)
        stop = start + max_chars // 2 + next((found[-1] for found in ends if found), len(window))
        yield start, stop
        start = stop
    yield start, len(text)


class FilePieces:
    """The pieces of text files as rows (`text`, `subject`), read on access.

    Each file is one subject; if there is only one file, each of its pieces is a subject.
    """

    def __init__(self, root: Path, paths: Sequence[Path], max_chars: int):
        self._root, self._paths = root, paths
        self._spans = np.array(
            [(n, *span) for n, path in enumerate(paths) for span in _byte_spans(path, max_chars)], np.int64
        )

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Row:
        number, start, stop = map(int, self._spans[index])
        name = self._paths[number].relative_to(self._root).as_posix()
        key = f"{name}:{start}"
        try:
            text = read_bytes(self._paths[number], start, stop - start).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSample(key, f"is not readable as UTF-8 text ({error}); convert it") from None
        return Row(key, {"text": text} | ({"subject": name} if len(self._paths) > 1 else {}))


class RowPieces:
    """The pieces of the text column `column` of a table, as rows; each row of the table is one subject."""

    def __init__(self, rows: Rows, column: str, max_chars: int):
        self._rows, self._column = rows, column
        spans = []
        for number, row in enumerate(scan(rows)):
            text = row.values.get(column)
            spans += [(number, *span) for span in cut(text if isinstance(text, str) else "", max_chars)]
        self._spans = np.array(spans, np.int64)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Row:
        number, start, stop = map(int, self._spans[index])
        row = self._rows[number]
        text = row.values.get(self._column)
        piece = {self._column: text[start:stop]} if isinstance(text, str) else {}
        return Row(f"{row.key}:{start}" if start else row.key, {"subject": row.key} | row.values | piece)


def _byte_spans(path: Path, max_chars: int) -> Iterator[tuple[int, int]]:
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield 0, len(data)  # one piece, which raises BadSample when it is read
        return
    start = 0
    for first, last in cut(text, max_chars):
        stop = start + len(text[first:last].encode())
        yield start, stop
        start = stop
