"""Real architectures come out as they did before."""

from __future__ import annotations

import json
import warnings

import pytest

from sample import KEPT, MODELS, outcome


@pytest.mark.parametrize("name", MODELS)
def test_an_architecture_comes_out_as_before(name: str) -> None:
    """A difference that is meant is kept by `python tests/sample.py`."""
    pytest.importorskip({"hf": "transformers"}.get(name.partition(":")[0], name.partition(":")[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' own
        found = outcome(name)
    assert found == json.loads(KEPT.read_text())[name]
