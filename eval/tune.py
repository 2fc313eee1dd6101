"""Find the sampling parameters with which a model draws best: `python -m eval.tune MODEL -o OUT`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
