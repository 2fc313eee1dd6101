"""Train a text-to-image diffusion transformer.

Usage: `accelerate launch -m train.diffusion configs/dit.yaml key=value ...`
"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "diffusion", *sys.argv[1:]]))
