"""Provenance of a benchmark's images, in a file beside their folder, which keeps to the official layout."""

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
    """What the images depend on, beside the model's weights. count and prompts: how many, and their fingerprint. n:
    images of a prompt, `size` pixels square."""

    benchmark: str
    model: str
    count: int
    prompts: str
    n: int
    size: int
    seed: int
    params: dict[str, Any]


def fingerprint(prompts: Sequence[str]) -> str:
    """Of all prompts in their order."""
    return hashlib.blake2b("\0".join(prompts).encode(), digest_size=8).hexdigest()


def file_of(root: Path) -> Path:
    """out/geneval -> out/geneval.asked.json"""
    return root.with_name(f"{root.name}.asked.json")


def begin(asked: Asked, root: Path) -> None:
    """Make the folder, or make sure that what is in it was drawn with the same. ValueError otherwise: nothing is
    written over."""
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
    """How many prompts a folder was drawn with; 0 where nobody says."""
    file = file_of(root)
    return json.loads(file.read_text(encoding="utf-8"))["count"] if file.is_file() else 0
