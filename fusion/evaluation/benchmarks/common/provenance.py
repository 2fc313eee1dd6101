"""Provenance of a benchmark's images, in a file beside their folder, so that the folder keeps its official layout."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusion.common.atomic import save
from fusion.common.renamed import renamed


@dataclass(frozen=True)
class Asked:
    """All that the images depend on, besides the model's weights.

    count: number of prompts. prompts: their fingerprint. n: images for each prompt. size: side of the square images in
    pixels. params: sampling parameters.
    """

    benchmark: str
    model: str
    count: int
    prompts: str
    n: int
    size: int
    seed: int
    params: dict[str, Any]


def fingerprint(prompts: Sequence[str]) -> str:
    """Hash all prompts in their order (BLAKE2b, 8 bytes, hexadecimal)."""
    return hashlib.blake2b("\0".join(prompts).encode(), digest_size=8).hexdigest()


def file_of(root: Path) -> Path:
    """Return the path of the provenance file: out/geneval -> out/geneval.asked.json."""
    return root.with_name(f"{root.name}.asked.json")


def begin(asked: Asked, root: Path) -> None:
    """Create the folder, or check that its contents were drawn with the same settings.

    Raises ValueError otherwise; nothing is overwritten.
    """
    file, told = file_of(root), json.dumps(asdict(asked), indent=1) + "\n"
    begun = root.exists() and (not root.is_dir() or any(root.iterdir()))
    if begun and file.is_file():
        before = renamed(json.loads(file.read_text(encoding="utf-8")))
        if unlike := [name for name, value in json.loads(told).items() if before.get(name) != value]:
            raise ValueError(
                f"{root} was drawn with another {' and '.join(unlike)} ({file}): give another folder with -o"
            )
    elif begun:
        raise ValueError(
            f"{root} holds something else, for there is no {file.name} beside it: give another folder with -o"
        )
    else:
        root.mkdir(parents=True, exist_ok=True)
        save(told.encode(), file)


def count_asked(root: Path) -> int:
    """Return the number of prompts that a folder was drawn with; 0 if it has no provenance file."""
    file = file_of(root)
    return json.loads(file.read_text(encoding="utf-8"))["count"] if file.is_file() else 0
