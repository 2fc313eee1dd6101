"""processes.py: several real processes as one job: how they end, alone and together, and what ranks are told."""

import os
import signal
import threading
import time

import pytest

from fusion.training import processes as ranks

PROGRAM = """
import os, signal, sys, time
rank, (what,) = int(os.environ["RANK"]), sys.argv[1:]
assert os.environ["WORLD_SIZE"] == "2" and os.environ["MASTER_PORT"].isdigit()
assert int(os.environ["OMP_NUM_THREADS"]) >= 1
open(f"{what}-{rank}", "w").close()
if what == "fail" and rank == 1:
    sys.exit(3)
if what in ("fail", "wait"):
    def end(*_):
        open(f"asked-{rank}", "w").close()
        sys.exit(130)
    signal.signal(signal.SIGTERM, end)
    open(f"ready-{rank}", "w").close()
    time.sleep(60)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the program in it, from which Python imports."""
    (tmp_path / "a_rank.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_ranks_that_end_well_give_status_zero(here):
    assert ranks.run_ranks(2, "a_rank", ["well"]) == 0
    assert (here / "well-0").exists() and (here / "well-1").exists()


def test_when_one_rank_fails_the_others_are_ended_and_its_status_counts(here, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", 0.5)
    began = time.monotonic()
    assert ranks.run_ranks(2, "a_rank", ["fail"]) == 3
    assert time.monotonic() - began < 30


def test_a_signal_reaches_every_rank_once_and_handlers_are_put_back(here):
    before = signal.getsignal(signal.SIGTERM)

    def ask():
        while not all((here / f"ready-{rank}").exists() for rank in (0, 1)):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert ranks.run_ranks(2, "a_rank", ["wait"]) == ranks.INTERRUPTED
    assert (here / "asked-0").exists() and (here / "asked-1").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_module_that_is_not_there_is_a_failure(here, capfd):
    assert ranks.run_ranks(2, "no_such_module", []) == 1
    assert "No module named no_such_module" in capfd.readouterr().err


COUNTS = """
import os
os.environ.pop("ACCELERATE_USE_CPU")  # as torchrun starts it
import torch
from fusion.training.processes import leave, this_rank
rank = this_rank()
open(f"{rank.process_index}-of-{rank.num_processes}", "w").close()
leave()
assert not torch.distributed.is_initialized() and rank.process_index in (0, 1)
leave()  # nobody is there to part from
"""


def test_ranks_on_cpus_know_of_each_other_however_they_were_started(here, root, monkeypatch):
    (here / "a_count.py").write_text(COUNTS)
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{root}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert ranks.run_ranks(2, "a_count", []) == 0
    assert {path.name for path in here.glob("*-of-*")} == {"0-of-2", "1-of-2"}
