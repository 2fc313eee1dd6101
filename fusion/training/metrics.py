"""metrics.jsonl: one row per log with step, seen, time and named values; and the mean of what a step measures."""

import json
import math
from pathlib import Path

from fusion.common.atomic import save


class Metrics:
    """Appends rows to a metrics.jsonl; a program that is killed loses at most the row that it was writing.

    Rows of steps after `step` are cut off first, so that a resumed run does not tell the same steps twice.
    """

    def __init__(self, path: str | Path, step: int = 0):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(self.path) if row["step"] <= step] if self.path.exists() and step else []
        save("".join(_line(row) for row in kept), self.path)

    def log(self, step: int, seen: int, time: float, **values: float | int | None) -> None:
        """One row. seen: training documents so far. time: seconds of training so far. A value None (nothing measured)
        is left out."""
        row = {"step": step, "seen": seen, "time": round(time, 3)} | {k: v for k, v in values.items() if v is not None}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))


def read(path: str | Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was not finished is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Means:
    """Running sums and counts by name; `take` gives the means since the last call."""

    def __init__(self):
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, **sums: tuple[float, float]) -> None:
        """Each value is (sum, count)."""
        for name, (total, count) in sums.items():
            before = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (before[0] + float(total), before[1] + float(count))

    def take(self) -> dict[str, float]:
        """The mean of each name that counted anything."""
        means = {name: total / count for name, (total, count) in self.sums.items() if count}
        self.sums = {}
        return means


def _line(row: dict) -> str:
    clean = {k: (round(v, 6) if math.isfinite(v) else str(v)) if isinstance(v, float) else v for k, v in row.items()}
    return json.dumps(clean) + "\n"
