"""Benchmarks by name: the program of each, imported when it is run."""

from collections.abc import Callable, Sequence


def draw(arguments: Sequence[str]) -> int:
    """Draw a benchmark's images in its official layout."""
    from fusion.evaluation.benchmarks.draw import main

    return main(arguments)


def edit(arguments: Sequence[str]) -> int:
    """Make the edits that a benchmark asks for, in its official layout."""
    from fusion.evaluation.benchmarks.edit import main

    return main(arguments)


def geneval(arguments: Sequence[str]) -> int:
    """Judge a folder of GenEval's images."""
    from fusion.evaluation.benchmarks.geneval import main

    return main(arguments)


def dpg(arguments: Sequence[str]) -> int:
    """Judge a folder of DPG-Bench's images."""
    from fusion.evaluation.benchmarks.dpg import main

    return main(arguments)


def tifa(arguments: Sequence[str]) -> int:
    """Judge a folder of GenEval 2's images by Soft-TIFA."""
    from fusion.evaluation.benchmarks.soft_tifa import main

    return main(arguments)


def imgedit(arguments: Sequence[str]) -> int:
    """Judge the edits of ImgEdit."""
    from fusion.evaluation.benchmarks.imgedit import main

    return main(arguments)


def read(arguments: Sequence[str]) -> int:
    """Turn what a benchmark's official judge wrote into scores."""
    from fusion.evaluation.benchmarks.official_scores import main

    return main(arguments)


def distribution(arguments: Sequence[str]) -> int:
    """Compute distances of drawn images to true ones."""
    from fusion.evaluation.benchmarks.distribution.distribution import main

    return main(arguments)


def text(arguments: Sequence[str]) -> int:
    """Run text benchmarks on a unified model and on its LLM."""
    from fusion.evaluation.benchmarks.text.text import main

    return main(arguments)


def understanding(arguments: Sequence[str]) -> int:
    """Answer questions about images."""
    from fusion.evaluation.benchmarks.understanding.understanding import main

    return main(arguments)


def lmms(arguments: Sequence[str]) -> int:
    """Run lmms-eval with a unified model."""
    from fusion.evaluation.benchmarks.understanding.lmms import main

    return main(arguments)


BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {
    "draw": draw,
    "edit": edit,
    "geneval": geneval,
    "dpg": dpg,
    "tifa": tifa,
    "imgedit": imgedit,
    "read": read,
    "distribution": distribution,
    "text": text,
    "understanding": understanding,
    "lmms": lmms,
}
