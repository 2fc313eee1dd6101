"""The bundled model answers as it did when its answers were written down, up to the rounding of another CPU."""

import json

import numpy as np
import pytest

from tests.support import golden_outputs

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def found() -> dict[str, list]:
    return golden_outputs.measure()


@pytest.mark.parametrize("name", ["logits", "prediction", "image"])
def test_the_bundled_model_answers_as_it_did(found, name):
    expected = json.loads(golden_outputs.PATH.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found[name], expected[name], atol=TOLERANCE, rtol=TOLERANCE)
