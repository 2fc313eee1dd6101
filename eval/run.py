"""Evaluate any model that generates images: `python -m eval.run MODEL -o OUT`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
