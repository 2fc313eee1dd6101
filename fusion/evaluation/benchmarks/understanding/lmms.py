"""lmms-eval on a unified model, which reads images and answers in text.

The harness is github.com/EvolvingLMMs-Lab/lmms-eval, PyPI lmms_eval.

    fusion benchmark lmms --model fusion --model_args pretrained=MODEL --tasks mme --batch_size 8 --output_path out/mme

Every option is lmms-eval's own. model_args: pretrained, dtype and seed; and max_new_tokens, temperature and top_p,
which override the task's.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run lmms-eval's own program with the model `fusion`; return 1, and print one line, if it is not installed."""
    try:
        from lmms_eval.__main__ import cli_evaluate

        from fusion.evaluation.benchmarks.understanding import lmms_model as looker
    except ModuleNotFoundError as error:
        print(
            f"error: images are asked about by lmms-eval, which is not installed ({error}): pip install lmms_eval",
            file=sys.stderr,
        )
        return 1
    looker.register()
    sys.argv[1:] = argv  # where it looks for its options
    cli_evaluate()
    return 0
