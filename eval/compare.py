"""Trains architectures of one size on the same data: `python -m eval.compare configs/compare/NAME.yaml`"""

import sys

from fusion.comparison.compare import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
