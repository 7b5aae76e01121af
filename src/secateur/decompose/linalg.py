"""Leading subspaces from Gram matrices, roots, solutions and products, batched over leading dimensions.

A kernel's unfolding is wide or tall, so its singular vectors come from the smaller of its two Gram matrices. The subspace error that this
squaring brings is second order in the approximation error, hence invisible in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def leading_left(matrix: Tensor, rank: int) -> Tensor:
    """Return orthonormal columns that span the `rank` leading left singular vectors of `(..., rows, columns)`."""
    rows, columns = matrix.shape[-2:]
    if rows <= columns or rank > columns:
        return leading_eigenvectors(matrix @ matrix.mT, rank)
    right = leading_eigenvectors(matrix.mT @ matrix, rank)
    basis: Tensor = torch.linalg.qr(matrix @ right).Q
    return basis


def leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    """Return the eigenvectors of the `rank` largest eigenvalues of a symmetric matrix, largest first."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    leading: Tensor = vectors[..., -rank:].flip(-1)
    return leading


def squared_singular_values(matrix: Tensor) -> Tensor:
    """Return the squared singular values of `(..., rows, columns)` in descending order."""
    rows, columns = matrix.shape[-2:]
    gram = matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(-1).clamp_min(0)


def symmetric_root(covariance: Tensor, *, floor: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Return `(root, inverse)` with `root @ root.mT = covariance` and `inverse = root^-1`.

    Eigenvalues below `floor` times their mean are raised to it, so that directions without evidence weigh nearly nothing and still invert.
    """
    values, vectors = torch.linalg.eigh(covariance)
    least = (floor * values.mean(-1, keepdim=True)).clamp_min(torch.finfo(values.dtype).tiny)
    scale = values.clamp_min(0).maximum(least).sqrt()
    return vectors * scale.unsqueeze(-2), (vectors / scale.unsqueeze(-2)).mT


def unit_root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return a root and its inverse of a covariance scaled to variances of one on average; of the identity where nothing varies.

    Fits do not depend on the scale, and neither factor of a product then takes all of it.
    """
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    varies = mean > torch.finfo(covariance.dtype).tiny
    return symmetric_root(torch.where(varies, covariance / mean.where(varies, 1), identity))


def ridge_solve(right: Tensor, gram: Tensor, *, ridge: float = 1e-12) -> Tensor:
    """Solve `X @ gram = right` for a positive semidefinite Gram matrix, never failing on a singular one.

    The ridge is relative to the mean of the diagonal; it grows until the Cholesky factorisation exists.
    """
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    while ridge < 1:
        raised = gram.clone()
        raised.diagonal(dim1=-2, dim2=-1).add_(ridge * mean)
        factor, info = torch.linalg.cholesky_ex(raised)
        if not bool(info.any()):
            return torch.cholesky_solve(right.mT, factor).mT
        ridge *= 100
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
    return right @ inverse


def power_of_two(values: Tensor) -> Tensor:
    """Return the power of two of the size of the largest absolute value, by which to divide without rounding; one for zeros."""
    least, most = torch.aminmax(values)
    largest = torch.maximum(-least, most)
    exponent = torch.frexp(largest).exponent.clamp(-125, 127)
    return torch.where((largest > 0) & largest.isfinite(), torch.exp2(exponent.to(values.dtype)), 1)


def compose(kernels: Sequence[Tensor]) -> Tensor:
    """Multiply factor kernels `(groups, out, in, *extent)` into the one kernel that does their work.

    A factor with more groups than the first is depthwise: it multiplies channel by channel. Extents must not overlap along an axis.
    """
    product = kernels[0]
    for kernel in kernels[1:]:
        if kernel.shape[0] == product.shape[0]:
            product = torch.einsum("gor...,gri...->goi...", kernel, product)
        else:
            product = kernel.reshape(product.shape[0], product.shape[1], 1, *kernel.shape[3:]) * product
    return product
