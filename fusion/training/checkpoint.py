"""Atomic checkpoints: written under another name, synced, renamed; only then is an old one deleted."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from fusion.common.atomic import new_folder

# Written last: the files of the checkpoint with sizes and hashes, so that a copy that broke off is noticed, and a bit
# that fell over.
MARKER = "complete.json"


def save(folder: str | Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Write `folder`/step_N through `write(aside)`, and delete all but the newest `keep` when it is safely there."""
    folder = Path(folder)
    final = folder / f"step_{step}"
    with new_folder(final) as aside:
        write(aside)
        seal(aside)
        if final.exists():
            shutil.rmtree(final)
    _sync(folder)
    for old in steps(folder)[:-keep] if keep else []:
        shutil.rmtree(folder / f"step_{old}")
    return final


def seal(folder: Path) -> None:
    """Sync every file of a folder to disk and write the marker that lists them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {str(path.relative_to(folder)): [path.stat().st_size, _hash(path)] for path in files}
    (folder / MARKER).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in [*files, folder / MARKER, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _sync(path)


def steps(folder: str | Path) -> list[int]:
    """The steps of all checkpoints in a folder, oldest first, complete or not."""
    names = (re.fullmatch(r"step_(\d+)", path.name) for path in Path(folder).glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def newest(folder: str | Path) -> Path | None:
    """The newest complete checkpoint; says on stderr which newer ones it passes over."""
    for step in reversed(steps(folder)):
        path = Path(folder) / f"step_{step}"
        missing = what_is_missing(path)
        if missing is None:
            return path
        print(f"{path}: not complete ({missing}), passing it over for an older checkpoint", file=sys.stderr)
    return None


def what_is_missing(path: Path) -> str | None:
    """None for a complete checkpoint, else what is wrong with it."""
    try:
        listed = [
            (name, size, digest)
            for name, (size, digest) in json.loads((path / MARKER).read_text(encoding="utf-8")).items()
        ]
    except (OSError, ValueError, TypeError, AttributeError):
        return f"no {MARKER}"
    for name, size, digest in listed:
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} was cut off"
        if _hash(path / name) != digest:
            return f"{name} is damaged"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Named tensors as safetensors; each is copied out of whatever storage it shares."""
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, on the CPU."""
    return load_file(str(path))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
