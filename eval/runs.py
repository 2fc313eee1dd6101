"""Compare runs of train.unified on one data set: `python -m eval.runs OUT RUN ...`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["runs", *sys.argv[1:]]))
