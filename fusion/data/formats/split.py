"""Split data into training and validation by subject, so that no image of a held-out subject is ever trained on."""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2", ".ico", ".qoi")
SIDES = ("train", "validation", "all")


def fraction(*key: object) -> float:
    """Hash a key to a number in [0, 1): the same on every machine, in every process and version."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # 53 bits: what a float holds without rounding up to 1


def split_of(subject: str, seed: int = 0, held_out: float = 0.05) -> str:
    """Return the side of a subject: "validation" for a share of `held_out` of all subjects, else "train"."""
    return "validation" if fraction("split", seed, subject) < held_out else "train"


@dataclass(frozen=True)
class Split:
    """The side of the split that a source yields, and how the split is made.

    side: "train", "validation" or "all". held_out: share of the subjects held out for validation, in [0, 1). seed:
    determines which ones. variant: a regular expression, removed from a file's name (without folder and suffix) to get
    its subject. The default is the code of a skin tone, so that `noto/1f487_1f3fb.png` and `fluent/1f487.png` are both
    of subject `1f487`.
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
        """Return the subjects on this side of the split.

        If chance holds no subject out, the one with the smallest hash is, so that small data sets have a validation set
        too.
        """
        if self.side == "all":
            return set(subjects)
        held = {subject for subject in subjects if split_of(subject, self.seed, self.held_out) == "validation"}
        if not held and self.held_out and len(subjects) > 1:
            held = {min(subjects, key=lambda subject: fraction("split", self.seed, subject))}
        return held if self.side == "validation" else set(subjects) - held


Name = tuple[bool, str]  # (is a `subject` label rather than a file's base name, the name); files sort first


class Subjects:
    """Group the names that occur in rows into subjects (union-find).

    All files of one row, its `subject` column, and all files with the same base name are one subject, over all tables
    of a folder: otherwise captions (split by file) and edits (split by their column) of one thing could land on
    different sides. The name of a subject is the smallest of its file names, or of its labels if it has no file.
    """

    def __init__(self, variant: str = Split.variant):
        self._variant = re.compile(variant)
        self._parent: dict[Name, Name] = {}

    def add(self, values: dict[str, Any], key: str) -> Name:
        """Merge all names in the row `values` into one subject, and return one of them.

        key: the name of a row that has neither an image file nor a subject.
        """
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
        """Return the names of all subjects."""
        return {self._find(name)[1] for name in list(self._parent)}

    def of(self, name: Name) -> str:
        """Return the subject that a name belongs to, given all rows added so far."""
        return self._find(name)[1]

    def _find(self, name: Name) -> Name:
        while (parent := self._parent.setdefault(name, name)) != name:
            self._parent[name] = self._parent[parent]  # path halving keeps the trees flat
            name = parent
        return name


def image_names(values: Any) -> list[str]:
    """Return all strings in a row, at any depth of nesting, that end like an image file's name."""
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
