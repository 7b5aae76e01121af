"""Graphs with open sizes take half a second to capture, so every model is captured once."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from secateur.capture import Capture, capture
from secateur.rewrite import apply

_CAPTURES: dict[int, tuple[nn.Module, Capture]] = {}


def _once(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, graph: bool) -> Capture:
    if id(model) not in _CAPTURES:
        _CAPTURES[id(model)] = model, capture(model, args, kwargs, graph=graph)
    return _CAPTURES[id(model)][1]


@pytest.fixture(autouse=True)
def _one_capture_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "capture", _once)
