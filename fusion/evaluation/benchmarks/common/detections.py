"""Detections of objects as a readable file that other detectors can write: one JSON object per line and image.

    {"filename": "00000/samples/00000.png", "objects": {"bench": [{"box": [12.0, 8.0, 200.0, 96.0], "score": 0.97,
    "colour": "red"}]}}

`filename` is relative to the benchmark's folder, boxes are left, top, right, bottom in pixels, and colours are present
only where a prompt asks for one. `digest` and `judge`, which this repository's judge adds, identify the image's content
and the judge.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from fusion.common.atomic import save

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """A detected object.

    box: left, top, right, bottom in pixels. score: the detector's confidence in [0, 1]. colour: None if it was not
    classified.
    """

    box: Box
    score: float
    colour: str | None = None


@dataclass(frozen=True)
class Detections:
    """All detected objects of an image by class, in the detector's order.

    digest: of the image's file (`digest_of`). judge: the name of the detector. Both are None if they are not known.
    """

    filename: str
    objects: dict[str, list[Found]]
    digest: str | None = None
    judge: str | None = None


def digest_of(path: Path) -> str:
    """Return the hash of a file's bytes (BLAKE2b, 8 bytes, hexadecimal)."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def write_detections(found: Iterable[Detections], path: Path) -> None:
    """Write detections as JSON lines, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save("".join(json.dumps(asdict(one)) + "\n" for one in found).encode(), path)


def read_detections(path: Path) -> dict[str, Detections]:
    """Load detections by the image's file name; ValueError that names the line that cannot be used."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); give a file of detections") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            one = _detections(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            shape = '{"filename": ..., "objects": {class: [{"box": [4 numbers], "score": 0.9}]}}'
            raise ValueError(
                f"{path}, line {number}: not detections of an image ({error!r:.80}); a line is {shape}"
            ) from None
        found[one.filename] = one
    return found


def _detections(row: dict) -> Detections:
    objects = {name: [_found(one) for one in several] for name, several in row["objects"].items()}
    return Detections(str(row["filename"]), objects, row.get("digest"), row.get("judge"))


def _found(row: dict) -> Found:
    left, top, right, bottom = box = tuple(float(value) for value in row["box"])
    score = float(row["score"])
    if not all(map(math.isfinite, box)) or right < left or bottom < top or not 0 <= score <= 1:
        raise ValueError(f"box {box}, score {score}")
    return Found(box, score, row.get("colour"))
