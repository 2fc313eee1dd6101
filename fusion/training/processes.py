"""Several processes of one machine that train as one, each with its share of the cores.

Threads of one process wait for each other at every operation, processes once a step: with two cores that are not always
free, two processes of one thread do more than one of two (docs/log.md).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

INTERRUPTED = 130
"""Exit status of a rank that a signal ended, after it has written a checkpoint."""
PATIENCE = 20.0
"""Seconds that the other ranks have to end by themselves when one has failed."""


def this_rank() -> PartialState:
    """Which of how many ranks this process is. On CPUs accelerate has to be told so by whoever asks first, or each rank
    takes itself for all."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def leave() -> None:
    """Part from the other ranks at a program's end. Threads of a group that is left to the interpreter's last moments
    can abort a rank (status -6) that has done all its work."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_ranks(count: int, module: str, arguments: Sequence[str]) -> int:
    """`python -m module arguments` as `count` ranks on CPUs; returns 0, or the first exit status that is another.

    SIGINT and SIGTERM are passed on, so that every rank ends as it would alone. When a rank fails, the others are
    ended.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    common = os.environ | {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": str(max(1, cores // count)),
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",  # the name of a laptop may lead nowhere
    }
    command = [sys.executable, "-m", module, *arguments]
    # In a session of their own: a signal from the terminal comes to this process alone, and once from here to each of
    # them.
    ranks = [
        subprocess.Popen(command, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, start_new_session=True)
        for rank in range(count)
    ]
    before = {
        number: signal.signal(number, lambda number, _: _send(ranks, number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen]) -> int:
    """Until all have ended; the first status that is not 0, if there is one."""
    failed, deadline = 0, float("inf")
    while None in (statuses := [rank.poll() for rank in ranks]):
        if not failed and (failed := next(filter(None, statuses), 0)):
            deadline = time.monotonic() + PATIENCE
        if time.monotonic() > deadline:
            _send(ranks, signal.SIGKILL)
        time.sleep(0.1)
    return failed or next(filter(None, statuses), 0)


def _send(ranks: list[subprocess.Popen], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)
