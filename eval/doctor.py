"""Says what is wrong with a run, and shows why: `python -m eval.doctor RUN`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
