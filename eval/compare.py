"""Compare architectures of one size trained on the same data: `python -m eval.compare configs/compare/NAME.yaml`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
