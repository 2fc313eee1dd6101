"""Measure how well the judge of the built-in world reads disturbed images: `python -m bench.judge -o out/judge`

Renders random scenes, blurs, noises, compresses and recolours them, and counts what the judge reads in each: of the
objects that it names, the share that are there (precision); of those that are there, the share that it names (recall);
scenes in which all is right; and false expectations, one attribute of one object changed, that it lets pass. Writes a
page, results.json and a contact sheet into a new folder.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from bench.judge_measure import SIZES, measure
from bench.judge_page import page, sheet
from fusion.common.atomic import new_file, save


def main(argv: Sequence[str]) -> int:
    """Measure, write the page, and print its path; return 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m bench.judge", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--scenes", type=int, default=500, help="how many are rendered (default 500)")
    parser.add_argument("--size", choices=SIZES, default="32x32", help="of the images (default 32x32)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise ValueError(f"{options.out} holds something: give another folder with -o")
        found = measure(options.scenes, options.size, options.seed, lambda numbers: tqdm(numbers, unit="scenes"))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    found.settings["command"] = (
        f"python -m bench.judge --scenes {options.scenes} --size {options.size} --seed {options.seed}"
    )
    save((json.dumps(found.figures(), indent=1) + "\n").encode(), options.out / "results.json")
    save(page(found).encode(), options.out / "report.html")
    with new_file(options.out / "judge.png") as aside:
        sheet(found).save(aside, "PNG")
    print(found.as_text())
    print(options.out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
