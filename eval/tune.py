"""Finds the sampling parameters that a model draws best with: `python -m eval.tune MODEL -o OUT`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
