"""Rewrite a run's report with results on held-out emoji: `python -m eval.emoji RUN`"""

import sys

from fusion.evaluation.emoji import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
