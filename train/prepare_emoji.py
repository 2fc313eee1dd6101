"""Build the emoji data set from clones of two public repositories: `python -m train.prepare_emoji NOTO FLUENT OUT`"""

import sys

from fusion.data.emoji import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
