"""Training or validation, decided by subject, so that no picture of a held-out subject is ever trained on."""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2", ".ico", ".qoi")
SIDES = ("train", "validation", "all")


def fraction(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone: the same on every machine, in every process and version."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # 53 bits: what a float holds without rounding up to 1


def split_of(subject: str, seed: int = 0, held_out: float = 0.05) -> str:
    """The side that a subject is on: "validation" for a share of `held_out` of all subjects, else "train"."""
    return "validation" if fraction("split", seed, subject) < held_out else "train"


@dataclass(frozen=True)
class Split:
    """Which side of the split a source shows, and how the split is made.

    side: "train", "validation" or "all". held_out: the share of the subjects that validation gets. seed: chooses which.
    variant: a regular expression; what it matches in a file's name, without folder and suffix, makes no new subject.
    The default is the code of a skin tone, so that `noto/1f487_1f3fb.png` and `fluent/1f487.png` are both of `1f487`.
    """

    side: str = "all"
    held_out: float = 0.05
    seed: int = 0
    variant: str = r"[_-]1f3f[b-f]"

    def __post_init__(self):
        if self.side not in SIDES:
            raise ValueError(f"split={self.side!r}: choose one of {', '.join(SIDES)}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: the share of subjects kept for validation lies in [0, 1)")
        try:
            re.compile(self.variant)
        except re.error as error:
            raise ValueError(f"variant={self.variant!r} is no regular expression: {error}") from None

    def chosen(self, subjects: Collection[str]) -> set[str]:
        """The subjects on this side. Where chance holds nobody out, the first in line is, so that small sets have a
        validation too."""
        if self.side == "all":
            return set(subjects)
        held = {subject for subject in subjects if split_of(subject, self.seed, self.held_out) == "validation"}
        if not held and self.held_out and len(subjects) > 1:
            held = {min(subjects, key=lambda subject: fraction("split", self.seed, subject))}
        return held if self.side == "validation" else set(subjects) - held


Name = tuple[bool, str]  # whether it is a label rather than a file's base name (files sort first), and the name


class Subjects:
    """Which names mean the same subject.

    All files of one row, its `subject` column, and all files with the same base name are one subject, over all tables
    of a folder: otherwise captions (split by file) and edits (split by their column) of one thing could land on
    different sides. A union-find; a subject is called by the smallest of its file names, or of its labels if it has no
    file.
    """

    def __init__(self, variant: str = Split.variant):
        self._variant = re.compile(variant)
        self._parent: dict[Name, Name] = {}

    def add(self, values: dict[str, Any], key: str) -> Name:
        """Tie together all that the row `values` names, and return one of it; `key` names a row that has neither file
        nor subject."""
        label = values.get("subject")
        names = [(False, self._variant.sub("", PurePosixPath(name).stem)) for name in image_names(values)]
        names += [(True, str(label))] if label not in (None, "") else []
        first, *others = dict.fromkeys(names) or [(True, key)]
        root = self._find(first)
        for other in map(self._find, others):
            root, below = min(root, other), max(root, other)
            self._parent[below] = root
        return first

    def all(self) -> set[str]:
        """Every subject."""
        return {self._find(name)[1] for name in list(self._parent)}

    def of(self, name: Name) -> str:
        """The subject that a name belongs to, by all rows added so far."""
        return self._find(name)[1]

    def _find(self, name: Name) -> Name:
        while (parent := self._parent.setdefault(name, name)) != name:
            self._parent[name] = self._parent[parent]  # path halving keeps the trees flat
            name = parent
        return name


def image_names(values: Any) -> list[str]:
    """All strings in a row, however deep, that name an image file."""
    names, left = [], [values]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if value.lower().endswith(SUFFIXES):
                names.append(value)
        elif isinstance(value, dict):
            left += reversed(value.values())
        elif isinstance(value, list | tuple):
            left += reversed(value)
    return names
