"""Compare several evaluations side by side: `python -m eval.beside -o OUT EVALUATION ...`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["beside", *sys.argv[1:]]))
