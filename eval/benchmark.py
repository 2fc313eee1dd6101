"""Run one of the field's benchmarks: `python -m eval.benchmark NAME ...`, as `fusion benchmark` does."""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
