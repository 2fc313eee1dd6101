"""Shared main function of the benchmarks' programs: print the result, or an expected error as one line."""

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
    """Run `score` with the options, print its result and `options.out`, and return 0.

    score: returns scores, or a finished text. mistakes: exceptions that are printed as one line on stderr, to return 1.
    """
    logging.disable_progress_bar()  # of loading weights
    try:
        found = score(options)
    except mistakes as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(found if isinstance(found, str) else as_text(found, digits=4))
    print(options.out)
    return 0
