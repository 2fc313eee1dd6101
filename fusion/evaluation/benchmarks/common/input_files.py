"""Input files of benchmarks and judges, read with clear errors; judges' answers, stored by line for resuming."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusion.common.atomic import save


def text_in(path: Path, wanted: str) -> str:
    """Read a UTF-8 file; wanted: what it should be, for the ValueError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give {wanted}") from None


def json_in(path: Path, wanted: str) -> Any:
    """Load a JSON file; wanted: what it should be, for the ValueError where it cannot be read or is not JSON."""
    try:
        return json.loads(text_in(path, wanted))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); give {wanted}") from None


def kept_in(file: Path, key: str) -> dict[str, dict[str, Any]]:
    """Load the JSON lines that `keep` wrote, by their entry `key`; {} if there is no file.

    Raises ValueError where the file holds something else.
    """
    try:
        return (
            {one[key]: one for one in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
            if file.is_file()
            else {}
        )
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not what a judge said; remove it, or give another -o") from None


def keep(rows: Iterable[dict[str, Any]], file: Path) -> None:
    """Write a judge's answers as JSON lines, atomically."""
    save("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(), file)
