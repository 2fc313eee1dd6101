"""What every test shares: fixed seeds, quiet threads, tiny models, and the way to the real data."""

import os
from pathlib import Path

# Before anything imports a Hugging Face library: a test never reaches for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jaxtyping
import numpy as np
import pytest
import torch

import fusion
from fusion.testing import tiny_llms as families

ROOT = Path(__file__).resolve().parent.parent

# AutoModel and its kin read saved models in tests.
fusion.register()


@pytest.fixture(autouse=True)
def _fixed_seeds():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def _threads():
    # Tiny matrices gain nothing from a third thread, and lose much to each other's when tests share the machine.
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """The byte-level BPE tokenizer of fusion/testing/tiny_llms.py; treat it as read-only, or copy it."""
    return families.tiny_tokenizer()


@pytest.fixture(scope="session")
def packed():
    """Two rows of all that a document can have; treat it as read-only."""
    from fusion.testing.mixed_documents import everything

    return everything()


@pytest.fixture
def tiny_llm():
    """`tiny_llm(family, **config_overrides)`: a fresh random language model of the family (see
    fusion/testing/tiny_llms.py)."""
    return families.tiny_llm


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (emoji, alice, benchmarks): `$FUSION_SHARED/data`, else `../shared/data`; skips without
    it."""
    folder = Path(os.environ.get("FUSION_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FUSION_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture
def unchecked():
    """No shape checks: for tests that call small functions so often that the checks would take most of the time; other
    tests have them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def subject(monkeypatch):
    """A stub that fusion.evaluation.benchmarks.draw draws with."""
    from tests.support import judges

    return judges.stubbed(monkeypatch)
