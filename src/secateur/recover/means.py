"""Make up for the mean of what goes, without data: batch norm knows what comes out of it on average."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from secateur.capture.calls import arguments, leaf, packet
from secateur.groups.rules.pointwise import pointwise
from secateur.groups.rules.registry import find
from secateur.recover.readers import Reader, readers
from secateur.recover.recovery import Change, Recovered, own_tensors
from secateur.rewrite import Cut, Slices
from secateur.score.batches import Data
from secateur.score.moments import Expectation

POINTS, REACH = 1025, 6.0
"""Points at which an activation is looked at, and how many standard deviations away the last ones lie."""
_AVERAGES = ("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", "aten.mean")
_MOVES = (
    "aten.flatten",
    "aten.view",
    "aten.reshape",
    "aten.squeeze",
    "aten.unsqueeze",
    "aten.permute",
    "aten.transpose",
    "aten.contiguous",
)


@dataclass(frozen=True)
class FoldMeans:
    """Add what removed channels gave on average to the biases of the layers that read them, without data.

        b' = b + W_removed E[f(z)],    z ~ N(beta, gamma^2)

    for channels that come from a batch norm with shift beta and scale gamma through pointwise operators f, whichever they
    are; and let the running variance of a batch norm right behind such a layer fall to the part that the kept channels make:

        var' = var sum_kept W^2 var[f(z)] / sum_all W^2 var[f(z)]

    The mean is a weighted sum over a fine grid. Averages over positions and changes of shape on the way do not
    matter. Where a layer has no bias, the running mean of a batch norm right behind takes the shift. Borders that
    a convolution pads are taken for inner positions. Layers that read anything else stay as they are.

    The bias correction of Nagel et al., ICCV 2019, for channels in place of rounding; variances as in REPAIR (Jordan et al., ICLR 2023),
    by expectation in place of data.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 1)).eval()
        >>> study = sc.study(model, torch.randn(1, 3, 8, 8))
        >>> plan = study.plan(ratio=0.5)
        >>> list(FoldMeans()(sc.apply(study, plan).model, study.cut(plan)).changes)
        ['3']
    """

    variances: bool = True
    """Let running variances follow."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Fold in place."""
        slices, means, own = Slices.of(cut), _Means(cut), own_tensors(model)
        expected = Expectation(cut.solution)
        found, _ = readers(cut.solution.walk.capture.graph)
        changes, skipped = {}, {}
        for name, reader in found.items():
            if (0 if reader.transposed else 1) not in slices.kept.get(name, {}):
                continue
            layer = name.rpartition(".")[0] or name
            shift = _shift(cut, reader, means)
            if reader.offset is None:
                skipped[layer] = "neither a bias nor a batch norm behind it can take a shift"
            elif shift is None:
                skipped[layer] = "no batch norm says what its removed inputs are on average"
            else:
                tensor = own[next(n for n in cut.solution.walk.capture.tied.get(reader.offset[1], reader.offset[1:]) if n in own)]
                kept = slices.apply(reader.offset[1], shift)
                with torch.no_grad():
                    tensor += (kept if reader.offset[0] == "bias" else -kept).to(tensor)
                if self.variances:
                    _spread(cut, reader, expected, slices, own)
                changes[layer] = Change()
        return Recovered("folding the means of removed channels", changes, skipped)


def _shift(cut: Cut, reader: Reader, means: _Means) -> Tensor | None:
    """What the removed inputs give on average: shape ``(out,)``."""
    inputs = cut.fields(reader.source)
    field = next((f for f in inputs if not f.block and f.dims == {_channel_dim(reader)}), None)
    if field is None:
        return None
    labels = field.labels.reshape(-1)
    known = means.of(reader.source)
    classes = cut.solution.classes[labels]
    gone = ~cut.keeps(labels)
    if not {int(c) for c in classes[gone]} <= set(known):
        return None
    mean = torch.tensor([known.get(int(c), 0.0) if lost else 0.0 for c, lost in zip(classes, gone, strict=True)], dtype=torch.float64)
    matrix = reader.matrix(cut.solution.walk.capture.leaf(reader.weight).detach()).double()
    grouped = mean.reshape(reader.groups, 1, -1).expand(-1, reader.taps, -1).flatten(1).to(matrix.device)
    return torch.einsum("goi,gi->go", matrix, grouped).flatten()


def _spread(cut: Cut, reader: Reader, expected: Expectation, slices: Slices, own: Mapping[str, Tensor]) -> None:
    """Scale the running variance right behind a layer by the part of the expected one that the kept inputs make."""
    name = _variance_behind(reader)
    layer = expected.layers.get(reader.node)
    labels = next((f.labels.reshape(-1) for f in cut.fields(reader.source) if not f.block and f.dims == {_channel_dim(reader)}), None)
    if name is None or name not in own or layer is None or labels is None or not expected[reader.source].told:
        return
    squares = layer[0].matrix(cut.solution.walk.capture.leaf(reader.weight).detach().cpu().double()).square().sum(3)
    _, variance = expected[reader.source].of(cut.solution.classes[labels])
    kept = torch.as_tensor(cut.keeps(labels))
    whole, left = ((squares * x.reshape(len(squares), 1, -1)).sum(2).flatten() for x in (variance, variance * kept))
    part = torch.where(whole > 0, left / whole.clamp_min(torch.finfo(whole.dtype).tiny), 1)
    with torch.no_grad():
        own[name].mul_(slices.apply(name, part).to(own[name]))


def _channel_dim(reader: Reader) -> int:
    return len(reader.source.meta["fact"].shape) + reader.channel_dim


def _variance_behind(reader: Reader) -> str | None:
    """The running variance of a batch norm that alone takes the layer's outputs."""
    behind = next(iter(reader.node.users)) if len(reader.node.users) == 1 else None
    if behind is None or packet(behind) != "aten.batch_norm":
        return None
    name = leaf(arguments(behind)["running_var"])
    return name if name is not None and len(cast(fx.Node, arguments(behind)["running_var"]).users) == 1 else None


@dataclass(frozen=True, eq=False)
class _Values:
    """What one batch norm and pointwise operators behind it make of points of a normal distribution."""

    norm: fx.Node
    classes: list[int]
    """The class of each channel."""
    values: Tensor
    """``(points, channels)``"""


class _Means:
    """Means of activations, by class of channel, as batch norm statistics and the operators behind tell them."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._capture = cut.solution.walk.capture

    def of(self, node: fx.Node) -> dict[int, float]:
        """The mean of each class of channels in a node's output; those that nothing is known of are left out."""
        name = packet(node)
        if name in _AVERAGES or name in _MOVES:
            return self.of(node.all_input_nodes[0])
        if name == "aten.cat":
            return _without_repeats([self.of(part) for part in node.all_input_nodes])
        found = self._values(node)
        return {} if found is None else dict(zip(found.classes, (self._weights @ found.values).tolist(), strict=True))

    @cached_property
    def _points(self) -> Tensor:
        return torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)

    @cached_property
    def _weights(self) -> Tensor:
        density = torch.exp(-self._points.square() / 2)
        return density / density.sum()

    def _values(self, node: fx.Node) -> _Values | None:
        if packet(node) == "aten.batch_norm":
            return self._normal(node)
        if find(node.target) is not pointwise or any(n.op == "get_attr" for n in node.all_input_nodes):
            return None
        sources = {n: self._values(n) for n in node.all_input_nodes}
        known = [v for v in sources.values() if v is not None]
        if len(known) < len(sources) or len({v.norm for v in known}) != 1:
            return None

        def value(n: fx.Node) -> Any:
            found = sources[n]
            return None if found is None else found.values

        target: Any = node.target
        return replace(known[0], values=target(*fx.node.map_arg(node.args, value), **fx.node.map_arg(node.kwargs, value)))

    def _normal(self, node: fx.Node) -> _Values | None:
        given = arguments(node)
        scale, shift = leaf(given["weight"]), leaf(given["bias"])
        field = next((f for f in self._cut.fields(node) if not f.block and f.dims == {1}), None)
        if given["training"] or scale is None or shift is None or field is None:
            return None
        gamma, beta = (self._capture.leaf(name).detach().double().cpu() for name in (scale, shift))
        classes = self._cut.solution.classes[field.labels.reshape(-1)].tolist()
        return _Values(node, classes, beta + self._points.unsqueeze(1) * gamma)


def _without_repeats(parts: Sequence[dict[int, float]]) -> dict[int, float]:
    """Means of all parts, without those of classes that two parts have: these are not the same channels."""
    counts = Counter(c for part in parts for c in part)
    return {c: mean for part in parts for c, mean in part.items() if counts[c] == 1}
