"""How much a model's outputs depend on what one layer puts out: the measure in which errors of different layers compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
from secateur.score.ranks import summed, total

SHRINKAGE = 0.1
"""How far the slopes of different channels are drawn towards independence."""
FLOOR = 1e-4
"""Of the mean slope: a channel that the outputs were not seen to depend on still counts so much."""


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

    The model's outputs are multiplied by random numbers of the size of one over their spread, whose mean square derivative is that of all
    outputs together. No labels are needed, parameters gather no gradients.
    """
    specs = {name: _spec(model, name, trust_forward=trust_forward) for name in names}
    generator, found = torch.Generator(), dict[str, Slopes]()
    calls: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            seen = output if output.requires_grad else output.detach().requires_grad_()
            calls.append((name, seen))
            # A copy goes on, since what follows may write into it.
            return seen.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with evaluating(model), torch.enable_grad():
            for batch in batches:
                calls.clear()
                args, kwargs = normalise_inputs(batch)
                generator.manual_seed(seed + number_of(pytree.tree_leaves((args, kwargs))))
                samples, gradients = _gradients(model(*args, **kwargs), [seen for _, seen in calls], generator)
                each = _outer([name for name, _ in calls], gradients, specs)
                for name, outer in each.items():
                    found[name] = found.get(name, Slopes(0, torch.zeros_like(outer))) + Slopes(samples, outer)
    except RuntimeError as error:
        raise ModelError(f"The model cannot be differentiated on the calibration data: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    shared = {name: Slopes(total(slopes.samples), summed(slopes.outer)) for name, slopes in found.items()}
    return {name: slopes for name, slopes in shared.items() if bool(slopes.outer.isfinite().all())}


def _spec(model: nn.Module, name: str, *, trust_forward: bool) -> LayerSpec:
    spec = read_spec(model.get_submodule(name), trust_forward=trust_forward)
    if isinstance(spec, Refusal):
        raise SelectionError(f"no slopes for layer {name}: {spec.reason}")
    return spec


def _gradients(outputs: Any, seen: Sequence[Tensor], generator: torch.Generator) -> tuple[int, Sequence[Tensor | None]]:
    """The number of samples, and the derivatives of all outputs by what layers put out, scaled for one output element."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if getattr(leaf, "requires_grad", False)]
    if not leaves:
        return 0, [None] * len(seen)
    samples = len(leaves[0]) if leaves[0].ndim else 1
    elements = sum(leaf.numel() for leaf in leaves) / samples
    loss = torch.stack([projected(leaf, generator) for leaf in leaves]).sum() / math.sqrt(elements)
    gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, seen, allow_unused=True)
    return samples, gradients


def _outer(names: Sequence[str], gradients: Sequence[Tensor | None], specs: Mapping[str, LayerSpec]) -> dict[str, Tensor]:
    """Outer products of the derivatives at all positions of all calls of each layer."""
    found: dict[str, Tensor] = {}
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            rows = _rows(specs[name], gradient.detach())
            scale = power_of_two(rows)
            outer = ((rows / scale).mT @ (rows / scale)).cpu().double() * float(scale) ** 2
            found[name] = found[name] + outer if name in found else outer
    return found


def _rows(spec: LayerSpec, gradient: Tensor) -> Tensor:
    """Lay slopes out as ``(groups, samples and positions, out)``."""
    gradient = gradient if gradient.dtype == torch.float64 else gradient.float()
    channels = gradient if not spec.extent else gradient.movedim(-1 - len(spec.extent), -1)
    return channels.reshape(-1, spec.groups, spec.group_outputs).transpose(0, 1)
