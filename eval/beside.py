"""Puts several evaluations beside each other: `python -m eval.beside -o OUT EVALUATION ...`"""

import sys

from fusion.evaluation.side_by_side import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
