"""Pooling, and changes of resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.capture.onnx.operators.padding import same_pads, split_pads, torch_pads
from secateur.capture.onnx.registry import Call, operator
from secateur.capture.onnx.values import Value

_MAX: Sequence[Callable[..., Tensor]] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE: Sequence[Callable[..., Tensor]] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _window(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, stride, dilation, and padding before and after."""
    kernel = list(call.attribute("kernel_shape"))
    ones = [1] * len(kernel)
    stride, dilation = list(call.attribute("strides", ones)), list(call.attribute("dilations", ones))
    before, after = split_pads(call.node, len(kernel))
    auto = call.attribute("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        before, after = same_pads(x.shape[2:], kernel, stride, dilation, upper=auto == "SAME_UPPER")
    return kernel, stride, dilation, before, after


@operator("MaxPool")
def max_pool(call: Call) -> Value:
    if len([name for name in call.node.outputs if name]) > 1:
        raise call.node.refuse("the places of the largest values, as an output, cannot be read")
    x = call.tensor(0)
    kernel, stride, dilation, before, after = _window(call, x)
    padding = before if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)) else [0] * len(kernel)
    if padding != before or padding != after:
        x = F.pad(x, torch_pads(before, after), value=float("-inf"))
    return _MAX[len(kernel) - 1](x, kernel, stride, padding, dilation, ceil_mode=bool(call.attribute("ceil_mode", 0)))


@operator("AveragePool")
def average_pool(call: Call) -> Value:
    x = call.tensor(0)
    kernel, stride, dilation, before, after = _window(call, x)
    if any(d != 1 for d in dilation):
        raise call.node.refuse("an average over places that lie apart cannot be read")
    pool, ceil = _AVERAGE[len(kernel) - 1], bool(call.attribute("ceil_mode", 0))
    counts = bool(call.attribute("count_include_pad", 0))
    if before == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, stride, before, ceil_mode=ceil, count_include_pad=counts)
    pads = torch_pads(before, after)
    total = pool(F.pad(x, pads), kernel, stride, ceil_mode=ceil)
    return total if counts else total / pool(F.pad(torch.ones_like(x[:1, :1]), pads), kernel, stride, ceil_mode=ceil)


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Value:
    x = call.tensor(0)
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call) -> Value:
    x = call.tensor(0)
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Value:
    x, block = call.tensor(0), call.attribute("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, block, block, channels // block**2, height, width)
    return apart.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Value:
    x, block = call.tensor(0), call.attribute("blocksize")
    batch, channels, height, width = x.shape
    apart = x.reshape(batch, channels, height // block, block, width // block, block)
    return apart.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * block**2, height // block, width // block)


@operator("Resize", "Upsample", numbers=(1, 2, 3))
def resize(call: Call) -> Value:
    """A new resolution, in the ways in which torch knows one too."""
    x = call.tensor(0)
    scales, sizes = _resolution(call, x.dim())
    kept = x.dim() - len(scales if scales is not None else sizes or [])
    given = scales if scales is not None else [new / old for new, old in zip(sizes or [], x.shape[kept:], strict=True)]
    mode = _mode(call, x.dim(), given)
    options: dict[str, Any] = {} if mode.startswith("nearest") else {"align_corners": _transformation(call) == "align_corners"}
    options |= {"antialias": True} if call.attribute("antialias", 0) else {}
    spatial = list(range(2, x.dim()))
    if scales is not None:
        return F.interpolate(x, scale_factor=[float(scales[d - kept]) for d in spatial], mode=mode, **options)
    assert sizes is not None
    return F.interpolate(x, size=[sizes[d - kept] for d in spatial], mode=mode, **options)


def _resolution(call: Call, rank: int) -> tuple[list[Any] | None, list[Any] | None]:
    """Scales or sizes of the last dimensions, at least of the spatial ones."""
    old = call.node.opset < 11
    scales = call.numbers(1 if old else 2) if call.has(1 if old else 2) else None
    sizes = call.integers(3) if call.has(3) else None
    found = scales if scales else sizes
    if found is None or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.node.refuse("a resolution that is neither given by scales nor by sizes cannot be read")
    axes = [axis % rank for axis in call.attribute("axes", range(rank))]
    if axes != list(range(rank - len(axes), rank)) or len(axes) < rank - 2:
        raise call.node.refuse(f"a change of resolution along axes {axes} alone cannot be read")
    ahead = found[: max(len(axes) - rank + 2, 0)]
    if scales and any(scale != 1 for scale in ahead):
        raise call.node.refuse("a change of the number of samples or channels cannot be read")
    return (scales, None) if scales else (None, sizes)


def _transformation(call: Call) -> str:
    return str(call.attribute("coordinate_transformation_mode", "asymmetric" if call.node.opset < 11 else "half_pixel"))


def _mode(call: Call, rank: int, scales: Sequence[Any]) -> str:
    """Torch's name for a way of resampling; an error if there is none."""
    mode, places = call.attribute("mode", "nearest"), _transformation(call)
    if mode == "nearest":
        rounding = call.attribute("nearest_mode", "floor" if call.node.opset < 11 else "round_prefer_floor")
        if (places, rounding) == ("asymmetric", "floor"):
            return "nearest"
        centred = places in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor", "round_prefer_ceil")
        whole = all(isinstance(scale, int | float) and float(scale).is_integer() and scale >= 1 for scale in scales)
        if centred or (whole and places == "asymmetric" and rounding == "round_prefer_floor" and max(scales) <= 2):
            return "nearest-exact" if centred else "nearest"
    elif places in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if mode == "cubic" and rank == 4 and abs(call.attribute("cubic_coeff_a", -0.75) + 0.75) < 1e-6:
            return "bicubic"
        if mode == "linear":
            return {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
    raise call.node.refuse(f"resampling {mode} with coordinates {places} has no counterpart in PyTorch")


@operator("GridSample")
def grid_sample(call: Call) -> Value:
    mode = str(call.attribute("mode", "bilinear")).removeprefix("bi")
    named = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}[mode]
    padding = call.attribute("padding_mode", "zeros")
    return F.grid_sample(
        call.tensor(0), call.tensor(1), mode=named, padding_mode=padding, align_corners=bool(call.attribute("align_corners", 0))
    )
