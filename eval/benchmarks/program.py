"""What the programs that score have in common: figures are printed, and a mistake is one line."""

import argparse
import sys
from collections.abc import Callable

from transformers.utils import logging

from eval.page import Score
from eval.scores import as_text


def run(score: Callable[[argparse.Namespace], list[Score] | str], options: argparse.Namespace) -> int:
    """Score, print the figures (shares, or a table that is made already) and `options.out`: 0, or 1 and one line on stderr."""
    logging.disable_progress_bar()  # of reading weights
    try:
        found = score(options)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(found if isinstance(found, str) else as_text(found, digits=4))
    print(options.out)
    return 0
