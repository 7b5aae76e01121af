"""How many multiply-adds each operator family does: one small function a family, registered by operator name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx

from secateur.capture.capture import Fact
from secateur.measure.einsum import contractions

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """Multiply-adds that one call does with some of its operands."""

    macs: int
    operands: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Call:
    """One call in the graph, its arguments by their names in the operator's schema."""

    node: fx.Node
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        """The call that ``node`` makes."""
        assert isinstance(node.target, torch._ops.OpOverload)
        names = (argument.name for argument in node.target._schema.arguments)
        return cls(node, dict(zip(names, node.args, strict=False)) | node.kwargs)

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def shape(self, name: str) -> Shape:
        """Shape of the tensor argument ``name``."""
        return shape_of(self.arguments[name])

    @property
    def tensors(self) -> tuple[fx.Node, ...]:
        """The arguments that are single tensors, in the schema's order."""
        return tuple(value for value in self.arguments.values() if isinstance(value, fx.Node))

    @property
    def first(self) -> Shape:
        """Shape of the first tensor argument, whatever its name."""
        return shape_of(self.tensors[0])

    @property
    def out(self) -> Shape:
        """Shape of the (first) output."""
        return shape_of(self.node)

    def product(self, macs: int, *names: str) -> Product:
        """``macs`` multiply-adds with the arguments ``names``."""
        return Product(macs, tuple(self.arguments[name] for name in names))


Formula = Callable[[Call], Iterator[Product]]
_FORMULAS: dict[str, Formula] = {}


def counts(*operators: str) -> Callable[[Formula], Formula]:
    """Register a formula for operators, by name: ``"linear"`` in ATen, ``"mylib::op"`` elsewhere.

    A formula that yields nothing for a call leaves it among the operators that are not counted.
    """

    def register(formula: Formula) -> Formula:
        for operator in operators:
            if operator in _FORMULAS:
                raise ValueError(f"{operator} has a formula already ({_FORMULAS[operator].__name__}); one operator takes one formula.")
            _FORMULAS[operator] = formula
        return formula

    return register


def operator_name(target: Any) -> str:
    """Name of an operator, the same for all its overloads and for its in-place form."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    name = target._schema.name.removeprefix("aten::")
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def products(node: fx.Node) -> tuple[Product, ...]:
    """What the registered formula says of a node; nothing if there is none."""
    formula = _FORMULAS.get(operator_name(node.target))
    if formula is None or not isinstance(node.target, torch._ops.OpOverload):
        return ()
    return tuple(formula(Call.of(node)))


def shape_of(node: fx.Node) -> Shape:
    """Shape of the (first) tensor that a node gives."""
    fact = node.meta["fact"]
    while isinstance(fact, (list, tuple)):
        fact = fact[0]
    assert isinstance(fact, Fact)
    return fact.shape


@counts("linear")
def _linear(call: Call) -> Iterator[Product]:
    yield call.product(prod(call.out) * call.shape("weight")[-1], "weight")


@counts("conv1d", "conv2d", "conv3d", "torchvision::deform_conv2d")
def _convolution(call: Call) -> Iterator[Product]:
    yield call.product(prod(call.out) * prod(call.shape("weight")[1:]), "weight")


@counts("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(call: Call) -> Iterator[Product]:
    yield call.product(prod(call.shape("input")) * prod(call.shape("weight")[1:]), "weight")


@counts("convolution", "_convolution")
def _any_convolution(call: Call) -> Iterator[Product]:
    yield from (_transposed_convolution if call["transposed"] else _convolution)(call)


@counts("conv_tbc")
def _convolution_time_first(call: Call) -> Iterator[Product]:
    yield call.product(prod(call.out) * prod(call.shape("weight")[:2]), "weight")


@counts("matmul", "mm", "bmm", "mv", "dot", "vdot")
def _matmul(call: Call) -> Iterator[Product]:
    yield Product(prod(call.out) * call.first[-1], call.tensors[:2])


@counts("inner")
def _inner(call: Call) -> Iterator[Product]:
    if call.first and call.shape("other"):
        yield call.product(prod(call.out) * call.first[-1], "self", "other")


@counts("tensordot")
def _tensordot(call: Call) -> Iterator[Product]:
    summed = [call.first[dim] for dim in call["dims_self"]]
    if summed:
        yield call.product(prod(call.out) * prod(summed), "self", "other")


@counts("addmm", "addmv", "baddbmm")
def _add_matmul(call: Call) -> Iterator[Product]:
    _, left, right = call.tensors[:3]
    yield Product(prod(call.out) * shape_of(left)[-1], (left, right))


@counts("addbmm")
def _sum_of_matmuls(call: Call) -> Iterator[Product]:
    batch, _, inner = call.shape("batch1")
    yield call.product(prod(call.out) * batch * inner, "batch1", "batch2")


@counts("_grouped_mm")
def _grouped_matmul(call: Call) -> Iterator[Product]:
    left, right = call.shape("self"), call.shape("mat2")
    # Two matrices are cut along the summed dimension: each of the outputs sums over its own piece.
    pieces = call.out[0] if len(left) == len(right) == 2 else 1
    yield call.product(prod(call.out) * left[-1] // pieces, "self", "mat2")


@counts("transformers::grouped_mm_fallback")
def _grouped_matmul_of_any_width(call: Call) -> Iterator[Product]:
    yield call.product(prod(call.out) * call.shape("input")[-1], "input", "weight")


@counts("bilinear")
def _bilinear(call: Call) -> Iterator[Product]:
    _, left, right = call.shape("weight")
    yield call.product(prod(call.out) * (left * right + right), "weight")


@counts("einsum")
def _einsum(call: Call) -> Iterator[Product]:
    tensors = call["tensors"]
    for macs, sources in contractions(call["equation"], [shape_of(t) for t in tensors], path=call.arguments.get("path")):
        yield Product(macs, tuple(tensors[source] for source in sources))


@counts(
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_attention_math",
)
def _attention(call: Call) -> Iterator[Product]:
    rows = prod(call.out[:-1])  # queries of every head; a mask or causal order saves no work that one could rely on
    keys, width = call.shape("key")[-2:]
    yield call.product(rows * keys * (width + call.out[-1]), "query", "key", "value")


@counts("_native_multi_head_attention")
def _fused_multi_head_attention(call: Call) -> Iterator[Product]:
    yield from _self_attention(call, call.shape("query"), call.shape("key")[1])


@counts("_transformer_encoder_layer_fwd")
def _fused_encoder_layer(call: Call) -> Iterator[Product]:
    source = call.shape("src")
    yield from _self_attention(call, source, source[1])
    for name in ("ffn_weight_1", "ffn_weight_2"):
        yield call.product(prod(source[:-1]) * prod(call.shape(name)), name)


def _self_attention(call: Call, query: Shape, keys: int) -> Iterator[Product]:
    rows, width = prod(query[:-1]), query[-1]
    for name in ("qkv_weight", "proj_weight"):
        yield call.product(rows * prod(call.shape(name)), name)
    yield Product(2 * rows * keys * width, ())


@counts("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(call: Call) -> Iterator[Product]:
    for weight in call["params"]:
        if len(shape_of(weight)) == 2:
            yield Product(prod(call.first[:-1]) * prod(shape_of(weight)), (weight,))


@counts("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_cell(call: Call) -> Iterator[Product]:
    for name in ("w_ih", "w_hh"):
        yield call.product(prod(call.first[:-1]) * prod(call.shape(name)), name)
