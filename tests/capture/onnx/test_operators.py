"""Every family of operators gives what ONNX Runtime gives; loading compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from capture.onnx.files import Array, write
from secateur.capture.onnx import load_onnx, registry
from secateur.capture.onnx.registry import Call, layer, operator, operators
from secateur.capture.onnx.values import Value
from secateur.errors import CaptureError


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class Row:
    """One node: operands that are inputs of the file, then those that are constants; ``None`` is left out."""

    operator: str
    inputs: tuple[Array, ...]
    constants: tuple[Array | None, ...] = ()
    opset: int = 18
    outputs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.operator}-{self.opset}-" + "-".join(f"{name}={value}" for name, value in self.settings.items())


def row(operator: str, *inputs: Array, c: tuple[Array | None, ...] = (), opset: int = 18, outputs: int = 1, **settings: Any) -> Row:
    return Row(operator, inputs, c, opset, outputs, settings)


X = numbers(2, 4, 6, 6)
Y = numbers(2, 3, 4)
POSITIVE = np.abs(Y) + 0.1
SQUARE = {"kernel_shape": [3, 3]}
RNN = numbers(5, 2, 3)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(kind: str, ways: int, *, given: bool = False, **settings: Any) -> Row:
    gates, units = GATES[kind], 4
    weights = (
        numbers(ways, gates * units, 3, seed=1),
        numbers(ways, gates * units, units, seed=2),
        numbers(ways, 2 * gates * units, seed=3),
    )
    states = (None, *[numbers(ways, 2, units, seed=4)] * (2 if kind == "LSTM" else 1)) if given else ()
    return row(kind, RNN, c=(*weights, *states), outputs=3 if kind == "LSTM" else 2, hidden_size=units, **settings)


UNARY = (
    *(
        "Erf",
        "Exp",
        "Sin",
        "Cos",
        "Tan",
        "Atan",
        "Sinh",
        "Cosh",
        "Asinh",
        "Tanh",
        "Sigmoid",
        "Reciprocal",
        "Round",
        "Sign",
        "IsNaN",
        "IsInf",
    ),
    *("Abs", "Neg", "Floor", "Ceil", "Relu", "Softplus", "Softsign", "Mish", "HardSwish", "Identity", "LeakyRelu", "Elu", "Celu", "Selu"),
    *("ThresholdedRelu", "HardSigmoid"),
)
ROWS = [
    *(row(name, Y) for name in UNARY),
    *(row(name, POSITIVE) for name in ("Log", "Sqrt")),
    *(row(name, numbers(3) / 10) for name in ("Asin", "Acos", "Atanh")),
    row("Acosh", np.abs(numbers(3)) + 1),
    row("Not", Y > 0),
    row("Gelu", Y, opset=20),
    row("Swish", Y, opset=24, alpha=1.5),
    row("Gelu", Y, opset=20, approximate="tanh"),
    row("HardSigmoid", Y, alpha=1 / 6, beta=0.5),
    row("PRelu", X, c=(numbers(4, 1, 1),)),
    row("PRelu", Y, c=(numbers(4),)),
    row("Softmax", Y, axis=-1),
    row("Softmax", Y, opset=11, axis=1),
    row("Softmax", Y, opset=11),
    row("LogSoftmax", Y),
    *(row(name, Y, numbers(3, 4, seed=1)) for name in ("Add", "Sub", "Mul", "Div", "Less", "GreaterOrEqual", "Greater", "LessOrEqual")),
    *(row(name, Y, c=(np.float32(2.0),)) for name in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Equal")),
    *(row(name, Y > 0, Y > 1) for name in ("And", "Or", "Xor")),
    *(row(name, Y, numbers(3, 1, seed=1), numbers(4, seed=2)) for name in ("Sum", "Mean", "Min", "Max")),
    row("Div", whole(-7, 7, 8), whole(2, -2, 3)),
    row("Mod", whole(-7, 7, 8), whole(3, -3, 3)),
    row("Mod", Y, numbers(4, seed=1), fmod=1),
    row("BitwiseAnd", whole(6, 5), whole(3, 4)),
    row("BitwiseOr", whole(6, 5), whole(3, 4)),
    row("Where", Y > 0, Y, c=(np.float32(-1.0),)),
    row("Clip", Y, c=(np.float32(-0.5), np.float32(0.5))),
    row("Clip", Y, c=(None, np.float32(0.5))),
    row("Clip", Y, opset=6 + 4, min=-0.1, max=0.2),
    row("Dropout", Y),
    row("MatMul", Y, numbers(2, 4, 5)),
    row("MatMul", Y, c=(numbers(4, 5),)),
    row("Gemm", numbers(2, 4), c=(numbers(4, 5), numbers(5)), alpha=0.5, beta=2.0),
    row("Gemm", numbers(2, 4), c=(numbers(5, 4), numbers(1, 5)), transB=1),
    row("Gemm", numbers(4, 2), numbers(4, 5), numbers(2, 5), transA=1),
    row("Einsum", Y, numbers(2, 4, 5), equation="bij,bjk->bik"),
    row("Conv", X, c=(numbers(4, 4, 3, 3), numbers(4)), pads=[1, 1, 1, 1], strides=[2, 2]),
    row("Conv", X, c=(numbers(8, 2, 3, 3),), group=2, pads=[0, 1, 2, 1], dilations=[1, 2]),
    row("Conv", X, c=(numbers(4, 4, 3, 3),), auto_pad="SAME_UPPER", strides=[2, 2]),
    row("Conv", X, c=(numbers(4, 4, 2, 2),), auto_pad="SAME_LOWER"),
    row("Conv", X, numbers(4, 4, 3, 3), numbers(4)),
    row("Conv", numbers(2, 3, 8), c=(numbers(4, 3, 3), numbers(4))),
    row("Conv", numbers(1, 2, 4, 4, 4), c=(numbers(3, 2, 2, 2, 2),)),
    row("ConvTranspose", X, c=(numbers(4, 3, 2, 2), numbers(3)), strides=[2, 2]),
    row("ConvTranspose", X, c=(numbers(4, 2, 3, 3),), group=2, pads=[0, 1, 1, 1], output_padding=[1, 1], strides=[2, 2]),
    row("ConvTranspose", X, numbers(4, 3, 2, 2), numbers(3)),
    row("BatchNormalization", X, c=(numbers(4), numbers(4), numbers(4), np.abs(numbers(4)))),
    row("BatchNormalization", numbers(3, 4), c=(numbers(4), numbers(4), numbers(4), np.abs(numbers(4)))),
    row("BatchNormalization", X, numbers(4), numbers(4), numbers(4), np.abs(numbers(4))),
    row("LayerNormalization", Y, c=(numbers(4), numbers(4)), epsilon=1e-3),
    row("LayerNormalization", Y, numbers(3, 4), axis=1),
    row("RMSNormalization", Y, c=(numbers(4),), opset=23),
    row("InstanceNormalization", X, c=(numbers(4), numbers(4))),
    row("GroupNormalization", X, c=(numbers(2), numbers(2)), num_groups=2),
    row("GroupNormalization", X, c=(numbers(4), numbers(4)), num_groups=2, opset=21),
    row("LpNormalization", Y, axis=1, p=1),
    row("LRN", X, size=3),
    row("Pad", Y, c=(whole(0, 1, 0, 0, 0, 2), np.float32(3.0))),
    row("Pad", Y, c=(whole(1, 1), None, whole(-1)), mode="reflect"),
    row("Pad", X, c=(whole(0, 0, 1, 0, 0, 0, 2, 1),), mode="edge"),
    row("Pad", Y, opset=10, pads=[0, 0, 1, 0, 0, 1], value=2.0),
    row("MaxPool", X, **SQUARE, strides=[2, 2], pads=[1, 1, 1, 1]),
    row("MaxPool", X, **SQUARE, strides=[2, 2], pads=[0, 0, 1, 1]),
    row("MaxPool", X, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, dilations=[2, 2]),
    row("MaxPool", numbers(2, 3, 7), kernel_shape=[3], strides=[2], auto_pad="SAME_UPPER"),
    row("AveragePool", X, **SQUARE, pads=[1, 1, 1, 1]),
    row("AveragePool", X, **SQUARE, pads=[1, 1, 1, 1], count_include_pad=1),
    row("AveragePool", X, **SQUARE, strides=[2, 2], auto_pad="SAME_UPPER"),
    row("GlobalAveragePool", X),
    row("GlobalMaxPool", X),
    row("DepthToSpace", X, blocksize=2),
    row("DepthToSpace", X, blocksize=2, mode="CRD"),
    row("SpaceToDepth", X, blocksize=2),
    row(
        "Resize",
        X,
        c=(None, np.array([1, 1, 2, 2], np.float32)),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    row("Resize", X, c=(None, np.array([1, 1, 2, 2], np.float32)), mode="nearest"),
    row("Resize", X, c=(None, np.array([1, 1, 1.5, 2.5], np.float32)), mode="linear"),
    row("Resize", X, c=(None, None, whole(2, 4, 9, 3)), mode="linear", coordinate_transformation_mode="align_corners"),
    row("Resize", X, c=(None, None, whole(9, 13)), mode="cubic", axes=[2, 3]),
    row("Resize", X, c=(np.array([1, 1, 2, 2], np.float32),), opset=10, mode="nearest"),
    row("Upsample", X, c=(np.array([1, 1, 2, 2], np.float32),), opset=9, mode="nearest"),
    row("GridSample", X, np.tanh(numbers(2, 3, 5, 2)), opset=16),
    *(
        row(name, Y, opset=11, axes=[1], keepdims=0)
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2")
    ),
    *(row(name, POSITIVE, c=(whole(0, -1),)) for name in ("ReduceL1", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean")),
    row("ReduceSum", Y, keepdims=0),
    row("ReduceSum", Y, noop_with_empty_axes=1),
    row("ArgMax", Y, axis=1, keepdims=0),
    row("ArgMin", Y, axis=-1),
    row("CumSum", Y, c=(np.array(1),), exclusive=1, reverse=1),
    row("TopK", Y, c=(whole(2),), outputs=2),
    row("Shape", Y, start=1),
    row("Size", Y),
    row("Reshape", Y, c=(whole(0, -1),)),
    row("Flatten", Y, axis=2),
    row("Flatten", Y, axis=0),
    row("Flatten", Y, axis=3),
    row("Squeeze", numbers(1, 3, 1), c=(whole(0),)),
    row("Squeeze", numbers(1, 3, 1), opset=11),
    row("Unsqueeze", Y, c=(whole(-1, 0),)),
    row("Unsqueeze", Y, opset=11, axes=[0, 2]),
    row("Transpose", Y, perm=[2, 0, 1]),
    row("Transpose", Y),
    row("Expand", numbers(3, 1), c=(whole(2, 1, 4),)),
    row("Tile", Y, c=(whole(1, 2, 1),)),
    row("Cast", Y, to=7),
    row("CastLike", Y, whole(1)),
    row("Slice", Y, c=(whole(1, 0), whole(3, 2**62), whole(1, 2), whole(1, 2))),
    row("Slice", Y, c=(whole(-1), whole(-(2**62)), whole(2), whole(-1))),
    row("Slice", Y, c=(whole(3), whole(0), whole(2), whole(-2))),
    row("Slice", Y, opset=9, starts=[1], ends=[2], axes=[1]),
    row("Concat", Y, numbers(2, 1, 4), axis=1),
    row("Split", Y, c=(whole(1, 3),), outputs=2, axis=2),
    row("Split", Y, outputs=2, num_outputs=2, axis=1),
    row("Split", Y, opset=11, outputs=2, axis=1, split=[1, 2]),
    row("Gather", Y, c=(whole(2, 0),), axis=1),
    row("Gather", Y, c=(np.array(-1),), axis=2),
    row("Gather", Y, c=(np.array([[0, 1], [-1, 2]]),), axis=1),
    row("Gather", Y, whole(1, -1), axis=1),
    row("GatherElements", Y, whole(0, 1, -1, 0).reshape(1, 1, 4), axis=1),
    row("GatherND", Y, np.array([[0, 1], [1, 2]])),
    row("GatherND", Y, np.array([[1], [2]]), batch_dims=1),
    row("ScatterND", Y, np.array([[0, 1], [1, 2]]), numbers(2, 4, seed=5)),
    row("ScatterND", Y, np.array([[0, 1], [0, 1]]), numbers(2, 4, seed=5), reduction="add"),
    row("ScatterElements", Y, np.array([[[0, 2, 1, -1]]]), numbers(1, 1, 4, seed=5), axis=1),
    row("ScatterElements", Y, np.array([[[0, 2, 1, 0]]]), numbers(1, 1, 4, seed=5), axis=1, reduction="max"),
    row("Scatter", Y, np.array([[[0, 2, 1, -1]]]), numbers(1, 1, 4, seed=5), axis=1, opset=9),
    row("NonZero", np.array([[1.0, 0.0], [2.0, 3.0]], np.float32)),
    row("OneHot", whole(0, 2, -1), c=(np.array(3), np.array([1.0, 5.0], np.float32)), axis=0),
    row("Trilu", numbers(3, 4), c=(np.array(1),)),
    row("Trilu", numbers(3, 4), upper=0),
    row("EyeLike", numbers(3, 4)),
    recurrent("LSTM", 1),
    recurrent("LSTM", 2, direction="bidirectional", given=True),
    recurrent("GRU", 1, linear_before_reset=1, given=True),
    recurrent("RNN", 2, direction="bidirectional"),
    recurrent("RNN", 1, activations=["Relu"]),
    row("Attention", numbers(2, 2, 3, 4), numbers(2, 2, 5, 4), numbers(2, 2, 5, 4), opset=23),
    row("Attention", numbers(2, 3, 8), numbers(2, 5, 4), numbers(2, 5, 4), opset=23, q_num_heads=4, kv_num_heads=2),
]


def made(path: Path, case: Row) -> Path:
    given = {f"x{place}": array for place, array in enumerate(case.inputs)}
    constants = {f"c{place}": array for place, array in enumerate(case.constants) if array is not None}
    names = [*given, *[f"c{place}" if array is not None else "" for place, array in enumerate(case.constants)]]
    outputs = [f"y{place}" for place in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, name="node", **case.settings)
    return write(path / "model.onnx", [node], given, outputs, constants, case.opset)


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_one_node(case: Row, tmp_path: Path) -> None:
    model = load_onnx(made(tmp_path, case), inputs=tuple(torch.from_numpy(np.array(array)) for array in case.inputs))
    assert len(model.file_names.outputs) == case.outputs


def test_every_operator_has_a_row_or_a_test_of_its_own() -> None:
    elsewhere = {"If", "ConstantOfShape", "Range", "SequenceConstruct", "SplitToSequence", "SequenceAt", "ConcatFromSequence"}
    assert {case.operator for case in ROWS} | elsewhere == set(operators())


REFUSED = [
    (row("MaxPool", X, **SQUARE, outputs=2), "the places of the largest values"),
    (row("AveragePool", X, **SQUARE, dilations=[2, 2], opset=19), "places that lie apart"),
    (
        row("Resize", X, c=(None, np.array([1, 1, 2, 2], np.float32)), mode="linear", coordinate_transformation_mode="asymmetric"),
        "no counterpart",
    ),
    (row("Resize", X, c=(None, np.array([1, 2, 2, 2], np.float32)), mode="nearest"), "number of samples or channels"),
    (row("ArgMax", Y, select_last_index=1), "the last of equal values"),
    (row("ScatterND", Y, np.array([[0, 1]]), numbers(1, 4), reduction="mul"), "writing with mul"),
    (row("LayerNormalization", Y, c=(numbers(4),), outputs=2), "outputs of their own"),
    (recurrent("GRU", 1), "a reset before the product"),
    (recurrent("LSTM", 1, direction="reverse"), "a direction other than"),
    (row("ConvTranspose", X, c=(numbers(4, 3, 2, 2),), output_shape=[12, 12], strides=[2, 2]), "follows from the output's shape"),
    (row("EyeLike", numbers(3, 4), k=1), "a diagonal beside the middle"),
    (row("Hardmax", Y, axis=1), "this operator cannot be read"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda value: str(value) if isinstance(value, Row) else "")
def test_what_cannot_be_read_is_refused_by_name(case: Row, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=rf"{case.operator} \(node 'node', opset {case.opset}\): .*{reason}"):
        load_onnx(made(tmp_path, case), inputs=tuple(torch.from_numpy(array) for array in case.inputs))


def test_shapes_are_computed_as_numbers(tmp_path: Path) -> None:
    """The last two dimensions become one whatever their sizes are."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "two"], ["first"]),
        helper.make_node("Gather", ["shape", "places"], ["both"]),
        helper.make_node("ReduceProd", ["both"], ["product"], keepdims=1),
        helper.make_node("Concat", ["first", "product"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y"]),
        helper.make_node("ConstantOfShape", ["first"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "two"], ["lifted"]),
        helper.make_node("Add", ["y", "lifted"], ["z"]),
    ]
    constants = {"zero": whole(0), "two": whole(2), "places": whole(2, -1)}
    path = write(tmp_path / "m.onnx", nodes, {"x": (1, ["n", 3, "h", "w"])}, ["z"], constants)
    model = load_onnx(path)
    program = torch.export.export(model, (torch.randn(2, 3, 4, 5),), dynamic_shapes=({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},))
    x = torch.randn(3, 3, 7, 5)
    torch.testing.assert_close(program.module()(x), x.flatten(2))


def test_ranges_and_comparisons_of_sizes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Squeeze", ["shape"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["places"]),
        helper.make_node("Less", ["places", "three"], ["early"]),
        helper.make_node("Where", ["early", "x", "minus"], ["y"]),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "three": np.array(3), "minus": np.float32(-1)}
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": (1, ["n"])}, ["y"], {k: np.array(v) for k, v in constants.items()}))
    for length in (5, 100):
        assert float(model(torch.ones(length)).sum()) == 3 - (length - 3)


def test_sequences(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "two"], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "one"], ["second"]),
        helper.make_node("SplitToSequence", ["second"], ["single"], axis=1, keepdims=0),
        helper.make_node("ConcatFromSequence", ["single"], ["y"], axis=1, new_axis=1),
        helper.make_node("SequenceConstruct", ["y", "second"], ["both"]),
        helper.make_node("ConcatFromSequence", ["both"], ["z"], axis=0),
    ]
    model = load_onnx(write(tmp_path / "m.onnx", nodes, {"x": numbers(3, 4)}, ["z"], {"two": np.array(2), "one": np.array(1)}))
    x = torch.randn(3, 4)
    torch.testing.assert_close(model(x), torch.cat([x[:, 2:], x[:, 2:]]))


def test_an_operator_of_another_domain_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft", alpha=1.5)
    path = write(tmp_path / "m.onnx", [node], {"x": Y}, ["y"])
    proto = onnx.load(path)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))

    @operator("com.microsoft::QuickGelu")
    def quick_gelu(call: Call) -> Value:
        x = call.tensor(0)
        return x * torch.sigmoid(call.attribute("alpha", 1.702) * x)

    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(load_onnx(path)(x), x * torch.sigmoid(1.5 * x))


def test_a_second_registration_is_refused() -> None:
    with pytest.raises(ValueError, match="Relu is registered already"):
        operator("Relu")(lambda call: call[0])
    with pytest.raises(ValueError, match="Conv has a layer already"):
        layer("Conv", places=(1,))(lambda node, weights: nn.Identity())
