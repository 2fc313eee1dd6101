"""Diagnose the faults of a training run and show the evidence: `python -m eval.doctor RUN`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
