"""What devices can do, by their data sheets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fusion.training.precision import speed

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What a data sheet says. bf16, fp32: dense operations per second; memory: bytes, None where it is not known."""

    name: str
    bf16: float
    fp32: float
    memory: float | None = None

    def speed(self, precision: str) -> float:
        """Operations per second in bf16 or fp32."""
        return self.bf16 if precision == "bf16" else self.fp32


# NVIDIA's data sheets: tensor cores without sparsity (of the 4090, with sums in fp32), fp32 without TF32, which PyTorch
# leaves off. Memory as the driver reports it.
DEVICES: dict[str, Callable[[], Device]] = {
    "h100": lambda: Device("H100 SXM", 989e12, 67e12, 79.6 * GIB),
    "h200": lambda: Device("H200 SXM", 989e12, 67e12, 139.8 * GIB),
    "a100": lambda: Device("A100 SXM 80 GB", 312e12, 19.5e12, 79.2 * GIB),
    "4090": lambda: Device("RTX 4090", 165.2e12, 82.6e12, 24.0 * GIB),
    "cpu": lambda: Device("this CPU, measured", speed(torch.bfloat16), speed(torch.float32)),
}


def name_of(device: torch.device) -> str | None:
    """The GPU that training runs on, as DEVICES calls it; None for one that is not there, and for whatever is no NVIDIA
    GPU."""
    told = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    return next((name for name in DEVICES if name in told), None)


def this_device(device: torch.device) -> Device | None:
    """What that GPU can do."""
    name = name_of(device)
    return DEVICES[name]() if name else None
