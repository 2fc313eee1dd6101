"""The demo's multi-process stage, learning to draw; train.demo starts this module as each of its ranks."""

import sys
from pathlib import Path

from transformers.utils import logging

from fusion.common.config import load_config
from fusion.recipes.demo import Demo, learn, read_corpus
from fusion.training.processes import INTERRUPTED, leave, this_rank
from fusion.training.trainer import NotFinite


def main(path: str) -> int:
    """`python -m fusion.recipes.demo_worker OUT/config.yaml`, with the variables of fusion.training.processes."""
    logging.disable_progress_bar()
    ranks = this_rank()
    config = load_config(Demo, Path(path))
    try:
        summary = learn(config, read_corpus(config.llm.data, config.llm.seed), ranks.process_index, ranks.num_processes)
    except (ValueError, NotFinite) as error:  # the same on every rank
        if ranks.is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        leave()
    return INTERRUPTED if summary.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
