"""Copy a model into the package, for `fusion.load(NAME)`: `python -m train.bundle out/longer/model shapes`"""

import sys
from pathlib import Path

import torch

import fusion
from fusion.generation.api import BUNDLED

LIMIT = 8_000_000
"""Bytes of weights that everybody who clones or installs the project has to carry."""


def bundle(model: str | Path, name: str) -> Path:
    """Save a copy of the model in a folder in bf16 as fusion/bundled/`name`, in place of an earlier one; return where.
    Raises ValueError if its weights take more than LIMIT bytes."""
    whole = fusion.load(Path(model).resolve())  # a folder, never the bundled model of that name
    size = 2 * sum(p.numel() for p in whole.model.parameters())
    if size > LIMIT:
        raise ValueError(
            f"{model}: {size / 1e6:.1f} MB of weights in bf16, and {LIMIT / 1e6:.0f} MB is the limit of what the "
            "package carries"
        )
    whole.model.config.text_config._name_or_path = ""  # do not publish the local path of the LLM
    whole.to(dtype=torch.bfloat16).save_pretrained(BUNDLED / name)
    return BUNDLED / name


def main(argv: list[str]) -> int:
    """Run the program with MODEL_FOLDER and NAME; return 0, or 1 with one line on stderr."""
    if len(argv) != 2 or not argv[1].isidentifier():
        print("usage: python -m train.bundle MODEL_FOLDER NAME", file=sys.stderr)
        return 1
    try:
        print(bundle(*argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
