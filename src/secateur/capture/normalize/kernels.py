"""Kernels that run below torch's functions, where a model was recorded there, by the names of the functions again."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from secateur.capture.normalize.edit import arguments, aten, emit, is_call, operands, shape

Made = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


def name_functions(program: fx.GraphModule) -> None:
    """Call ``layer_norm``, ``conv2d``, ``linear`` and the like where their kernels are called.

    Kernels that return more than the function's output (means, spreads) stay where somebody reads that.
    """
    for node in list(program.graph.nodes):
        if node.op == "call_function" and (make := _FUNCTIONS.get(node.target)) and (output := _output(node)):
            made = make(arguments(node))
            if made is not None:
                function = emit(output, made[0], *made[1], like=node)
                function.meta |= {key: output.meta[key] for key in ("memory", "constant") if key in output.meta}
                output.replace_all_uses_with(function)


def _output(node: fx.Node) -> fx.Node | None:
    """The node that holds what the function returns; nothing where more is read."""
    if not isinstance(node.meta["fact"], list):
        return node
    users = list(node.users)
    first = [user for user in users if is_call(user, operator.getitem) and operands(user)[1] == 0]
    others = [user for user in users if user not in first and user.users]
    return first[0] if len(first) == 1 and not others else None


def _layer_norm(a: dict[str, Any]) -> Made:
    return aten.layer_norm.default, (a["input"], a["normalized_shape"], a["weight"], a["bias"], a["eps"])


def _rms_norm(a: dict[str, Any]) -> Made:
    return aten.rms_norm.default, (a["input"], a["normalized_shape"], a["weight"], a["eps"])


def _group_norm(a: dict[str, Any]) -> Made:
    return aten.group_norm.default, (a["input"], a["group"], a["weight"], a["bias"], a["eps"])


def _batch_norm(a: dict[str, Any]) -> Made | None:
    if a.get("training", False):
        return None
    given = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"])
    return aten.batch_norm.default, (*given, False, 0.0, a["eps"] if "eps" in a else a["epsilon"], False)


def _convolution(a: dict[str, Any]) -> Made:
    rank = len(shape(a["weight"])) - 2
    given = (a["input"], a["weight"], a["bias"], a["stride"], a["padding"])
    if not a["transposed"]:
        plain = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
        return plain[rank], (*given, a["dilation"], a["groups"])
    transposed = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
    return transposed[rank], (*given, a["output_padding"], a["groups"], a["dilation"])


def _softmax(a: dict[str, Any]) -> Made | None:
    return None if a["half_to_float"] else (aten.softmax.int, (a["self"], a["dim"]))


def _log_softmax(a: dict[str, Any]) -> Made | None:
    return None if a["half_to_float"] else (aten.log_softmax.int, (a["self"], a["dim"]))


def _addmm(a: dict[str, Any]) -> Made | None:
    weight = _turned(a["mat2"])
    plain = a["alpha"] == a["beta"] == 1 and len(shape(a["self"])) == 1
    return (aten.linear.default, (a["mat1"], weight, a["self"])) if weight is not None and plain else None


def _mm(a: dict[str, Any]) -> Made | None:
    weight = _turned(a["mat2"])
    return None if weight is None else (aten.linear.default, (a["self"], weight))


def _turned(matrix: Any) -> fx.Node | None:
    """The stored weight that a matrix is the transpose of."""
    if not is_call(matrix, aten.t.default, aten.transpose.int):
        return None
    source, *dims = operands(matrix)
    swapped = not dims or dims[0] % 2 != dims[1] % 2
    return source if source.op == "get_attr" and len(shape(source)) == 2 and swapped else None


_FUNCTIONS: dict[Any, Callable[[dict[str, Any]], Made | None]] = {
    aten.native_layer_norm.default: _layer_norm,
    aten._fused_rms_norm.default: _rms_norm,
    aten.native_group_norm.default: _group_norm,
    aten.native_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten._batch_norm_no_update.default: _batch_norm,
    aten.convolution.default: _convolution,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
    aten.addmm.default: _addmm,
    aten.mm.default: _mm,
}
