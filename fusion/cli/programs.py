"""Commands of `fusion` that parse their own options: train, eval, tune, compare, doctor, benchmark."""

import os
import sys
from collections.abc import Callable, Sequence

Main = Callable[[list[str]], int]
"""A program: its arguments to its exit status."""


def bound_onednn_caches() -> None:
    """Limit the caches of oneDNN and of torch's bridge to it to 256 compiled shapes instead of 1,024.

    Has an effect only before torch is first imported. A cached shape of a bf16 product takes about 0.7 MB, and packed
    documents bring new shapes with every step. Values already set in the environment are left.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, "256")


def _main_of_unified() -> Main:
    from fusion.recipes.unified import main

    return main


def _main_of_diffusion() -> Main:
    from fusion.recipes.diffusion import main

    return main


def _main_of_llm() -> Main:
    from fusion.recipes.llm import main

    return main


def _main_of_codec() -> Main:
    from fusion.recipes.codec import main

    return main


def _main_of_demo() -> Main:
    from fusion.recipes.demo import main

    return main


RECIPES = {
    "unified": (_main_of_unified, "fine-tune an LLM into a model of text and images"),
    "diffusion": (_main_of_diffusion, "train a diffusion transformer"),
    "llm": (_main_of_llm, "pretrain a small language model and its tokenizer"),
    "codec": (_main_of_codec, "train a small autoencoder of images"),
    "demo": (_main_of_demo, "all of these in a quarter of an hour, with a report"),
}


def train(arguments: Sequence[str]) -> int:
    """Run `fusion train [RECIPE] CONFIG.yaml [key=value ...]`; return its exit status.

    The recipe may be left out where the config determines it.
    """
    usage = "usage: fusion train [RECIPE] CONFIG.yaml [key=value ...]\n\nrecipes:\n" + "\n".join(
        f"  {name:<10}{words}" for name, (_, words) in RECIPES.items()
    )
    usage += (
        "\n\nexamples:\n  fusion train configs/unified.yaml model.llm=PATH data.path=FOLDER\n  fusion train codec "
        "configs/codec.yaml data.path=FOLDER"
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    words = list(arguments)
    recipe = words.pop(0) if words[0] in RECIPES else _recipe_of(words)
    return RECIPES[recipe][0]()(words)


def _recipe_of(words: Sequence[str]) -> str:
    """Determine the recipe from the sections of a config; raises ValueError if the first word is not a file."""
    from fusion.common.config import keys

    if "=" in words[0]:
        raise ValueError(f"{words[0]}: give a recipe ({', '.join(RECIPES)}) or a YAML file before key=value words")
    found = keys(words[0], words[1:])
    tells = {"text_to_image": "diffusion", "llm": "demo", "network": "codec", "vocab_size": "llm"}
    return next((recipe for key, recipe in tells.items() if key in found), "unified")


def evaluate(arguments: Sequence[str]) -> int:
    """Run `fusion eval` with these arguments; return its exit status."""
    from fusion.evaluation.run import main

    return main(arguments)


def beside(arguments: Sequence[str]) -> int:
    """Run `fusion beside` with these arguments; return its exit status."""
    from fusion.evaluation.side_by_side import main

    return main(arguments)


def runs(arguments: Sequence[str]) -> int:
    """Run `fusion runs` with these arguments; return its exit status."""
    from fusion.evaluation.runs import main

    return main(arguments)


def tune(arguments: Sequence[str]) -> int:
    """Run `fusion tune` with these arguments; return its exit status."""
    from fusion.tuning.tune import main

    return main(arguments)


def compare(arguments: Sequence[str]) -> int:
    """Run `fusion compare` with these arguments; return its exit status."""
    from fusion.comparison.compare import main

    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: fusion compare CONFIG.yaml [key=value ...]\n\nexample:\n  fusion compare "
            "configs/compare/shapes.yaml"
        )
        return 0 if arguments else 2
    return main(arguments)


def doctor(arguments: Sequence[str]) -> int:
    """Run `fusion doctor` with these arguments; return its exit status."""
    from fusion.doctor.doctor import main

    return main(arguments)


def benchmark(arguments: Sequence[str]) -> int:
    """Run `fusion benchmark NAME ...` with these arguments; return its exit status."""
    from fusion.evaluation.benchmarks.table import BENCHMARKS

    if arguments and arguments[0] in BENCHMARKS:
        return BENCHMARKS[arguments[0]](arguments[1:])
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    print(
        f"usage: fusion benchmark NAME ...\n\nnames: {', '.join(BENCHMARKS)}; each has a --help",
        file=sys.stdout if asked else sys.stderr,
    )
    return 0 if asked else 2


PROGRAMS: dict[str, tuple[str, Main]] = {
    "train": ("train a model by a recipe and its config", train),
    "eval": ("evaluate a model on the suites of the built-in world", evaluate),
    "beside": ("put several evaluations beside each other", beside),
    "runs": ("compare fine-tuning runs on one data set", runs),
    "tune": ("find the sampling parameters that a model draws best with", tune),
    "compare": ("train architectures of one size on the same data and compare them", compare),
    "doctor": ("say what is wrong with a training run", doctor),
    "benchmark": ("draw, judge and score the field's benchmarks", benchmark),
}
