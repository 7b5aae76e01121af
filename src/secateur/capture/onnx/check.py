"""Whether a model read from a file gives what ONNX Runtime gives for the file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.capture.onnx.file import Port
from secateur.capture.onnx.model import OnnxModel
from secateur.errors import CaptureError, MissingExtraError

TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime and PyTorch, relative to the scale of an output."""
# ONNX Runtime's sigmoid and softmax are approximations, which shows where all outputs are tiny.
_FLOOR = 1e-6
# Sizes that are tried where a file leaves them open, all but the number of samples alike.
_GUESSES = (64, 32, 16, 224, 48, 256, 320, 512, 576, 8, 1)


def check_file(
    model: OnnxModel, path: Path, inputs: Sequence[Tensor] | None = None, *, fixed: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Compare a model with its file on inputs, or on random ones of sizes that ONNX Runtime takes; returns those inputs.

    Raises :class:`CaptureError` where an output differs, or no inputs that the file takes were found.
    """
    run = Session(path)
    found, expected = _accepted(model, run, inputs, fixed or {})
    try:
        with torch.no_grad():
            outputs = model(*[x.clone() for x in found])
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{path} runs in ONNX Runtime, but not as read here: {type(error).__name__}: {error}") from error
    for name, ours, theirs in zip(run.outputs, outputs if isinstance(outputs, tuple) else (outputs,), expected, strict=True):
        try:
            compare(name, ours, theirs)
        except CaptureError as error:
            raise CaptureError(f"{path} was not read as ONNX Runtime reads it: {error}. Please report the file's operators.") from error
    return found


def _accepted(
    model: OnnxModel, run: Session, inputs: Sequence[Tensor] | None, fixed: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    reason = ""
    for each in [tuple(inputs)] if inputs is not None else _guesses(model):
        try:
            return each, run({**fixed, **dict(zip(model.file_names.inputs.values(), each, strict=True))})
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises errors of its own for each kind of failure
            reason = reason or str(error).strip().splitlines()[0]
    ports = "; ".join(map(str, model.ports))
    told = "the given inputs" if inputs is not None else "any inputs that were tried"
    raise CaptureError(f"ONNX Runtime does not run {run.path} on {told} ({ports}): {reason}. Give inputs that it takes.")


def _guesses(model: OnnxModel) -> Iterator[tuple[Tensor, ...]]:
    counts = {port.shape[0] for port in model.ports if port.shape and port.shape[0] is not None}
    sizes = _GUESSES if any(port.open for port in model.ports) else _GUESSES[:1]
    for samples in (2, 1) if len(sizes) > 1 else (2,):
        for size in sizes:
            guess = lambda name, dim, n=samples, m=size: n if dim == 0 or name in counts else m  # noqa: E731
            yield random_inputs(model.ports, model.bounds, guess, seed=size)


def random_inputs(
    ports: Sequence[Port], bounds: Mapping[str, int], size: Callable[[int | str | None, int], int], seed: int
) -> tuple[Tensor, ...]:
    """Random inputs; ``size`` tells a size that the file leaves open, by its name and dimension.

    Whole numbers are below their bound, or below 2 where none is known.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for port in ports:
        shape = [n if isinstance(n, int) else size(n, dim) for dim, n in enumerate(port.shape)]
        if port.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(port.dtype))
        else:
            made.append(torch.randint(0, bounds.get(port.name, 2), shape, generator=generator).to(port.dtype))
    return tuple(made)


class Session:
    """An ONNX file, opened in ONNX Runtime on the CPU."""

    def __init__(self, path: Path) -> None:
        try:
            runtime = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx", "Running an ONNX file") from error
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        self.path = path
        try:
            self._session: Any = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CaptureError(f"ONNX Runtime cannot open {path}: {str(error).strip().splitlines()[0]}") from error
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs in order for inputs by name, of which needless ones are left away."""
        arrays = {name: feeds[name].detach().cpu().numpy() for name in self.inputs}
        return [torch.from_numpy(array) if array.ndim else torch.tensor(array) for array in self._session.run(None, arrays)]


def compare(name: str, found: Tensor, expected: Tensor, *, noise: float = 0.0) -> None:
    """Raise :class:`CaptureError` unless two outputs agree, as floating-point numbers relative to their scale.

    ``noise`` is by how much rounding alone is known to change the output; so much more is allowed, several times.
    """
    if found.shape != expected.shape:
        raise CaptureError(f"ONNX Runtime returns {name} of shape {tuple(found.shape)}, PyTorch of shape {tuple(expected.shape)}")
    if not expected.is_floating_point():
        same, tolerance = torch.equal(found, expected), 0.0
    else:
        finite = expected[torch.isfinite(expected)]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        tolerance = max(TOLERANCE, 16 * torch.finfo(expected.dtype).eps)
        same = torch.allclose(found.double(), expected.double(), rtol=0.0, atol=tolerance * scale + _FLOOR + 8 * noise, equal_nan=True)
    if not same:
        raise CaptureError(f"ONNX Runtime's {name} differs from PyTorch's by more than {tolerance:.0e} of its scale")
