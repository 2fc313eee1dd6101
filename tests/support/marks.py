"""Marks of tests that need what not every machine has."""

from importlib.util import find_spec

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

needs_shards = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reduce_scatter_unused_params"),
    reason=f"torch {torch.__version__} is older than 2.13, and cannot share weights out",
)

needs_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
