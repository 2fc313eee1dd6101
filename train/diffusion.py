"""Trains a diffusion transformer to draw what texts say: `accelerate launch -m train.diffusion configs/dit.yaml key=value ...`"""

import sys

from fusion.recipes.diffusion import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
