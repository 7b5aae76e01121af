"""ONNX files for tests: written by hand from one node or several, or exported by PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array | tuple[int, Sequence[int | str]]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 18,
) -> Path:
    """Write a file of these nodes; inputs are told by arrays like them, or by type and sizes."""
    made = [_port(name, told) for name, told in inputs.items()]
    stored = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", made, [helper.make_empty_tensor_value_info(name) for name in outputs], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9 if opset < 23 else 10)
    onnx.save(model, path)
    return path


def _port(name: str, told: Array | tuple[int, Sequence[int | str]]) -> onnx.ValueInfoProto:
    if isinstance(told, tuple):
        return helper.make_tensor_value_info(name, told[0], list(told[1]))
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(told.dtype), list(told.shape))


def export(model: nn.Module, args: tuple[Tensor, ...], path: Path, opset: int, *, dynamo: bool = False, **more: Any) -> Path:
    """Export a model with one of PyTorch's two exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more |= {"verbose": False, "external_data": False} if dynamo else {}
        torch.onnx.export(model.eval(), args, str(path), opset_version=opset, dynamo=dynamo, **more)
    return path


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
