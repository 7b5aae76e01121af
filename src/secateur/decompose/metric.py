"""The norm in which the error of a kernel counts, so that a decomposition can spend its rank where inputs are.

For a layer Y = W x the squared output error of W' is tr((W - W') C (W - W')^T) with C the covariance of x, once the bias has taken up the
mean: b' = b + (W - W') mean(x). For a convolution x is a patch; where patches are too large, the covariance of the channels at one position
stands for it, shared by all taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.decompose.linalg import ridge_solve, symmetric_root, unit_root
from secateur.decompose.moments import Moments
from secateur.decompose.spec import LayerSpec
from secateur.errors import SelectionError

# Of the mean variance of an input: directions that vary less than this are taken as they are.
_RESTORING_RIDGE = 1e-2
# Of the mean square of an input in float32.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Metric:
    """The norm in which a kernel's error counts: `channel` is `(groups, in, in)`, `patch` `(groups, in * taps, in * taps)` or None."""

    channel: Tensor
    patch: Tensor | None
    mean: Tensor
    restore: Tensor | None = None
    """The linear map that predicts the dense model's inputs from the compressed model's, on patches or on channels."""
    target_mean: Tensor | None = None

    @classmethod
    def of(cls, moments: Moments, spec: LayerSpec, *, centred: bool) -> Metric:
        """Make the metric of a layer from the moments of its inputs; centred if the bias takes up the mean."""
        covariance = moments.covariance(centred=centred)
        restore = _restoring(moments, covariance, centred=centred)
        means = [moments.mean, moments.target_mean]
        width, taps = spec.group_inputs, spec.taps
        if covariance.shape[:2] == (spec.groups, width * taps):
            blocks = covariance.reshape(spec.groups, width, taps, width, taps)
            channel = blocks.diagonal(dim1=2, dim2=4).mean(-1)
            mean, target = (each.reshape(spec.groups, width, taps) for each in means)
            return cls(channel, covariance, mean, restore, target)
        if covariance.shape[:2] != (spec.groups, width):
            raise SelectionError(
                f"moments of width {tuple(covariance.shape[:2])} do not belong to a layer with {spec.groups} x {width} inputs"
            )
        # A position of a transposed convolution's output receives one in prod(stride) taps.
        share = math.prod(spec.stride) if spec.transposed else 1
        mean, target = ((each / share).unsqueeze(-1).expand(-1, -1, taps) for each in means)
        return cls(covariance, None, mean, restore, target)

    def to(self, like: Tensor) -> Metric:
        """Move to the dtype and device of another tensor."""
        patch, restore, target = (None if each is None else each.to(like) for each in (self.patch, self.restore, self.target_mean))
        return Metric(self.channel.to(like), patch, self.mean.to(like), restore, target)

    def restored(self, kernel: Tensor) -> Tensor:
        """The kernel that comes closest, on the compressed model's inputs, to what the given one does on the dense model's."""
        if self.restore is None:
            return kernel
        if self.restore.shape[-1] == kernel.shape[2]:
            return torch.einsum("goi...,gij->goj...", kernel, self.restore)
        return (kernel.flatten(2) @ self.restore).reshape(kernel.shape)

    def root(self) -> tuple[Tensor, Tensor]:
        """Return a root of the channel covariance and its inverse."""
        return symmetric_root(self.channel)

    def unit_root(self) -> tuple[Tensor, Tensor]:
        """Return the same of the covariance scaled to variances of one on average, for fits."""
        return unit_root(self.channel)

    def norm(self, kernel: Tensor) -> float:
        """Measure a kernel `(groups, out, in, *extent)` by the output it makes."""
        flat = kernel.flatten(3) if kernel.dim() > 3 else kernel.unsqueeze(-1)
        if self.patch is not None:
            rows = flat.flatten(2)
            return math.sqrt(max(float(((rows @ self.patch) * rows).sum()), 0.0))
        return math.sqrt(max(float((torch.einsum("goik,gij->gojk", flat, self.channel) * flat).sum()), 0.0))

    def mean_output(self, kernel: Tensor, *, dense: bool = False) -> Tensor:
        """Return the mean output `(out,)` of a kernel, without bias: on the inputs, or on the dense model's."""
        mean = self.target_mean if dense and self.target_mean is not None else self.mean
        flat = kernel.flatten(3) if kernel.dim() > 3 else kernel.unsqueeze(-1)
        return torch.einsum("goik,gik->go", flat, mean).flatten()


def _restoring(moments: Moments, covariance: Tensor, *, centred: bool) -> Tensor | None:
    """Regress the dense model's inputs on the compressed model's; where these say nothing, they stand for themselves."""
    if moments.target is None:
        return None
    cross = moments.target[1] / moments.count
    if centred:
        cross = cross - moments.target_mean.unsqueeze(-1) * moments.mean.unsqueeze(-2)
    varies, squares = (each.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] for each in (covariance, moments.outer / moments.count))
    # Inputs that are all but constant hold rounding and no evidence.
    ridge = _RESTORING_RIDGE * varies + _ROUNDING * squares
    whole = ridge * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return ridge_solve(cross + whole, covariance + whole)


def regress_outputs(kernel: Tensor, patterns: Tensor, patch: Tensor, *, ridge: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Fit `kernel ~ weights @ patterns` by least squares over the patches.

    Shapes: kernel `(groups, out, d)`, patterns `(groups, r, d)`, patch covariance `(groups, d, d)`. Returns the weights `(groups, out, r)`
    and the covariance `(groups, r, r)` of what the patterns respond with.
    """
    seen = patterns @ patch
    response = seen @ patterns.mT
    return ridge_solve(kernel @ seen.mT, response, ridge=ridge), response
