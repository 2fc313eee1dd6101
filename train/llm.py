"""Pretrains a small language model and its tokenizer: `python -m train.llm configs/llm.yaml key=value ...`"""

import sys

from fusion.recipes.llm import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
