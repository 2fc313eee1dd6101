"""Pretrain a small language model and its tokenizer: `python -m train.llm configs/llm.yaml key=value ...`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "llm", *sys.argv[1:]]))
