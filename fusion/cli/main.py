"""Entry point of the command line `fusion`: run the command given as the first argument.

Commands: train, eval, plan, tune, compare, doctor, benchmark, data, generate, edit, chat, describe, inspect.

An error is one line on stderr and exit status 2; FUSION_DEBUG=1 shows the traceback. Nothing heavy is imported before a
command runs, so that --help is fast.
"""

import os
import sys
from collections.abc import Sequence

from fusion.cli.parser import parser
from fusion.cli.programs import PROGRAMS, bound_onednn_caches


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 0 on success, 2 after an error, 130 when interrupted; `data`, `doctor` and programs that fail return 1 too.
    arguments: default `sys.argv[1:]`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    bound_onednn_caches()
    try:
        if words and words[0] in PROGRAMS:
            return PROGRAMS[words[0]][1](words[1:])
        options = parser().parse_args(words)
        from fusion.cli.commands import COMMANDS

        return COMMANDS[options.command](options) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has exited, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("FUSION_DEBUG") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"fusion: error: {message}", file=sys.stderr)
        return 2
    return 0
