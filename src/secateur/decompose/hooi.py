"""Higher-order orthogonal iteration: the subspaces of input and output channels that hold most of a kernel.

De Lathauwer, De Moor and Vandewalle, SIAM J. Matrix Anal. Appl. 21 (2000). A step for one mode contracts the other, and takes the leading
eigenvectors of the Gram matrix of what is left: the best factor of this mode given that of the other, so no step loses what was captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.decompose.linalg import power_of_two

# Below this part of the energy single precision does not tell what is lost from its own rounding.
_SINGLE = 1e-3
# Steps whose gains hardly shrink promise no more than this does.
_SLOWEST = 0.9


@dataclass(frozen=True)
class Unfolded:
    """A kernel laid out for contractions: `by_in` is `(groups, out * taps, in)`, `by_out` `(groups, in * taps, out)`."""

    by_in: Tensor
    by_out: Tensor
    taps: int

    @classmethod
    def of(cls, kernel: Tensor) -> Unfolded:
        """Lay out a kernel `(groups, out, in, *extent)`."""
        flat = kernel.flatten(3) if kernel.dim() > 3 else kernel.unsqueeze(-1)
        return cls(flat.transpose(2, 3).flatten(1, 2), flat.flatten(2).mT, flat.shape[-1])

    def contract_in(self, factor: Tensor) -> Tensor:
        """Contract the input channels with `(groups, in, r)`, giving `(groups, out, taps, r)`."""
        return torch.unflatten(self.by_in @ factor, 1, (-1, self.taps))

    def contract_out(self, factor: Tensor) -> Tensor:
        """Contract the output channels with `(groups, out, r)`, giving `(groups, in, taps, r)`."""
        return torch.unflatten(self.by_out @ factor, 1, (-1, self.taps))

    def energy(self) -> Tensor:
        """The squared norm of the kernel."""
        return self.by_in.square().sum()


def hooi(kernel: Tensor, rank: tuple[int, ...], *, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find orthonormal factors `(groups, in, r_in)` and `(groups, out, r_out)` of a float64 kernel, and its core under them.

    The core is `(groups, r_out, r_in, *extent)`. The iterations run in single precision at twice the speed, since the error of a subspace
    enters the captured energy squared; where nearly nothing is lost they go on in double.
    """
    scale = power_of_two(kernel)
    single = Unfolded.of((kernel / scale).float())
    factor_out = _leading(single.by_out.mT, rank[1])[0]
    factors, lost = alternate(single, factor_out, rank, tolerance=tolerance, iterations=iterations)
    factor_in, factor_out = (torch.linalg.qr(factor.double()).Q for factor in factors)
    if lost < _SINGLE:
        (factor_in, factor_out), _ = alternate(Unfolded.of(kernel / scale), factor_out, rank, tolerance=tolerance, iterations=iterations)
    contracted = torch.einsum("goi...,gos->gsi...", kernel, factor_out)
    return factor_in, factor_out, torch.einsum("gsi...,gir->gsr...", contracted, factor_in)


def alternate(
    unfolded: Unfolded, factor_out: Tensor, rank: tuple[int, ...], *, tolerance: float, iterations: int
) -> tuple[tuple[Tensor, Tensor], float]:
    """Improve the factors (in, out) in turn from an output factor on, and return them with the part of the energy that they lose.

    Stops when what the steps still promise, were their gains to go on shrinking as they did last, is less than `tolerance` of what is lost.
    """
    whole = float(unfolded.energy())
    least = max(torch.finfo(factor_out.dtype).eps * whole, torch.finfo(factor_out.dtype).tiny)
    factor_in, captured = _leading(unfolded.contract_out(factor_out).flatten(2), rank[0])
    gain = 0.0
    for step in range(2 * iterations - 1):
        last, before = gain, captured
        if step % 2:
            factor_in, captured = _leading(unfolded.contract_out(factor_out).flatten(2), rank[0])
        else:
            factor_out, captured = _leading(unfolded.contract_in(factor_in).flatten(2), rank[1])
        gain = captured - before
        shrinking = min(gain / max(last, least), _SLOWEST)
        if gain * shrinking / (1 - shrinking) <= tolerance * max(whole - captured, least):
            break
    return (factor_in, factor_out), 1 - captured / whole if whole > 0 else 0.0


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, float]:
    """The leading left singular vectors of `(groups, rows, columns)`, largest first, and the energy that they hold."""
    rows, columns = matrix.shape[-2:]
    if rank == rows:
        identity = torch.eye(rows, dtype=matrix.dtype, device=matrix.device)
        return identity.expand(*matrix.shape[:-2], rows, rows), float(matrix.square().sum())
    wide = rows <= columns or rank > columns
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT if wide else matrix.mT @ matrix)
    found = vectors[..., -rank:].flip(-1)
    return found if wide else torch.linalg.qr(matrix @ found).Q, float(values[..., -rank:].sum())
