"""Fine-tunes an LLM into a model of text and images: `accelerate launch -m train.unified configs/unified.yaml key=value ...`"""

import sys

from fusion.recipes.unified import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
