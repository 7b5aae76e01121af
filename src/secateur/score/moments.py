"""What weights and norms tell of activations: mean and variance of every channel, without data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateur.capture.calls import argument, leaf, short_name
from secateur.groups.fields import NONE, Labels
from secateur.groups.rules.pointwise import pointwise
from secateur.groups.rules.registry import find
from secateur.groups.solve import Solution
from secateur.score.layers import Linear, linear_at

POINTS, REACH = 257, 6.0
"""Points at which an activation function is looked at, and how many standard deviations away the last ones lie."""
_NORMS = {"batch_norm": 1, "instance_norm": 1, "group_norm": 1, "layer_norm": -1, "rms_norm": -1}
_SUMS, _PRODUCTS = ("add", "add_", "sub", "sub_"), ("mul", "mul_")


@dataclass(frozen=True, eq=False)
class Moments:
    """Means and variances of channels, by the classes that these belong to: sorted, each once."""

    classes: Labels
    mean: Tensor
    variance: Tensor
    told: bool = False
    """Whether batch norms tell it, and no layer has been guessed through since."""

    def of(self, classes: Labels) -> tuple[Tensor, Tensor]:
        """Mean and variance of these classes; zero and one for those that nothing is known of."""
        at = np.searchsorted(self.classes, classes).clip(max=max(len(self.classes) - 1, 0))
        known = torch.as_tensor(self.classes[at] == classes if len(self.classes) else np.zeros(len(classes), dtype=bool))
        mean, variance = torch.zeros(len(classes), dtype=torch.float64), torch.ones(len(classes), dtype=torch.float64)
        index = torch.as_tensor(at)[known]
        mean[known], variance[known] = self.mean[index], self.variance[index]
        return mean, variance

    def __bool__(self) -> bool:
        return len(self.classes) > 0


def moments(classes: Labels, mean: Tensor, variance: Tensor, *, told: bool = False) -> Moments:
    """Moments by class from those at positions, some of which may have no class or share one."""
    there = classes != NONE
    found, back = np.unique(classes[there], return_inverse=True)
    index, picked = torch.as_tensor(back), torch.as_tensor(np.flatnonzero(there))
    counts = torch.bincount(index, minlength=len(found)).clamp(min=1)
    mean, variance = (torch.zeros(len(found), dtype=torch.float64).index_add_(0, index, x[picked]) / counts for x in (mean, variance))
    return Moments(found, mean, variance, told)


_NOTHING = Moments(np.zeros(0, dtype=np.int64), torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))


class Expectation:
    """Means and variances of all activations of a graph, followed from the norms, weights and inputs to the outputs.

    A norm leaves its shift and squared scale, which is where the chain is renewed; the model's inputs are taken for standard normal.
    Between norms channels, and positions under a kernel, are taken for independent and normal: a layer puts out ``W m + b`` and
    ``W^2 v``, a function f of one channel the moments of ``f(z)`` over a fine grid, sums and products those of independent values.
    Whatever moves values about leaves them as they are.
    """

    def __init__(self, solution: Solution) -> None:
        self._solution = solution
        self._capture = solution.walk.capture
        self._found: dict[fx.Node, Moments] = {}
        self.layers: dict[fx.Node, tuple[Linear, Tensor]] = {}
        """Layers of the graph with the variance of each of their outputs."""
        for node in self._capture.graph.nodes:
            self._found[node] = self._of(node)

    def __getitem__(self, node: fx.Node) -> Moments:
        return self._found[node]

    @cached_property
    def weights(self) -> dict[fx.Node, float]:
        """How much of the outputs a change of a node's values changes, both relative to their variances.

        Backwards from the outputs, of which each counts 1: where values are added or joined, each counts by its part of the variance
        if batch norms tell that, and all alike if not; where they are multiplied by its part in the product; all users of a node together.
        """
        found: dict[fx.Node, float] = {}
        for node in reversed(self._capture.graph.nodes):
            inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
            factors = [1.0] * len(inputs) if node.op == "output" else self._factors(node, inputs)
            for each, factor in zip(inputs, factors, strict=True):
                found[each] = found.get(each, 0.0) + (1.0 if node.op == "output" else found.get(node, 0.0)) * factor
        return found

    def _of(self, node: fx.Node) -> Moments:
        if node.op == "get_attr":
            return self._stored(node)
        name, inputs = short_name(node), list(node.all_input_nodes)
        if name in _NORMS:
            return self._normed(node, _NORMS[name])
        layer = linear_at(node)
        if layer is not None:
            return self._put_out(node, layer)
        if name in _SUMS and len(inputs) == 2:
            return self._sum(inputs, -1.0 if name.startswith("sub") else 1.0)
        if name in _PRODUCTS and len(inputs) == 2:
            return self._product(inputs)
        if len(inputs) == 1 and self._found[inputs[0]] and _is_function(node):
            return _through(node, self._found[inputs[0]])
        return self._together(inputs)

    def _stored(self, node: fx.Node) -> Moments:
        """Moments of a stored tensor along each of its dimensions."""
        tensor = self._value(str(node.target))
        parts = []
        for dim in range(tensor.ndim if tensor.is_floating_point() else 0):
            classes = self._row(node, dim)
            if classes is not None:
                rows = tensor.movedim(dim, 0).reshape(len(classes), -1)
                parts.append(moments(classes, rows.mean(1), rows.var(1, correction=0)))
        return _joined(parts)

    def _normed(self, node: fx.Node, dim: int) -> Moments:
        classes = self._row(node, dim)
        if classes is None:
            return _NOTHING
        scale, shift = leaf(argument(node, "weight")), leaf(argument(node, "bias"))
        ones = torch.ones(len(classes), dtype=torch.float64)
        gamma = ones if scale is None else self._value(scale).flatten()
        beta = 0 * ones if shift is None else self._value(shift).flatten()
        return (
            moments(classes, beta, gamma.square(), told=True)
            if len(gamma) == len(beta) == len(classes)
            else self._together(node.all_input_nodes)
        )

    def _put_out(self, node: fx.Node, layer: Linear) -> Moments:
        matrix = layer.matrix(self._value(layer.weight))
        inputs = self._row(layer.source, layer.dim)
        groups, _, width, _ = matrix.shape
        mean, variance = self._found[layer.source].of(np.full(groups * width, NONE) if inputs is None else inputs)
        mean, variance = mean.reshape(groups, 1, -1), variance.reshape(groups, 1, -1)
        out = (matrix.sum(3) * mean).sum(2).flatten(), (matrix.square().sum(3) * variance).sum(2).flatten()
        self.layers[node] = layer, out[1]
        bias = 0.0 if layer.bias is None else self._value(layer.bias).flatten()
        classes = self._row(node, layer.dim)
        return _NOTHING if classes is None else moments(classes, out[0] + bias, out[1])

    def _sum(self, inputs: Sequence[fx.Node], sign: float) -> Moments:
        classes = self._classes(inputs)
        (m, v), (n, w) = (self._known(x, classes) for x in inputs)
        return Moments(classes, m + sign * n, v + w, all(self._found[x].told for x in inputs))

    def _product(self, inputs: Sequence[fx.Node]) -> Moments:
        classes = self._classes(inputs)
        (m, v), (n, w) = (self._known(x, classes, otherwise=1.0) for x in inputs)
        variance = v * w + v * n.square() + w * m.square()
        return Moments(classes, m * n, variance, all(self._found[x].told or x.op == "get_attr" for x in inputs))

    def _factors(self, node: fx.Node, inputs: Sequence[fx.Node]) -> list[float]:
        """The part that each input has in the output: together 1."""
        parts = [1.0] * len(inputs)
        name, told = short_name(node), all(self._found[x].told for x in inputs)
        if name == "scaled_dot_product_attention":
            parts = [0.25, 0.25, 0.5, *parts[3:]]
        elif name == "cat" or (told and name in _SUMS):
            parts = [float(self._found[x].variance.sum()) if told else float(len(self._found[x].classes)) for x in inputs]
        elif told and name in _PRODUCTS and len(inputs) == 2:
            classes = self._classes(inputs)
            (m, v), (n, w) = (self._known(x, classes, otherwise=1.0) for x in inputs)
            parts = [float((v * (w + n.square())).sum()), float((w * (v + m.square())).sum())]
        total = sum(parts)
        return [part / total if total else 1 / len(parts) for part in parts]

    def _known(self, node: fx.Node, classes: Labels, otherwise: float = 0.0) -> tuple[Tensor, Tensor]:
        """Moments of classes; a constant that changes nothing for those that have no place in it."""
        found = self._found[node]
        mean, variance = found.of(classes)
        if found or node.op == "get_attr":
            absent = torch.as_tensor(~np.isin(classes, found.classes))
            mean[absent], variance[absent] = otherwise, 0.0
        return mean, variance

    def _classes(self, inputs: Sequence[fx.Node]) -> Labels:
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(self._found[x].classes for x in inputs)]))

    def _together(self, inputs: Sequence[fx.Node]) -> Moments:
        return _joined([self._found[x] for x in inputs])

    def _row(self, node: fx.Node, dim: int) -> Labels | None:
        """The class at each position of one dimension."""
        for field in self._solution.walk.fields.get(node, ()) if node.op == "get_attr" else self._fields(node):
            if not field.block and field.dims == {dim % field.labels.ndim}:
                labels = field.labels.reshape(-1)
                return np.where(labels == NONE, NONE, self._solution.classes[labels])
        return None

    def _fields(self, node: fx.Node) -> Iterator[Any]:
        found = self._solution.walk.fields.get(node, ())
        yield from (f for f in found if hasattr(f, "labels"))

    def _value(self, name: str) -> Tensor:
        tensor = self._capture.leaf(name).detach().cpu()
        return (tensor.abs() if tensor.is_complex() else tensor).double()


def _joined(parts: Sequence[Moments]) -> Moments:
    if len(parts) == 1:
        return parts[0]
    return moments(
        np.concatenate([_NOTHING.classes, *(p.classes for p in parts)]),
        torch.cat([_NOTHING.mean, *(p.mean for p in parts)]),
        torch.cat([_NOTHING.mean, *(p.variance for p in parts)]),
        told=bool(parts) and all(p.told for p in parts),
    )


def _is_function(node: fx.Node) -> bool:
    """Whether each value that comes out depends on the one in its place, and on no chance."""
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and find(node.target) is pointwise
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )


def _through(node: fx.Node, given: Moments) -> Moments:
    """The moments behind a function of single values, from where on the grid it has a value: a root has none below zero."""
    points = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64).unsqueeze(1)
    weights = torch.exp(-points.square() / 2)
    values = given.mean + points * given.variance.sqrt()
    target: Any = node.target
    found = target(*fx.node.map_arg(node.args, lambda _: values), **fx.node.map_arg(node.kwargs, lambda _: values))
    if not isinstance(found, Tensor) or found.shape != values.shape or not found.is_floating_point():
        return given
    found = found.detach().cpu().double()
    weights = weights * found.isfinite()
    weights, found = weights / weights.sum(0).clamp_min(torch.finfo(weights.dtype).tiny), found.nan_to_num(0.0, 0.0, 0.0)
    mean = (weights * found).sum(0)
    variance = ((weights * found.square()).sum(0) - mean.square()).clamp(min=0)
    return Moments(given.classes, mean, variance, given.told)
