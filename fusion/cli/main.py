"""Entry point of the command line `fusion`: runs the command that is named first.

Commands: train, eval, plan, tune, compare, doctor, benchmark, data, generate, edit, chat, describe, inspect.

A mistake is one line on stderr and exit status 2; FUSION_DEBUG=1 shows where it came from. Nothing heavy is imported
before a command runs, so that --help comes at once.
"""

import os
import sys
from collections.abc import Sequence

from fusion.cli.parser import parser
from fusion.cli.programs import PROGRAMS, bound_onednn_caches


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 2 after an error, 130 when interrupted; `data`, `doctor` and programs
    that fail have a 1 too."""
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
    except BrokenPipeError:  # whoever read our output has gone: that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get("FUSION_DEBUG") == "1":
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"fusion: error: {message}", file=sys.stderr)
        return 2
    return 0
