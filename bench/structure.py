"""Measure the tree: files, functions, lines, types, the words of README, and how long `fusion --help` takes.

Usage: `python -m bench.structure`    (writes a record and docs/structure.md)
"""

import ast
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench import measure

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("fusion", "train", "eval", "bench", "tests")
PAGE = Path("docs/structure.md")
WIDEST = 120
HEAD = """# The tree in figures

Measured by `python -m bench.structure`; the record is in `bench/results/`. Folders, and what may import what, stand in
README's tree, and `tests/test_layout.py` holds the tree to it: imports point to folders above, and no files import each
other in a circle.
"""
BEFORE = {
    "files of the package and of programs": "214",
    "most files in a folder": "37",
    "lines of a function, median, p90, most": "6, 15, 59",
    "lines wider than 120 columns": "2,257",
    "`fmt: skip`": "157",
    "words of README": "6,797",
    "type errors": "not checked",
    "seconds of `fusion --help`": "8.6",
}
"""The same before the package was laid out anew, where it was measured."""


def main() -> int:
    """Measure, record, and write the page."""
    figures = measured(ROOT)
    print(measure.write("structure", {"figures": figures}))
    (ROOT / PAGE).write_text(page(figures), encoding="utf-8")
    return 0


def measured(root: Path) -> dict[str, str]:
    """Return the figures by name, as they are printed."""
    sources = {top: sorted((root / top).rglob("*.py")) for top in TOPS}
    product = [path for top in TOPS if top != "tests" for path in sources[top]]
    everything = [*product, *sources["tests"]]
    text = {path: path.read_text(encoding="utf-8") for path in everything}
    lengths = sorted(length for path in product for length in functions(text[path]))
    folders = Counter(path.parent for path in everything)
    lines = sum(len(text[path].splitlines()) for path in product)
    every_line = [line.rstrip() for one in text.values() for line in one.splitlines()]
    skipped = "# fmt: " + "skip"
    return {
        "files of the package and of programs": f"{len(product)}",
        "their lines": f"{lines:,}",
        "files of tests": f"{len(sources['tests'])}",
        "folders of the package": f"{len({path.parent for path in sources['fusion']})}",
        "most files in a folder": f"{max(folders.values())}",
        "lines of a function, median, p90, most": ", ".join(
            str(value) for value in (round(median(lengths)), lengths[len(lengths) * 9 // 10], lengths[-1])
        ),
        "lines wider than 120 columns": f"{sum(len(line) > WIDEST for line in every_line)}",
        "`fmt: skip`": f"{sum(line.endswith(skipped) for line in every_line)}",
        "words of README": f"{len((root / 'README.md').read_text(encoding='utf-8').split()):,}",
        "type errors": f"{type_errors(root)}",
        "seconds of `fusion --help`": f"{help_seconds(root):.2f}",
    }


def functions(source: str) -> list[int]:
    """Return the number of lines of each function of a file."""
    nodes = ast.walk(ast.parse(source))
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def type_errors(root: Path) -> int:
    """Count what mypy finds in the package."""
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True, check=False)
    return sum(": error:" in line for line in done.stdout.splitlines())


def help_seconds(root: Path) -> float:
    """Time the installed command, the best of five."""
    command = [str(Path(sys.executable).parent / "fusion"), "--help"]
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run(command, cwd=root, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return min(times)


def page(figures: Mapping[str, Any]) -> str:
    """Render the page from the figures."""
    rows = [f"| {name} | {BEFORE.get(name, '')} | {value} |" for name, value in figures.items()]
    return "\n".join([HEAD, "| | before | now |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
