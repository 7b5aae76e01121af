"""Layers of any class that multiply their input by a matrix: told by what they hold, and by what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

_TOLERANCE = 1e-10


def holds_matrix(module: nn.Module) -> bool:
    """Whether a module has a matrix ``weight``, perhaps a vector ``bias``, and neither other tensors nor modules of its own."""
    computed = set(module.parametrizations) if parametrize.is_parametrized(module) else set()  # type: ignore[arg-type]
    names = {name for name, value in module._parameters.items() if value is not None} | computed
    others = [*(value for value in module._buffers.values() if value is not None), *(module._modules.keys() - {"parametrizations"})]
    if others or not {"weight"} <= names <= {"weight", "bias"}:
        return False
    weight, bias = module.weight, getattr(module, "bias", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and (not isinstance(bias, Tensor) or bias.dim() == 1)


def inputs_first(module: nn.Module) -> bool | None:
    """Whether a module that holds a matrix multiplies by it as ``(in, out)`` or as ``(out, in)``; ``None`` if it does neither.

    One row is multiplied by a matrix that is like no other's transpose; what the module holds is left as it is.
    """
    like = module.weight
    assert isinstance(like, Tensor)
    exact = like.new_empty(0, dtype=torch.float32 if like.device.type == "mps" else torch.float64)
    matrix = torch.arange(1, like.numel() + 1, dtype=exact.dtype, device=exact.device).reshape(like.shape)
    for first in (True, False):
        row = exact.new_zeros(1, like.shape[0 if first else 1])
        row[:, 0] = 1
        if _multiplies(module, row, matrix, exact.new_zeros(like.shape[1 if first else 0]), first):
            return first
    return None


def acts_as_linear_map(module: nn.Module, example: Tensor) -> bool:
    """Check whether a module computes ``x @ weight + bias`` for other weights, inputs and modes than its own, in double precision.

    Tried are the example, random inputs of its shape, and one position of it; in evaluation and in training. The caller brings back modes
    and random states.
    """
    first = inputs_first(module)
    like = module.weight
    if first is None or not isinstance(like, Tensor) or not example.is_floating_point():
        return False
    draw = _drawing(like)
    trials = [example.detach().to(draw(0)), 100 * draw(*example.shape), draw(*(1,) * (example.dim() - 1), example.shape[-1])]
    matrix, bias = 3 * draw(*like.shape), draw(like.shape[1 if first else 0])
    for training in (False, True):
        module.train(training)
        if not all(_multiplies(module, x, matrix, bias, first) for x in trials):
            return False
    return True


def _drawing(like: Tensor) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    exact = torch.float32 if like.device.type == "mps" else torch.float64
    return lambda *shape: torch.randn(shape, generator=generator, dtype=exact).to(like.device)


def _multiplies(module: nn.Module, x: Tensor, matrix: Tensor, bias: Tensor, first: bool) -> bool:
    """Whether a module computes ``x @ matrix + bias`` when it holds these; what it raises says no."""
    own = isinstance(getattr(module, "bias", None), Tensor)
    try:
        with torch.no_grad():
            found = functional_call(module, {"weight": matrix, "bias": bias} if own else {"weight": matrix}, (x,))
    except Exception:  # noqa: BLE001 - code of a layer's own may insist on its inputs in any way it likes
        return False
    wanted = x @ (matrix if first else matrix.mT) + (bias if own else 0)
    if not isinstance(found, Tensor) or found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    tolerance = _TOLERANCE if wanted.dtype == torch.float64 else torch.finfo(wanted.dtype).eps ** 0.5
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())
