"""The faster precision on this machine: bf16 autocast where the hardware multiplies bf16 faster, else fp32."""

import time
from functools import cache

import torch
import torch.nn.functional as F

PRECISIONS = ("auto", "fp32", "bf16")
ROWS, WIDTH, OUT = 2048, 256, 1024  # of the product that is measured


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a training step. precision: "fp32", "bf16", or "auto", which measures CPUs and takes bf16
    elsewhere."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = "bf16" if device.type != "cpu" or bf16_is_faster() else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@cache
def bf16_is_faster() -> bool:
    """Whether a linear layer's product takes less time in bf16 on this CPU; a fifth of a second, once per process.

    CPUs with AMX tiles gain two times and more, and so does an EPYC with AVX512-BF16 (217 against 99 GFLOP/s per core);
    on a Xeon that has it, fp32 was twice as fast (150 against 80), and without either bf16 is emulated. The margin pays
    for the casts around each product.
    """
    return _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32)


def speed(dtype: torch.dtype) -> float:
    """Operations per second of a linear layer's product on this CPU, two for a multiply-add."""
    return 2 * ROWS * WIDTH * OUT / _seconds(dtype)


def _seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(OUT, WIDTH, dtype=dtype)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - began)
    return min(times)
