"""What the programs of benchmarks have in common: what they found is printed, and a mistake is one line."""

import argparse
import sys
from collections.abc import Callable

from transformers.utils import logging

from fusion.common.scores_html import as_text
from fusion.common.statistics import Score


def run(
    score: Callable[[argparse.Namespace], list[Score] | str],
    options: argparse.Namespace,
    mistakes: tuple[type[Exception], ...] = (ValueError,),
) -> int:
    """Print what `score` found (shares, or a text that is made already) and `options.out`: 0; or 1 and one line on
    stderr for its mistakes."""
    logging.disable_progress_bar()  # of reading weights
    try:
        found = score(options)
    except mistakes as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(found if isinstance(found, str) else as_text(found, digits=4))
    print(options.out)
    return 0
