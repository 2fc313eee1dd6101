"""Test that a run killed at random moments ends bit-identical to an uninterrupted one: `python -m bench.kills`"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from bench import measure
from fusion.testing import killed_runs as killing
from fusion.testing import tiny_runs as training


def main(arguments: list[str]) -> int:
    """Kill runs, compare their results, print and write the figures; return 1 if a run differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    rng, kills, differing = random.Random(options.seed), [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        llm = training.save_llm(folder / "llm")
        killing.run(llm, folder / "straight")
        while len(kills) < options.kills:
            run = folder / f"after_{len(kills)}"
            kills += killing.until_done(llm, run, rng, most=min(5, options.kills - len(kills)))
            differing += killing.differences(folder / "straight", run)
            print(f"{len(kills)} kills, {len(differing)} tensors differ", flush=True)
    print(
        measure.write(
            "kills",
            {
                "kills": len(kills),
                "tensors that differ": differing,
                "seconds after a step": [round(s, 2) for s in kills],
            },
        )
    )
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
