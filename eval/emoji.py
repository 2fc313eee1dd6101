"""Writes a run's report again, with held-out emoji: `python -m eval.emoji RUN`"""

import sys

from fusion.evaluation.emoji import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
