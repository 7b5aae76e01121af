"""What a linear or convolution layer is, as a value: read from a module, counted, and built again with other widths.

Every kernel here has one shape, `(groups, out, in, *extent)` with widths per group, so that linear layers (no extent), convolutions,
transposed convolutions and their groups share the same mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.decompose.linear_maps import holds_matrix, inputs_first

Pairs = tuple[int, ...]
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_CONVOLUTIONS: dict[tuple[bool, int], type[nn.Module]] = {
    (False, 1): nn.Conv1d,
    (False, 2): nn.Conv2d,
    (False, 3): nn.Conv3d,
    (True, 1): nn.ConvTranspose1d,
    (True, 2): nn.ConvTranspose2d,
    (True, 3): nn.ConvTranspose3d,
}
_BASES: tuple[type[nn.Module], ...] = (nn.Linear, *_CONVOLUTIONS.values())
# Cheaper than this an extent says little about the cost at real resolutions; 64 divides by the usual strides.
_NOMINAL_SIZE = 64


@dataclass(frozen=True)
class Refusal:
    """Why a layer stays as it is."""

    reason: str


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of a layer, or of the layers that replace it."""

    params: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)


@dataclass(frozen=True)
class LayerSpec:
    """The settings of one plain linear or convolution layer; a linear layer is a convolution without extent."""

    inputs: int
    outputs: int
    extent: Pairs = ()
    stride: Pairs = ()
    padding: Pairs | str = ()
    dilation: Pairs = ()
    output_padding: Pairs = ()
    groups: int = 1
    padding_mode: str = "zeros"
    transposed: bool = False
    bias: bool = False
    inputs_first: bool = False
    """Whether a linear layer's weight has the shape ``(in, out)``, as other classes than torch's may store it."""

    @property
    def group_inputs(self) -> int:
        return self.inputs // self.groups

    @property
    def group_outputs(self) -> int:
        return self.outputs // self.groups

    @property
    def taps(self) -> int:
        return math.prod(self.extent)

    @property
    def params(self) -> int:
        return self.group_inputs * self.outputs * self.taps + self.bias * self.outputs

    def pointwise(self, inputs: int, outputs: int, *, bias: bool = False) -> LayerSpec:
        """Describe the layer of extent one, same groups, that mixes channels next to this one."""
        rank = len(self.extent)
        ones, zeros = (1,) * rank, (0,) * rank
        return LayerSpec(inputs, outputs, ones, ones, zeros, ones, zeros, self.groups, bias=bias)

    def along(self, axes: Sequence[int], inputs: int, outputs: int) -> LayerSpec:
        """Describe the bias-free layer that does this one's work along some spatial axes and nothing along the others."""

        def only(values: Pairs, other: int) -> Pairs:
            return tuple(value if axis in axes else other for axis, value in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else only(self.padding, 0)
        return replace(
            self,
            inputs=inputs,
            outputs=outputs,
            extent=only(self.extent, 1),
            stride=only(self.stride, 1),
            padding=padding,
            dilation=only(self.dilation, 1),
            output_padding=only(self.output_padding, 0),
            bias=False,
        )

    def output_size(self, size: Sequence[int]) -> Pairs:
        """Compute the spatial size of the output from that of the input."""
        if not self.extent or self.padding == "same":
            return tuple(size)
        padding = (0,) * len(size) if isinstance(self.padding, str) else self.padding
        settings = zip(size, self.extent, self.stride, padding, self.dilation, self.output_padding, strict=True)
        if self.transposed:
            return tuple((n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in settings)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in settings)

    def macs(self, size: Sequence[int]) -> int:
        """Count the multiply-adds for one sample of the given spatial size (for a linear layer: its other dimensions)."""
        positions = math.prod(size if self.transposed else self.output_size(size))
        return positions * self.group_inputs * self.outputs * self.taps

    def nominal_size(self) -> Pairs:
        """Choose a spatial size that stands for the real one while that is not known."""
        return tuple(max(_NOMINAL_SIZE, 4 * d * k) for k, d in zip(self.extent, self.dilation, strict=True))


def cost(specs: Sequence[LayerSpec], size: Sequence[int] | None = None) -> Cost:
    """Count parameters and multiply-adds of layers that follow each other, for one sample of the given spatial size."""
    size = specs[0].nominal_size() if size is None else size
    total = Cost(0, 0)
    for spec in specs:
        total += Cost(spec.params, spec.macs(size))
        size = spec.output_size(size)
    return total


def base_class(module: nn.Module) -> type[nn.Module] | None:
    """Find which plain linear or convolution class a module is, or derives from."""
    return next((base for base in _BASES if isinstance(module, base)), None)


def read_spec(module: nn.Module, *, trust_forward: bool = False) -> LayerSpec | Refusal:
    """Read a layer's settings, or say why they do not tell what it computes.

    With `trust_forward` a subclass that overrides `forward` is read as its base class, and a module of any class that multiplies by the one
    matrix that it holds as a linear layer: for callers who have checked that it acts as one.
    """
    base = base_class(module)
    if base is None and not holds_matrix(module):
        return Refusal(f"{type(module).__name__} is neither a linear nor a convolution layer")
    reason = _obstacle(module, base, trust_forward=trust_forward)
    if reason is not None:
        return Refusal(reason)
    if base is None:
        return _read_linear_map(module)
    return _read_linear(module) if isinstance(module, nn.Linear) else _read_convolution(module)


def _obstacle(module: nn.Module, base: type[nn.Module] | None, *, trust_forward: bool) -> str | None:
    name = type(module).__name__
    weight = getattr(module, "weight", None)
    reasons = {
        "its weight has no values yet": isinstance(weight, nn.UninitializedParameter) or (isinstance(weight, Tensor) and weight.is_meta),
        "its weight is not of a real floating type": isinstance(weight, Tensor) and not weight.is_floating_point(),
        "its weight is parametrized: remove the parametrization first": parametrize.is_parametrized(module),
        "it carries forward hooks, which would be lost": bool(module._forward_hooks or module._forward_pre_hooks),
        # Multi-head attention reads this attribute of its output projection instead of calling it.
        f"{name} is read by its parent through its weight, which factors do not have": name == "NonDynamicallyQuantizableLinear",
    }
    return next((reason for reason, holds in reasons.items() if holds), None if trust_forward else _doubt(module, base))


def _doubt(module: nn.Module, base: type[nn.Module] | None) -> str | None:
    """Say why a module's class does not tell what it computes, if it does not."""
    name = type(module).__name__
    if base is None:
        return f"{name} is a class of its own and was not seen to compute a product with its weight alone, in evaluation and in training"
    overridden = [
        method for method in ("forward", "_conv_forward") if getattr(type(module), method, None) is not getattr(base, method, None)
    ]
    told = f"{name} overrides {' and '.join(overridden)} of {base.__name__}, so its settings do not tell what it computes"
    return told if overridden else None


def _read_linear(module: nn.Linear) -> LayerSpec:
    return LayerSpec(module.in_features, module.out_features, bias=module.bias is not None)


def _read_linear_map(module: Any) -> LayerSpec | Refusal:
    first = inputs_first(module)
    if first is None:
        return Refusal(f"{type(module).__name__} does not multiply its input by its weight")
    inputs, outputs = module.weight.shape if first else reversed(module.weight.shape)
    return LayerSpec(inputs, outputs, bias=getattr(module, "bias", None) is not None, inputs_first=first)


def _read_convolution(module: Any) -> LayerSpec:
    return LayerSpec(
        inputs=module.in_channels,
        outputs=module.out_channels,
        extent=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=module.padding if isinstance(module.padding, str) else tuple(module.padding),
        dilation=tuple(module.dilation),
        output_padding=tuple(module.output_padding),
        groups=module.groups,
        padding_mode=module.padding_mode,
        transposed=module.transposed,
        bias=module.bias is not None,
    )


def to_kernel(weight: Tensor, spec: LayerSpec) -> Tensor:
    """View a layer's weight as `(groups, out, in, *extent)`."""
    if spec.transposed or spec.inputs_first:
        return weight.reshape(spec.groups, spec.group_inputs, spec.group_outputs, *spec.extent).transpose(1, 2)
    return weight.reshape(spec.groups, spec.group_outputs, spec.group_inputs, *spec.extent)


def to_weight(kernel: Tensor, spec: LayerSpec) -> Tensor:
    """Turn `(groups, out, in, *extent)` into the shape of the layer's weight."""
    if spec.transposed or spec.inputs_first:
        return kernel.transpose(1, 2).reshape(spec.inputs, spec.group_outputs, *spec.extent).contiguous()
    return kernel.reshape(spec.outputs, spec.group_inputs, *spec.extent).contiguous()


def weight_shape(spec: LayerSpec) -> tuple[int, ...]:
    """Return the shape of the layer's weight."""
    widths = (spec.inputs, spec.group_outputs) if spec.transposed or spec.inputs_first else (spec.outputs, spec.group_inputs)
    return (*widths, *spec.extent)


def build(spec: LayerSpec, kernel: Tensor, bias: Tensor | None, *, trainable: bool = True) -> nn.Module:
    """Build the plain layer that a spec describes, with the given kernel and bias."""
    module: Any = _bare_linear(spec) if not spec.extent else _bare_convolution(spec)
    module.weight = nn.Parameter(to_weight(kernel, replace(spec, inputs_first=False)), requires_grad=trainable)
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=trainable)
    built: nn.Module = module
    return built


def _bare_linear(spec: LayerSpec) -> nn.Module:
    return nn.Linear(spec.inputs, spec.outputs, bias=spec.bias, device="meta")


def _bare_convolution(spec: LayerSpec) -> nn.Module:
    build_convolution = _CONVOLUTIONS[spec.transposed, len(spec.extent)]
    settings: dict[str, Any] = {
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "padding_mode": spec.padding_mode,
        "bias": spec.bias,
        "device": torch.device("meta"),
    }
    if spec.transposed:
        settings["output_padding"] = spec.output_padding
    return build_convolution(spec.inputs, spec.outputs, spec.extent, **settings)
