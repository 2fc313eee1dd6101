"""Train a small autoencoder on a folder of images: `python -m train.codec configs/codec.yaml data.path=FOLDER`"""

import sys

from fusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "codec", *sys.argv[1:]]))
