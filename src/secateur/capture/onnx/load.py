"""Reading an ONNX file as a PyTorch model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.capture.flat import tensors_of
from secateur.capture.inputs import normalise_inputs
from secateur.capture.onnx.build import build
from secateur.capture.onnx.check import check_file
from secateur.capture.onnx.file import OnnxFile
from secateur.capture.onnx.model import OnnxModel
from secateur.errors import UsageError


def load_onnx(path: str | os.PathLike[str], *, inputs: Any = None, fixed: Mapping[str, Any] | None = None) -> OnnxModel:
    """Read an ONNX file as a PyTorch model, and check that both give the same.

    The result is a module of ordinary layers (``nn.Conv2d``, ``nn.Linear``, ``nn.LSTM``, ...) that can be trained, exported and cut
    like any other; what :func:`secateur.study` makes of it is saved as ``.onnx`` again under the file's names of inputs and outputs.

    Args:
        path: the file; weights stored in files beside it are read too.
        inputs: example inputs for the comparison with ONNX Runtime; by default random ones of the file's shapes, where sizes that
            it leaves open are tried.
        fixed: values of inputs that are to be constants from now on, by the file's names. A file with branches then keeps one.

    Raises:
        FileError: there is no such file, it is damaged, or weights beside it are missing.
        MissingExtraError: the extra ``onnx`` is not installed.
        CaptureError: it has an operator that cannot be read, or does not give what ONNX Runtime gives.

    Example:
        >>> import secateur as sc
        >>> model = sc.load_onnx("classifier.onnx")  # doctest: +SKIP
        >>> study = sc.study(model, model.examples({"batch": 2}))  # doctest: +SKIP
    """
    where = Path(path)
    file = OnnxFile.open(where)
    given = {name: torch.as_tensor(value) for name, value in (fixed or {}).items()}
    ports = {port.name: port for port in file.inputs()}
    if unknown := given.keys() - ports.keys():
        raise UsageError(f"{where} has no input {', '.join(sorted(unknown))}. It has {'; '.join(map(str, ports.values()))}.")
    given = {name: value.to(ports[name].dtype) for name, value in given.items()}
    model = build(file, given)
    check_file(model, where, None if inputs is None else _in_order(model, inputs), fixed=given)
    return model


def _in_order(model: OnnxModel, inputs: Any) -> list[torch.Tensor]:
    """Inputs by position or name as a list in the file's order."""
    args, kwargs = normalise_inputs(inputs)
    return tensors_of(list(model.bound(*args, **kwargs).values()))
