"""Replace one layer by a sequence of smaller plain layers that compute almost the same.

A method is a frozen dataclass that turns a kernel into factor kernels; `decompose` does everything around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from secateur.decompose.calls import Call, workload
from secateur.decompose.linalg import compose
from secateur.decompose.metric import Metric
from secateur.decompose.moments import Moments
from secateur.decompose.slopes import Slopes, turned
from secateur.decompose.spec import Cost, LayerSpec, Refusal, build, cost, read_spec, to_kernel, to_weight
from secateur.errors import SelectionError

Rank = tuple[int, ...]


class Decomposition(Protocol):
    """A way of writing a kernel as a product of smaller ones.

    Calling it returns the factor kernels by role, in the order in which data meets them; `layers` describes the layers that hold them.
    """

    @property
    def name(self) -> str: ...

    def obstacle(self, spec: LayerSpec) -> str | None:
        """Say why the method does not fit a layer, if it does not."""

    def limits(self, spec: LayerSpec) -> Rank:
        """Return the largest rank of each mode; at these the decomposition is exact."""

    def layers(self, spec: LayerSpec, rank: Rank) -> Mapping[str, LayerSpec]:
        """Describe the layers, by role, that replace one layer at some rank."""

    def unfoldings(self, kernel: Tensor) -> tuple[Tensor, ...]:
        """Return the matrices `(groups, rows, columns)` whose spectra speak for the ranks."""

    def from_mode_ranks(self, ranks: Rank) -> Rank:
        """Turn one rank for each unfolding into the method's own rank."""

    def squared_errors(self, kernel: Tensor, metric: Metric | None = None, *, round_to: int = 1) -> Mapping[Rank, float]:
        """Return the squared error, or an upper bound of it, at candidate ranks that are full or multiples of `round_to`."""

    def __call__(self, kernel: Tensor, rank: Rank, metric: Metric | None = None) -> Mapping[str, Tensor]:
        """Fit the factor kernels of a float64 kernel `(groups, out, in, *extent)`."""


@dataclass(frozen=True)
class Factorized:
    """A layer as a sequence of smaller layers, and what that costs.

    `weight` is the weight that the dense layer would need to compute the same as `module`, in float64 and made from the factors as they are
    stored, so that a proof may put it into the dense model; `bias` belongs to it. `output_error` is relative to the layer's output under
    the calibration inputs, and None without them.
    """

    method: Decomposition
    rank: Rank
    module: nn.Sequential
    weight: Tensor
    bias: Tensor | None
    relative_error: float
    output_error: float | None
    before: Cost
    after: Cost

    @property
    def params_ratio(self) -> float:
        """Return which part of the parameters remains."""
        return self.after.params / self.before.params

    @property
    def macs_ratio(self) -> float:
        """Return which part of the multiply-adds remains."""
        return self.after.macs / self.before.macs


def decompose(
    layer: nn.Module,
    method: Decomposition,
    rank: int | Sequence[int],
    *,
    moments: Moments | None = None,
    slopes: Slopes | None = None,
    correct_bias: bool = True,
    accept_dearer: bool = False,
    trust_forward: bool = False,
    size: Sequence[int] | None = None,
) -> Factorized:
    """Factorize a layer at a given rank, or raise `SelectionError` with the reason why not.

        decompose(nn.Linear(512, 512), SVD(), 64).module   # Sequential(reduce: 512 -> 64, expand: 64 -> 512)

    With `moments` of the layer's inputs the error of its outputs is minimised instead of that of its weight, and the bias takes up the mean
    of what is lost. Where the moments know the dense model's inputs too, the outputs on these are the aim. With `slopes` it is the error of
    the model's outputs.
    `size` is the spatial size of the input, for counting multiply-adds.
    """
    spec = read_spec(layer, trust_forward=trust_forward)
    found = spec if isinstance(spec, Refusal) else check(spec, method, rank, accept_dearer=accept_dearer, size=size)
    if isinstance(found, Refusal) or isinstance(spec, Refusal):
        raise SelectionError(f"{method.name} cannot factorize {layer}: {found.reason if isinstance(found, Refusal) else ''}")
    return _factorize(layer, spec, method, found, moments=moments, slopes=slopes, correct_bias=correct_bias, size=size)


def check(
    spec: LayerSpec, method: Decomposition, rank: int | Sequence[int], *, accept_dearer: bool = False, size: Sequence[int] | None = None
) -> Rank | Refusal:
    """Return the rank in full if the method can factorize such a layer at it with a gain, else why not."""
    obstacle = too_narrow(spec) or method.obstacle(spec)
    if obstacle is not None:
        return Refusal(obstacle)
    limits = method.limits(spec)
    full = (rank,) * len(limits) if isinstance(rank, int) else tuple(rank)
    if len(full) != len(limits) or not all(1 <= r <= limit for r, limit in zip(full, limits, strict=True)):
        return Refusal(f"rank {rank} is outside 1 to {limits if len(limits) > 1 else limits[0]}")
    calls = () if size is None else (Call(1, tuple(size)),)
    before, after = workload([spec], calls), cost_at(spec, method, full, calls)
    if not accept_dearer and (after.macs >= before.macs or after.params >= before.params):
        return Refusal(f"rank {rank} makes it dearer: MACs {before.macs} -> {after.macs}, parameters {before.params} -> {after.params}")
    return full


def cost_at(spec: LayerSpec, method: Decomposition, rank: Rank, calls: Sequence[Call] = ()) -> Cost:
    """Count what the layers that replace one would cost at some rank, over all calls, or in one at a nominal size."""
    return workload(list(method.layers(spec, rank).values()), calls)


def kernel_for(layer: nn.Module, method: Decomposition, *, trust_forward: bool = False) -> tuple[LayerSpec, Tensor] | Refusal:
    """Read a layer's settings and its float64 kernel `(groups, out, in, *extent)` if the method applies to it, else why not."""
    spec = read_spec(layer, trust_forward=trust_forward)
    if isinstance(spec, Refusal):
        return spec
    obstacle = too_narrow(spec) or method.obstacle(spec)
    return Refusal(obstacle) if obstacle is not None else (spec, to_kernel(_precise(_tensors(layer)[0]), spec))


def too_narrow(spec: LayerSpec) -> str | None:
    """Say whether a layer has nothing to share between channels."""
    if spec.groups > 1 and (spec.group_inputs == 1 or spec.group_outputs == 1):
        return "it is depthwise: a group of one channel has no rank to lower"
    if min(spec.group_inputs, spec.group_outputs) == 1:
        return "it has a single input or output channel, so there is no rank to lower"
    return None


def _factorize(
    layer: nn.Module,
    spec: LayerSpec,
    method: Decomposition,
    rank: Rank,
    *,
    moments: Moments | None,
    slopes: Slopes | None,
    correct_bias: bool,
    size: Sequence[int] | None,
) -> Factorized:
    weight, bias = _tensors(layer)
    kernel = to_kernel(_precise(weight), spec)
    metric = None if moments is None else Metric.of(moments, spec, centred=correct_bias).to(kernel)
    specs = _with_bias(method.layers(spec, rank), moved=moments is not None and correct_bias)
    # Rounded first: the recomposed weight must be that of the stored factors.
    wanted = kernel if metric is None else metric.restored(kernel)
    factors = {role: factor.to(weight.dtype) for role, factor in _fitted(method, wanted, rank, metric, slopes).items()}
    recomposed = compose([factor.double() for factor in factors.values()])
    lost = kernel - recomposed
    if metric is not None and correct_bias:
        shift = metric.mean_output(kernel, dense=True) - metric.mean_output(recomposed)
        bias = (shift if bias is None else bias.to(shift) + shift).to(weight.dtype)
    module = _sequence(specs, factors, bias, layer)
    return Factorized(
        method=method,
        rank=rank,
        module=module,
        weight=to_weight(recomposed, spec),
        bias=None if bias is None else bias.double(),
        relative_error=_relative(lost, kernel),
        output_error=None if metric is None else _output_error(metric, wanted, recomposed),
        before=cost([spec], size),
        after=cost(list(specs.values()), size),
    )


def _fitted(method: Decomposition, kernel: Tensor, rank: Rank, metric: Metric | None, slopes: Slopes | None) -> Mapping[str, Tensor]:
    if slopes is None:
        return method(kernel, rank, metric)
    root, inverse = slopes.unit_root()
    factors = method(turned(kernel, root), rank, metric)
    *_, last = factors
    return {**factors, last: turned(factors[last], inverse)}


def _tensors(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight, bias = layer.weight, getattr(layer, "bias", None)
    assert isinstance(weight, Tensor)
    if not all(bool(end.isfinite()) for end in torch.aminmax(weight)):
        raise SelectionError(f"{layer} cannot be factorized: its weight holds values that are not finite")
    return weight.detach(), bias.detach() if isinstance(bias, Tensor) else None


def _precise(weight: Tensor) -> Tensor:
    # Apple's devices have no float64.
    return (weight.cpu() if weight.device.type == "mps" else weight).double()


def _with_bias(specs: Mapping[str, LayerSpec], *, moved: bool) -> dict[str, LayerSpec]:
    *_, last = specs
    return {**specs, last: replace(specs[last], bias=specs[last].bias or moved)}


def _sequence(specs: Mapping[str, LayerSpec], factors: Mapping[str, Tensor], bias: Tensor | None, layer: nn.Module) -> nn.Sequential:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    module = nn.Sequential()
    for role, spec in specs.items():
        placed = None if bias is None or not spec.bias else bias.to(weight.device)
        module.add_module(role, build(spec, factors[role].to(weight.device), placed, trainable=weight.requires_grad))
    return module.train(layer.training)


def _output_error(metric: Metric, wanted: Tensor, recomposed: Tensor) -> float:
    return metric.norm(wanted - recomposed) / max(metric.norm(wanted), torch.finfo(torch.float64).tiny)


def _relative(difference: Tensor, whole: Tensor) -> float:
    return float(difference.norm() / whole.norm().clamp_min(torch.finfo(whole.dtype).tiny))
