"""Input files of benchmarks and judges, read with clear errors; judges' answers, stored by line for resuming."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fusion.common.atomic import save


def text_in(path: Path, wanted: str) -> str:
    """What a file holds. wanted: what it should be, for the ValueError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give {wanted}") from None


def json_in(path: Path, wanted: str) -> Any:
    """The same of JSON."""
    try:
        return json.loads(text_in(path, wanted))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); give {wanted}") from None


def kept_in(file: Path, key: str) -> dict[str, dict[str, Any]]:
    """The JSON lines of `keep` by one of their entries; none where there is no file. ValueError where it holds
    something else."""
    try:
        return (
            {one[key]: one for one in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
            if file.is_file()
            else {}
        )
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not what a judge said; remove it, or give another -o") from None


def keep(rows: Iterable[dict[str, Any]], file: Path) -> None:
    """A JSON line each; the whole file, or nothing of it."""
    save("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(), file)
