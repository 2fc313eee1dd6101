"""Measure CPU time of functions run in turn, describe the machine, and record reproducible results."""

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from fusion.common.atomic import save
from fusion.common.provenance import commit, dirty

RESULTS = Path(__file__).parent / "results"
SIDE = 1024  # of the matrices whose product is the reference


# Read when the program starts: the code that runs is the code of this moment.
COMMIT, DIRTY = commit(), dirty()


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Return the CPU time of this process during a call.

    With one thread it does not grow while others use the machine, as wall time does.
    """
    began = time.process_time()
    function()
    return time.process_time() - began


class Gemm:
    """A product of two large square matrices, to measure what this machine reaches at that moment."""

    def __init__(self, dtype: torch.dtype):
        self.a, self.b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)

    def __call__(self) -> None:
        torch.mm(self.a, self.b)

    @staticmethod
    def gflops(seconds: float) -> float:
        """Return billions of floating-point operations per second, given the time of one product."""
        return 2 * SIDE**3 / seconds / 1e9


def in_turn(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Return the CPU seconds of each function in each round.

    A round calls each function once, so that what disturbs one disturbs all. warm_up: rounds that are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + rounds):
        for name, function in functions.items():
            seconds = cpu_seconds(function)
            if number >= warm_up:
                times[name].append(seconds)
    return times


def device() -> str:
    """Return the processor's name, as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def write(name: str, figures: Mapping[str, Any], on: str = "cpu") -> Path:
    """Write bench/results/<name>_<date>_<on>.json and return its path.

    The file holds the figures and all that it takes to repeat them. on: the kind of device in the file's name. Entries
    of `figures` override the recorded facts, such as `device`.
    """
    facts = {
        "command": f"python -m bench.{name} " + " ".join(sys.argv[1:]),
        "commit": COMMIT,
        "dirty": DIRTY,
        "date": date.today().isoformat(),
        "device": f"{device()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}_{facts['date']}_{on}.json"
    save(json.dumps(facts | dict(figures), indent=1) + "\n", path)
    return path
