"""How much a model's outputs depend on what one layer puts out: the measure in which errors of different layers compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.inputs import normalise_inputs
from secateur.decompose.gather import evaluating
from secateur.decompose.linalg import power_of_two, symmetric_root, unit_root
from secateur.decompose.spec import LayerSpec, Refusal, read_spec
from secateur.errors import ModelError, SelectionError
from secateur.score.calibrate import number_of, projected
from secateur.score.ranks import collected, summed, total

Place = tuple[int, tuple[int, ...]]
"""Which output it is, and the shape of one sample of it."""
SHRINKAGE = 0.1
"""How far the slopes of different channels are drawn towards independence."""
FLOOR = 1e-4
"""Of the mean slope: a channel that the outputs were not seen to depend on still counts so much."""
_ALIKE = 1e-10
"""Outputs of different samples whose squares differ by less, as a part of their size, differ by rounding."""


@dataclass(frozen=True)
class Slopes:
    """Sums over samples of g g^T, where g are the derivatives of the model's outputs by those of one layer at all its positions.

    Shape ``(groups, out, out)``. With G their mean over samples and C the covariance of the layer's inputs, an error E of its weight
    changes the outputs by tr(E C E^T G), as a part of their variance: the Gauss-Newton matrix with inputs and slopes taken for independent
    (Martens and Grosse, ICML 2015).
    """

    samples: int
    outer: Tensor

    def __add__(self, other: Slopes) -> Slopes:
        return Slopes(self.samples + other.samples, self.outer + other.outer)

    def root(self) -> tuple[Tensor, Tensor]:
        """Return a root R of G with R R^T = G, and its inverse; G is drawn a little towards its diagonal."""
        return symmetric_root(self._drawn())

    def unit_root(self) -> tuple[Tensor, Tensor]:
        """Return the same for slopes of one on average, for fits."""
        return unit_root(self._drawn())

    def _drawn(self) -> Tensor:
        mean = self.outer / max(self.samples, 1)
        diagonal = mean.diagonal(dim1=-2, dim2=-1)
        least = FLOOR * diagonal.mean(-1, keepdim=True)
        return (1 - SHRINKAGE) * mean + SHRINKAGE * torch.diag_embed(diagonal.maximum(least))

    def weigh(self, kernel: Tensor) -> Tensor:
        """Turn a kernel `(groups, out, in, *extent)` so that its plain error is the one that the model's outputs see."""
        return turned(kernel, self.root()[0])


def turned(kernel: Tensor, root: Tensor) -> Tensor:
    """Multiply the outputs of a kernel or a factor `(groups, out, ...)` by the transpose of a root `(groups, out, out)`."""
    return torch.einsum("goi...,gop->gpi...", kernel, root.to(kernel))


def gather_slopes(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any], *, trust_forward: bool = False, seed: int = 0
) -> dict[str, Slopes]:
    """Run batches forward and back and gather the slopes of the named layers; layers that no finite derivative reaches are left out.

    No labels are needed, parameters gather no gradients.
    """
    specs = {name: _spec(model, name, trust_forward=trust_forward) for name in names}
    found: dict[str, Slopes] = {}
    for samples, calls in runs_back(model, names, batches, seed=seed):
        each = _outer([call.name for call in calls], [call.gradient for call in calls], specs)
        for name, outer in each.items():
            found[name] = found.get(name, Slopes(0, torch.zeros_like(outer))) + Slopes(samples, outer)
    shared = {name: Slopes(total(slopes.samples), summed(slopes.outer)) for name, slopes in found.items()}
    return {name: slopes for name, slopes in shared.items() if bool(slopes.outer.isfinite().all())}


class Spreads:
    """How far each output varies over all samples: the root of the mean square around the mean at its place."""

    def __init__(self) -> None:
        self._sums: dict[Place, tuple[int, Tensor, Tensor]] = {}

    @classmethod
    def of(cls, model: nn.Module, given: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> Spreads:
        """Run batches forward; several processes tell each other."""
        own, spreads = cls(), cls()
        with evaluating(model), torch.no_grad():
            for args, kwargs in given:
                for number, leaf in enumerate(pytree.tree_leaves(model(*args, **kwargs))):
                    if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                        rows = _real_rows(leaf)
                        own._add(_place(number, leaf), (len(rows), rows.sum(0), rows.square().sum(0)))
        for process in collected(own._sums):
            for place, sums in process.items():
                spreads._add(place, sums)
        return spreads

    def _add(self, place: Place, sums: tuple[int, Tensor, Tensor]) -> None:
        known = self._sums.get(place)
        self._sums[place] = sums if known is None else (known[0] + sums[0], known[1] + sums[1], known[2] + sums[2])

    def at(self, number: int, leaf: Tensor) -> Tensor:
        """The spread of an output; its size where samples do not differ, and one where all are zero."""
        count, sums, squares = self._sums[_place(number, leaf)]
        mean_square = squares.mean() / count
        apart = mean_square - (sums / count).square().mean()
        found = torch.where(apart > _ALIKE * mean_square, apart, mean_square).sqrt()
        return torch.where(found > 0, found, 1).to(leaf.device)


def _place(number: int, leaf: Tensor) -> Place:
    return number, tuple(leaf.shape[1:])


def _real_rows(leaf: Tensor) -> Tensor:
    real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
    return (real if real.ndim else real.reshape(1)).cpu().double()


@dataclass(frozen=True, eq=False)
class Back:
    """One call of a layer in a run forward and back: what went in, and the derivative of the model's outputs by what came out."""

    name: str
    given: Tensor
    gradient: Tensor | None


def runs_back(model: nn.Module, names: Sequence[str], batches: Iterable[Any], *, seed: int = 0) -> Iterator[tuple[int, list[Back]]]:
    """Run each batch forward and back; for each the number of samples and all calls of the named layers.

    The derivative is that of the model's outputs times random numbers of the size of one over their spread, so that its mean square is
    that of all outputs together, as a part of their variance. A run forward over all batches tells the spread.
    """
    given = [normalise_inputs(batch) for batch in batches]
    spreads = Spreads.of(model, given)
    generator = torch.Generator()
    calls: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], output: Tensor) -> Tensor:
            seen = output if output.requires_grad else output.detach().requires_grad_()
            calls.append((name, (arguments[0] if arguments else keywords["input"]).detach(), seen))
            # A copy goes on, since what follows may write into it.
            return seen.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True) for name in names]
    try:
        with evaluating(model), torch.enable_grad():
            for args, kwargs in given:
                calls.clear()
                generator.manual_seed(seed + number_of(pytree.tree_leaves((args, kwargs))))
                samples, gradients = _gradients(model(*args, **kwargs), [seen for *_, seen in calls], generator, spreads)
                yield samples, [Back(name, x, gradient) for (name, x, _), gradient in zip(calls, gradients, strict=True)]
    except RuntimeError as error:
        raise ModelError(f"The model cannot be differentiated on the calibration data: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _spec(model: nn.Module, name: str, *, trust_forward: bool) -> LayerSpec:
    spec = read_spec(model.get_submodule(name), trust_forward=trust_forward)
    if isinstance(spec, Refusal):
        raise SelectionError(f"no slopes for layer {name}: {spec.reason}")
    return spec


def _gradients(outputs: Any, seen: Sequence[Tensor], generator: torch.Generator, spreads: Spreads) -> tuple[int, Sequence[Tensor | None]]:
    """The number of samples, and the derivatives of all outputs by what layers put out, scaled for one output element."""
    leaves = {number: leaf for number, leaf in enumerate(pytree.tree_leaves(outputs)) if getattr(leaf, "requires_grad", False)}
    if not leaves:
        return 0, [None] * len(seen)
    first = next(iter(leaves.values()))
    samples = len(first) if first.ndim else 1
    elements = sum(leaf.numel() for leaf in leaves.values()) / samples
    products = [projected(leaf, generator, spreads.at(number, leaf)) for number, leaf in leaves.items()]
    gradients: Sequence[Tensor | None] = torch.autograd.grad(torch.stack(products).sum() / math.sqrt(elements), seen, allow_unused=True)
    return samples, gradients


def _outer(names: Sequence[str], gradients: Sequence[Tensor | None], specs: Mapping[str, LayerSpec]) -> dict[str, Tensor]:
    """Outer products of the derivatives at all positions of all calls of each layer."""
    found: dict[str, Tensor] = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            outer = outer_products(specs[name], gradient.detach())
            found[name] = found[name] + outer if name in found else outer
    return found


def outer_products(spec: LayerSpec, outputs: Tensor) -> Tensor:
    """Sum the outer products of what a layer puts out, or of slopes of it, over samples and positions: ``(groups, out, out)``."""
    rows = _rows(spec, outputs)
    scale = power_of_two(rows)
    return ((rows / scale).mT @ (rows / scale)).cpu().double() * float(scale) ** 2


def _rows(spec: LayerSpec, gradient: Tensor) -> Tensor:
    """Lay slopes out as ``(groups, samples and positions, out)``."""
    gradient = gradient if gradient.dtype == torch.float64 else gradient.float()
    channels = gradient if not spec.extent else gradient.movedim(-1 - len(spec.extent), -1)
    return channels.reshape(-1, spec.groups, spec.group_outputs).transpose(0, 1)
