"""Which layers of a model can be factorized, by which methods, and how they are put into place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.decompose.cp import CP
from secateur.decompose.factors import Decomposition, too_narrow
from secateur.decompose.ranks import break_even
from secateur.decompose.spec import Refusal, base_class, read_spec
from secateur.decompose.svd import SVD, SpatialSVD
from secateur.decompose.tucker import Tucker
from secateur.errors import SelectionError

METHODS: Mapping[str, Decomposition] = {"svd": SVD(), "tucker": Tucker(), "cp": CP(), "spatial-svd": SpatialSVD()}


@dataclass(frozen=True)
class Decomposable:
    """A linear or convolution layer: its names in the model (several if it is shared), and the methods for it or why there is none."""

    names: tuple[str, ...]
    methods: tuple[str, ...]
    reason: str | None = None


def decomposable(module: nn.Module, *, trust_forward: bool = False) -> tuple[str, ...] | Refusal:
    """Name the methods that can make a module cheaper, or say why none can."""
    spec = read_spec(module, trust_forward=trust_forward)
    if isinstance(spec, Refusal):
        return spec
    narrow = too_narrow(spec)
    if narrow is not None:
        return Refusal(narrow)
    fitting = [name for name, method in METHODS.items() if method.obstacle(spec) is None]
    gaining = tuple(name for name in fitting if break_even(spec, METHODS[name]) is not None)
    return gaining or Refusal("it is too small: even rank 1 costs as much as the layer")


def decomposable_layers(model: nn.Module) -> tuple[Decomposable, ...]:
    """List every linear and convolution layer of a model once, with the methods for it or the reason why it stays as it is."""
    listed = []
    for module, names in _names(model).items():
        if base_class(module) is not None:
            found = decomposable(module)
            listed.append(Decomposable(names, (), found.reason) if isinstance(found, Refusal) else Decomposable(names, found))
    return tuple(listed)


def acts_as_base(module: nn.Module, example: Tensor) -> bool:
    """Check on an input whether a subclass computes exactly what its base class would with the same settings.

    True for a subclass that pads in front of the convolution only where its padding is empty at this input size.
    """
    base = base_class(module)
    if base is None:
        return False
    with torch.no_grad():
        ours, plain = module(example), base.forward(module, example)
    return bool(isinstance(ours, Tensor) and ours.shape == plain.shape and torch.equal(ours, plain))


def replace_layers(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put modules into a model in place, under every name that the layer they replace has there."""
    names = {name: aliases for aliases in _names(model).values() for name in aliases}
    for name, replacement in replacements.items():
        if not names.get(name, ("",))[0]:
            raise SelectionError(f"the model has no layer named {name!r} that could be replaced")
        for alias in names[name]:
            parent, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacement)


def _names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    return names
