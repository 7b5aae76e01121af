"""Results that several tests save or open; made once, and not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.models import FusedAttention, Nested, Residual, Stand, Tied, compressed, nested_inputs
from secateur.export import save_directory


@pytest.fixture(scope="session")
def residual() -> Stand:
    """A result of the user's class."""
    torch.manual_seed(1)
    return compressed(Residual(), torch.randn(1, 3, 8, 8))


@pytest.fixture(scope="session")
def attention() -> Stand:
    """A result that is a graph module."""
    torch.manual_seed(1)
    return compressed(FusedAttention(), torch.randn(1, 6, 16))


@pytest.fixture(scope="session")
def tied() -> Stand:
    torch.manual_seed(1)
    return compressed(Tied(), torch.randint(0, 7, (2, 5)))


@pytest.fixture(scope="session")
def nested() -> Stand:
    torch.manual_seed(1)
    return compressed(Nested(), nested_inputs())


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, residual: Stand, attention: Stand, tied: Stand, nested: Stand) -> dict[str, Path]:
    """A directory of each result, without ONNX; tests that damage one work on a copy."""
    where = tmp_path_factory.mktemp("saved")
    results = {"residual": residual, "attention": attention, "tied": tied, "nested": nested}
    return {name: save_directory(result, where / name, onnx=False) for name, result in results.items()}
