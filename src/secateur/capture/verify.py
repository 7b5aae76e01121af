"""Closing a capture: its facts, and the check that its program computes what the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.capture.capture import Capture
from secateur.capture.facts import cuda_devices, settle
from secateur.capture.flat import FlatModel
from secateur.capture.trees import copied
from secateur.errors import CaptureError

TOLERANCE = 1e-4
"""Largest difference between program and model, relative to the scale of an output; wrong captures differ by far more."""


def close_capture(capture: Capture, expected: Sequence[Any]) -> Capture:
    """Observe a capture on its own inputs, and raise unless it returns what the model returned."""
    found = settle(capture.program, capture.flat_inputs())
    check_equal(found, expected)
    return capture


def check_equal(found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Raise unless the flat outputs of a program are those of the model."""
    if len(found) != len(expected):
        raise CaptureError(f"The captured graph returns {len(found)} values where the model returns {len(expected)}.")
    for position, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if not _is_equal(ours, theirs):
            raise CaptureError(f"Output {position} of the captured graph is {_describe(ours)}, but the model returned {_describe(theirs)}.")


def check_on(capture: Capture, tensors: Sequence[Tensor], run: FlatModel, *, may_refuse: bool = False) -> bool:
    """Compare program and model on other tensors, if the model takes them, and the program too where it ``may_refuse``.

    Says whether there was anything to compare.
    """
    try:
        expected = run.outputs_on(tensors)
    except Exception:  # noqa: BLE001 - what the dense model refuses, its graph need not take
        return False
    remaining = iter(copied(tensors))
    flat = [next(remaining) if isinstance(x, Tensor) else x for x in capture.flat_inputs()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(capture.program, flat)):
            found = capture.program(*flat)
    except Exception:
        if may_refuse:
            return False
        raise
    check_equal(found, expected)
    return True


def _is_equal(ours: Any, theirs: Any) -> bool:
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return type(ours) is type(theirs) and bool(ours == theirs)
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point() and not ours.is_complex():
        return torch.equal(ours, theirs)
    finite = theirs[torch.isfinite(theirs)]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(ours, theirs, rtol=0.0, atol=_tolerance(ours.dtype) * scale, equal_nan=True)


def _tolerance(dtype: torch.dtype) -> float:
    return max(TOLERANCE, 16 * torch.finfo(dtype).eps)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)} with mean magnitude {float(value.abs().to(torch.float64).mean()):.6g}"
    return repr(value)
