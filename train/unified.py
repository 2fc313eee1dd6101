"""Fine-tune an LLM into a model of text and images.

Usage: `accelerate launch -m train.unified configs/unified.yaml key=value ...`
"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "unified", *sys.argv[1:]]))
