"""Measure time and peak memory of one attention layer on ever larger images: `python -m bench.attention`

Softmax and linear attention, width 1,536 in 24 heads, as in SD3 medium, without gradients, fp32, all threads; linear
attention is SANA's, in heads of 32. A latent of 16 x 512 x 512 in patches of 2 is 65,536 tokens: the scores of all
heads in 16 bits would take 192 GiB, if they were ever materialised.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from bench import measure
from fusion.diffusion.networks.blocks import Attention
from fusion.diffusion.networks.sana import LinearAttention
from fusion.generation.cost import flops, imagined

WIDTH, HEADS, LINEAR_HEADS = 1536, 24, 48
SIDES = (64, 128, 256, 512)  # of latents in patches of 2
KINDS = {
    "softmax": lambda: Attention(WIDTH, HEADS),
    "linear": lambda: LinearAttention(WIDTH, LINEAR_HEADS, qk_norm=False),
}


def rows(side: int) -> int:
    """Return the number of patches of a square latent."""
    return (side // 2) ** 2


def scores_gib(side: int) -> float:
    """Return the memory in GiB of all softmax attention scores at once, in 16 bits."""
    return rows(side) ** 2 * HEADS * 2 / 2**30


@torch.inference_mode()
def one(kind: str, side: int) -> dict[str, float]:
    """Measure one call: seconds, and by how many MiB the process grew beyond layer and input."""
    layer, h = KINDS[kind](), torch.randn(1, rows(side), WIDTH)
    layer(h[:, :256])  # warm up: one-time work is not timed
    before = peak_mib()
    began = time.perf_counter()
    layer(h)
    return {"seconds": round(time.perf_counter() - began, 3), "peak MiB": round(peak_mib() - before, 1)}


def peak_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def counted(kind: str, side: int) -> float:
    """Count the floating-point operations of one call, in billions."""
    with imagined(), torch.no_grad():
        layer = KINDS[kind]()
        return flops(lambda: layer(torch.randn(1, rows(side), WIDTH))) / 1e9


def apart(kind: str, side: int) -> dict[str, float]:
    """Run `one` in a separate process, so that nothing else has raised its peak memory."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.attention", "--one", kind, str(side)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str]) -> int:
    """Measure each kind of attention at each size, print the figures, and write them to bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIDE"), help="one measurement in this process, as JSON")
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="sides of the latents")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]))))
        return 0
    figures = []
    for side in options.sides:
        for kind in KINDS:
            found = {
                "latent": f"16 x {side} x {side}",
                "rows": rows(side),
                "kind": kind,
                **apart(kind, side),
                "GFLOP": round(counted(kind, side), 1),
            }
            figures.append(
                found | ({"scores in 16 bits, GiB": round(scores_gib(side), 2)} if kind == "softmax" else {})
            )
            print(", ".join(f"{key} {value}" for key, value in figures[-1].items()), flush=True)
    print(measure.write("attention", {"width": WIDTH, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
