"""Train and show the demo: `python -m train.demo [CONFIG.yaml] [key=value ...]`, configs/demo.yaml by default."""

import sys
from pathlib import Path

from fusion.cli.main import main

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"

if __name__ == "__main__":
    words = sys.argv[1:]
    config = words if words and "=" not in words[0] else [str(CONFIG), *words]
    sys.exit(main(["train", "demo", *config]))
