"""What the inputs of a layer look like: how many, their mean and their covariance, as sums that add up over batches and processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.score.ranks import summed, total


@dataclass(frozen=True)
class Moments:
    """Sums over the inputs of one layer: how many, their total `(groups, d)` and their outer products `(groups, d, d)`.

    Where the inputs come from a model that is compressed already, `target` holds the same of the dense model's inputs: their total, and
    their outer products with the compressed model's. Sums add up: `a + b` holds what one pass over both sets of inputs would have given.
    """

    count: int
    total: Tensor
    outer: Tensor
    target: tuple[Tensor, Tensor] | None = None

    def __add__(self, other: Moments) -> Moments:
        if self.target is None or other.target is None:
            summed = None
        else:
            summed = (self.target[0] + other.target[0], self.target[1] + other.target[1])
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer, summed)

    def times(self, own: float, target: float = 1.0) -> Moments:
        """The moments of inputs that are so many times as large, as are those of the dense model."""
        paired = None if self.target is None else (target * self.target[0], target * own * self.target[1])
        return Moments(self.count, own * self.total, own**2 * self.outer, paired)

    def shared(self) -> Moments:
        """Sums over the inputs of all processes."""
        target = None if self.target is None else (summed(self.target[0]), summed(self.target[1]))
        return Moments(total(self.count), summed(self.total), summed(self.outer), target)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def target_mean(self) -> Tensor:
        """The mean of the dense model's inputs; of these inputs where nothing else is known."""
        return self.mean if self.target is None else self.target[0] / self.count

    def shrunk(self) -> Moments:
        """Draw the covariance towards equal variances in all directions, the more the fewer inputs there were for its size.

        Without it a layer with more inputs than there were samples seems to need no more rank than samples. Oracle approximating
        shrinkage, Chen et al., IEEE Transactions on Signal Processing 2010. Pairs with the dense model's inputs are drawn to equality.
        """
        found = self.covariance(centred=True)
        size = found.shape[-1]
        trace, squares = found.diagonal(dim1=-2, dim2=-1).sum(-1), found.square().sum((-2, -1))
        spread = (self.count + 1 - 2 / size) * (squares - trace.square() / size)
        weight = ((1 - 2 / size) * squares + trace.square()) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
        weight = weight.clamp(0, 1)[..., None, None]
        prior = weight * (trace / size)[..., None, None] * torch.eye(size, dtype=found.dtype)
        outer = self.count * ((1 - weight) * found + prior + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2))
        if self.target is None:
            return replace(self, outer=outer)
        shift = self.target_mean.unsqueeze(-1) * self.mean.unsqueeze(-2)
        cross = self.count * ((1 - weight) * (self.target[1] / self.count - shift) + prior + shift)
        return replace(self, outer=outer, target=(self.target[0], cross))

    def covariance(self, *, centred: bool) -> Tensor:
        """Return the covariance of the inputs, or their second moment where they are not centred."""
        second = self.outer / self.count
        return second - self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2) if centred else second
