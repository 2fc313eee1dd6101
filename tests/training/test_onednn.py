"""What oneDNN keeps is bounded before torch is loaded, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@pytest.mark.parametrize("package", ["train", "eval"])
@pytest.mark.parametrize(("asked", "kept"), [({}, "256"), (dict.fromkeys(NAMES, "7"), "7")])
def test_programs_bound_what_is_kept(package, asked, kept, root):
    code = f"import {package}, os, sys; print([os.environ[name] for name in {NAMES}], 'torch' in sys.modules)"
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    said = subprocess.run([sys.executable, "-c", code], cwd=root, env=bare | asked, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"{[kept, kept]} False"
