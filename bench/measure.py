"""CPU time of functions run in turn, a description of the machine, and records of reproducible results."""

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

from fusion.common.provenance import commit, dirty

RESULTS = Path(__file__).parent / "results"
SIDE = 1024  # of the matrices whose product is the yardstick


# Asked when the program begins: the code that runs is that of this moment.
COMMIT, DIRTY = commit(), dirty()


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU time of this process during a call. With one thread it does not grow while others use the machine, as wall
    time does."""
    began = time.process_time()
    function()
    return time.process_time() - began


class Gemm:
    """The product of two large square matrices: what this machine reaches at that moment."""

    def __init__(self, dtype: torch.dtype):
        self.a, self.b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)

    def __call__(self) -> None:
        torch.mm(self.a, self.b)

    @staticmethod
    def gflops(seconds: float) -> float:
        """Billions of floating-point operations per second, given the time of one product."""
        return 2 * SIDE**3 / seconds / 1e9


def in_turn(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """CPU seconds of each function in each round; a round calls each once, so that what disturbs one disturbs all."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + rounds):
        for name, function in functions.items():
            seconds = cpu_seconds(function)
            if number >= warm_up:
                times[name].append(seconds)
    return times


def device() -> str:
    """The processor's name, as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def write(name: str, figures: Mapping[str, Any], on: str = "cpu") -> Path:
    """Write bench/results/<name>_<date>_<on>.json: figures, and all that it takes to repeat them; what they say of the
    device comes before it."""
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
    path.write_text(json.dumps(facts | dict(figures), indent=1) + "\n", encoding="utf-8")
    return path
