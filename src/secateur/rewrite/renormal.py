"""Statistics over the kept positions of a masked tensor, which is what the smaller model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Dims = Sequence[int]


def _dims(dim: int | Dims | None, rank: int) -> list[int]:
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return list(range(rank))
    return [dim] if isinstance(dim, int) else list(dim)


def _mean(x: Tensor, kept: Tensor, dims: Dims, keepdim: bool = True) -> Tensor:
    count = kept.to(x.dtype).sum(list(dims), keepdim=keepdim)
    return torch.where(kept, x, 0).sum(list(dims), keepdim=keepdim) / count


def _variance(x: Tensor, kept: Tensor, dims: Dims, correction: float) -> tuple[Tensor, Tensor]:
    mean = _mean(x, kept, dims)
    count = kept.to(x.dtype).sum(list(dims), keepdim=True)
    squares = torch.where(kept, (x - mean) ** 2, 0).sum(list(dims), keepdim=True)
    return squares / (count - correction), mean


def _squeezed(x: Tensor, dims: Dims, keepdim: bool) -> Tensor:
    return x if keepdim else x.squeeze(tuple(dims))


def _normalised(x: Tensor, kept: Tensor, dims: Dims, eps: float) -> Tensor:
    variance, mean = _variance(x, kept, dims, 0)
    return (x - mean) / torch.sqrt(variance + eps)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Layer norm over the kept positions."""
    dims = list(range(-len(a["normalized_shape"]), 0))
    return _scaled(_normalised(a["input"], kept, dims, a["eps"]), a["weight"], a["bias"])


def rms_norm(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Root-mean-square norm over the kept positions."""
    x, dims = a["input"], list(range(-len(a["normalized_shape"]), 0))
    eps = torch.finfo(x.dtype).eps if a["eps"] is None else a["eps"]
    return _scaled(x * torch.rsqrt(_mean(x * x, kept, dims) + eps), a["weight"], None)


def group_norm(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Group norm over the kept positions of each group."""
    x, groups = a["input"], a["num_groups"]
    split = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    dims = list(range(2, len(split)))
    normal = _normalised(x.reshape(split), kept.expand(x.shape).reshape(split), dims, a["eps"]).reshape(x.shape)
    tail = (-1, *[1] * (x.ndim - 2))
    return _scaled(normal, *(None if v is None else v.reshape(tail) for v in (a["weight"], a["bias"])))


def mean(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Mean over the kept positions."""
    x = a["self"]
    return _mean(x, kept, _dims(a.get("dim"), x.ndim), bool(a.get("keepdim", False)))


def variance(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Variance over the kept positions."""
    return variance_and_mean(kept, a)[0]


def deviation(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Standard deviation over the kept positions."""
    return torch.sqrt(variance(kept, a))


def variance_and_mean(kept: Tensor, a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Variance and mean over the kept positions."""
    x, keep = a["self"], bool(a.get("keepdim", False))
    correction = a["correction"] if a.get("correction") is not None else float(a.get("unbiased", True))
    dims = _dims(a.get("dim"), x.ndim)
    found, middle = _variance(x, kept, dims, float(correction))
    return _squeezed(found, dims, keep), _squeezed(middle, dims, keep)


def deviation_and_mean(kept: Tensor, a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean over the kept positions."""
    found, middle = variance_and_mean(kept, a)
    return torch.sqrt(found), middle


def median(kept: Tensor, a: dict[str, Any]) -> Any:
    """Median of the kept positions, the lower of two."""
    present = torch.where(kept, a["self"], torch.nan)
    return torch.nanmedian(present) if "dim" not in a else torch.nanmedian(present, a["dim"], a["keepdim"])


def extremes(kept: Tensor, a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Smallest and largest kept value."""
    x, dims, keepdim = a["self"], _dims(a["dim"], a["self"].ndim), bool(a["keepdim"])
    return torch.where(kept, x, torch.inf).amin(dims, keepdim), torch.where(kept, x, -torch.inf).amax(dims, keepdim)


def distance(kept: Tensor, a: dict[str, Any]) -> Tensor:
    """Distance over the kept positions, a small number added to each difference."""
    apart = torch.where(kept, a["x1"] - a["x2"] + a["eps"], 0)
    found: Tensor = torch.linalg.vector_norm(apart, a["p"], -1, a["keepdim"])
    return found


NORMAL: dict[str, Callable[[Tensor, dict[str, Any]], Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "mean": mean,
    "var": variance,
    "std": deviation,
    "var_mean": variance_and_mean,
    "std_mean": deviation_and_mean,
    "median": median,
    "aminmax": extremes,
    "pairwise_distance": distance,
}

NEUTRAL: dict[str, float | bool] = {
    **dict.fromkeys(("amax", "max", "cummax", "logsumexp", "logcumsumexp"), -torch.inf),
    **dict.fromkeys(("amin", "min", "cummin"), torch.inf),
    **dict.fromkeys(("prod", "cumprod", "all"), 1),
    "nanmean": torch.nan,
}
"""What an absent position counts as, for statistics that have such a value."""
