"""Pooling and resampling: channels pass, the dimensions that are pooled over stay whole."""

from __future__ import annotations

from secateur.groups.fields import Fields
from secateur.groups.meeting import Shaped, meet
from secateur.groups.rules.registry import Call, Operand, Outcome, rule

_NAMES = [f"aten.{kind}_pool{n}d" for kind in ("max", "adaptive_avg", "adaptive_max", "lp", "fractional_max") for n in (1, 2, 3)]
_NAMES += [f"aten.max_pool{n}d_with_indices" for n in (1, 2, 3)]
UPSAMPLE = [
    f"aten.upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "bicubic2d", "trilinear3d")
]
UPSAMPLE += [f"aten._upsample_{kind}_aa" for kind in ("bilinear2d", "bicubic2d")]
UPSAMPLE += [f"aten._upsample_nearest_exact{n}d" for n in (1, 2, 3)]
"""Operators that resample."""


def _passing(call: Call, x: Operand, first: int, text: str) -> Fields:
    held = tuple(f for f in x.fields if any(d >= first for d in f.dims))
    call.ledger.freeze_fields(held, text)
    return tuple(f for f in x.fields if f not in held)


@rule(*_NAMES)
def pool(call: Call) -> Outcome:
    """Every pooled dimension is spatial: the last ones, as many as the operator's name says."""
    x = call.operands()[0]
    name = str(call.node.target)
    spatial = int(name[name.index("pool") + 4])
    fields = _passing(call, x, len(x.shape) - spatial, "a dimension that pooling runs over")
    return [fields for _ in call.shapes] if len(call.shapes) > 1 else fields


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(call: Call) -> Outcome:
    """Values go back to the places that they were pooled from; channels of both meet."""
    first = len(call.shape) - (2 if "2d" in str(call.node.target) else 3)
    parts = [Shaped(o.shape[:first], _leading(call, o, first)) for o in (call["self"], call["indices"])]
    fields = meet(call.ledger, parts, first)
    return tuple(f.laid(f.labels.reshape(f.labels.shape + (1,) * (len(call.shape) - first))) for f in fields)


def _leading(call: Call, x: Operand, first: int) -> Fields:
    fields = _passing(call, x, first, "a dimension of places that values go back to")
    return tuple(f.laid(f.labels.reshape(f.labels.shape[:first])) for f in fields)


@rule(*UPSAMPLE)
def resample(call: Call) -> Outcome:
    """All dimensions but batch and channels are resampled; one that is asked for at the size that it has stays as it is."""
    x = call.operands()[0]
    resampled = frozenset(range(2, len(x.shape))) - _asked_as_they_are(call, x)
    held = tuple(f for f in x.fields if f.dims & resampled)
    call.ledger.freeze_fields(held, "a dimension that resampling runs over")
    return tuple(f for f in x.fields if f not in held)


def _asked_as_they_are(call: Call, x: Operand) -> frozenset[int]:
    """Dimensions whose new size is a number, and their own."""
    sizes = call.node.args[1]
    scaled = any(value is not None for name, value in call.args.items() if name.startswith("scale"))
    if scaled or not isinstance(sizes, list | tuple):
        return frozenset()
    return frozenset(dim for dim, size in enumerate(sizes, 2) if isinstance(size, int) and size == x.shape[dim])


@rule("aten.grid_sampler", "aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sample(call: Call) -> Outcome:
    """Channels of the sampled map pass; the grid's positions stay."""
    call.ledger.freeze_fields(call["grid"].fields, "positions to sample at")
    return _passing(call, call["input"], 2, "a dimension that sampling runs over")


@rule("torchvision.roi_align", "torchvision.roi_pool")
def roi(call: Call) -> Outcome:
    """Channels of the map pass to every region."""
    x, boxes = call.operands()
    call.ledger.freeze_fields(boxes.fields, "boxes of regions")
    call.ledger.freeze_fields(tuple(f for f in x.fields if f.dims != {1}), "a dimension that regions are cut from")
    fields = tuple(f for f in x.fields if f.dims == {1})
    return [fields, ()] if len(call.shapes) > 1 else fields
