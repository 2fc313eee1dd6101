"""Writes files and folders whole or not at all: aside under a temporary name, then moved to their place in one step."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def save(data: bytes | str, path: str | Path) -> None:
    """Write a file, or put a new one in its place; text as UTF-8."""
    with new_file(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to, and let it take that name on leaving; after an error it is
    removed, and what `path` held is untouched."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)  # temporary files are private
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, last: str | None = None) -> Iterator[Path]:
    """Give an empty temporary folder to fill, and let it take the place of `path` on leaving; after an error it is
    removed, and what `path` held is untouched.

    last: the name of the file that makes such a folder complete. With it, the files are moved one by one into what may
    be there already, this one at the end. Without it the folder takes its name in one step, where nothing or an empty
    folder may be (OSError otherwise).
    """
    path = Path(path)
    with _merged(path, last) if last is not None else _renamed(path) as aside:
        yield aside


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by a program that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _merged(path: Path, last: str) -> Iterator[Path]:
    fresh = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path, prefix=".saving-"))
    try:
        yield aside
        _move_in(aside, path, last)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if fresh and not any(path.iterdir()):
            path.rmdir()


def _move_in(aside: Path, folder: Path, last: str) -> None:
    """Move all files of one folder into another, `last` at the end."""
    for file in sorted(aside.rglob("*"), key=lambda file: file == aside / last):
        if file.is_file():
            target = folder / file.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.chmod(0o644)  # some writers leave their files private
            os.replace(file, target)
