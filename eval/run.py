"""Evaluates anything that draws: `python -m eval.run MODEL -o OUT`"""

import sys

from fusion.evaluation.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
