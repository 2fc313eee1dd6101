"""What oneDNN keeps is bounded before torch is loaded, unless the environment says otherwise."""

import os
import subprocess
import sys

import pytest

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@pytest.mark.parametrize(("asked", "kept"), [({}, "256"), (dict.fromkeys(NAMES, "7"), "7")])
def test_programs_bound_what_is_kept(asked, kept, root):
    code = "import os, sys; from fusion.cli.main import main; main(['train', '--help']); "
    code += f"print([os.environ[name] for name in {NAMES}], 'torch' in sys.modules)"
    bare = {name: value for name, value in os.environ.items() if name not in NAMES}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=bare | asked, capture_output=True, text=True, check=True
    ).stdout
    assert said.splitlines()[-1] == f"{[kept, kept]} False"
