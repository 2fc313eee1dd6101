"""Programs that measure and report: run them from a clone, as `python -m eval.<program>`."""

import os

# What oneDNN compiled for the last 1,024 shapes is kept, and kept again by torch's bridge to it: about 0.7 MB for each shape of a bf16 product, and
# packed documents bring new ones with every step. Read once, when torch is first loaded.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "256")
