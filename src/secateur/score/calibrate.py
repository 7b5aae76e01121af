"""Run calibration data through a captured graph once, for all criteria that need them."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import fx
from torch.utils import _pytree as pytree

from secateur.errors import ModelError
from secateur.groups.group import ChannelGroup
from secateur.groups.solve import Solution
from secateur.score.batches import Batch, Data, batch_size, batches
from secateur.score.combine import Combine, Part
from secateur.score.observer import Call, DataScorer, GradientObserver, Observer
from secateur.score.progress import with_progress
from secateur.score.ranks import check_samples, processes
from secateur.score.scorer import Scorer

_ALIKE = 1e-5
"""Outputs of different samples that differ by less, as a part of their size, differ by rounding."""


def calibrate(
    solution: Solution,
    groups: Iterable[ChannelGroup],
    criteria: Sequence[Scorer],
    data: Data,
    *,
    combine: Combine | None = None,
    samples: int | None = 256,
) -> Mapping[tuple[Hashable, str], tuple[Part, ...]]:
    """Show data to all criteria in one pass; what they saw goes into the evidence as ``observed``.

    ``data`` may be anything that :func:`~secateur.score.batches.batches` reads. At most ``samples`` samples are used,
    in batches as large as the example inputs that the graph was captured with. Nothing is run where no criterion asks.
    Several processes (torch.distributed) each show their own data, and all get the scores of all of it.
    """
    watched = _observers(solution, [g for g in groups if g.prunable and g.kind == "channels"], criteria, combine or Combine())
    observers = [o for some in watched.values() for o in some]
    if observers:
        _run(solution, observers, data, samples)
    return {key: tuple(part for o in some for part in o.parts()) for key, some in watched.items()}


def needs_data(criterion: Scorer) -> TypeGuard[DataScorer]:
    """Whether a criterion looks at activations, of some groups at least."""
    return hasattr(criterion, "observers")


def _observers(
    solution: Solution, groups: Sequence[ChannelGroup], criteria: Sequence[Scorer], combine: Combine
) -> dict[tuple[Hashable, str], Sequence[Observer]]:
    return {(c, g.name): c.observers(g, solution, combine) for c in criteria if needs_data(c) for g in groups}


def _run(solution: Solution, observers: Sequence[Observer], data: Data, samples: int | None) -> None:
    capture = solution.walk.capture
    watch = _Watch(capture.program, observers)
    seen = 0
    for batch in with_progress(batches(data, capture, samples=samples), "Calibrating", _runs(samples, capture.flat_inputs())):
        watch.show(batch)
        seen += batch.valid
    check_samples(seen)
    if processes() > 1:
        for each in observers:
            each.share()


def _runs(samples: int | None, example: Sequence[Any]) -> int | None:
    return None if samples is None else -(-samples // (batch_size(example) or 1))


class _Watch(fx.Interpreter):
    """An interpreter that shows the calls of some nodes to their observers."""

    def __init__(self, program: fx.GraphModule, observers: Sequence[Observer]) -> None:
        super().__init__(program)
        self._observers: dict[fx.Node, list[Observer]] = defaultdict(list)
        for each in observers:
            self._observers[each.node].append(each)
        self._graded = {o.node for o in observers if isinstance(o, GradientObserver)}
        self._calls: dict[fx.Node, Call] = {}
        self._generator = torch.Generator()
        self._sizes = (1, 1)

    def show(self, batch: Batch) -> None:
        """Run one batch."""
        self._sizes = (batch.size, batch.valid)
        self._generator.manual_seed(number_of(batch.leaves))
        try:
            with torch.set_grad_enabled(bool(self._graded)), torch.random.fork_rng(devices=list(_cuda_devices(batch))):
                outputs = self.run(*batch.leaves)
                if self._graded:
                    self._show_gradients(outputs)
        except (RuntimeError, IndexError, TypeError) as error:
            raise ModelError(f"The captured model does not run on the calibration data: {error}") from error

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and show the call to those who asked."""
        inputs = {x: _detached(self.env[x]) for x in n.all_input_nodes} if n in self._observers else {}
        output = super().run_node(n)
        call = Call(inputs, _detached(output), *self._sizes)
        for observer in self._observers.get(n, ()):
            observer.see(call)
        if n in self._graded:
            output = _differentiable(output)
            self._calls[n] = replace(call, output=output[0] if isinstance(output, tuple) else output)
        return output

    def _show_gradients(self, outputs: Any) -> None:
        """Show gradients of the outputs' product with random numbers, which come from the batch, whatever process has it."""
        leaves = [leaf for leaf in pytree.tree_leaves(outputs) if getattr(leaf, "requires_grad", False)]
        calls, self._calls = self._calls, {}
        if not leaves:
            return
        loss = torch.stack([projected(leaf, self._generator) for leaf in leaves]).sum()
        gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(loss, [call.output for call in calls.values()], allow_unused=True)
        for (node, call), gradient in zip(calls.items(), gradients, strict=True):
            for observer in self._observers[node]:
                if gradient is not None and isinstance(observer, GradientObserver):
                    observer.see_gradient(call, gradient)


def _detached(values: Any) -> Any:
    """Values without the graph that gradients take, which observers would keep alive."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, values)


def _differentiable(output: Any) -> Any:
    """A tensor that gradients reach; of what recurrent layers return, their outputs, not their last states."""
    if isinstance(output, list | tuple):
        return (_differentiable(output[0]), *output[1:])
    return output if output.requires_grad else output.detach().requires_grad_()


def projected(output: torch.Tensor, generator: torch.Generator, spread: torch.Tensor | None = None) -> torch.Tensor:
    """The product of an output with normal random numbers, so scaled that outputs of any size count alike: by their spread.

    That of this output alone unless it is given.
    """
    real = torch.view_as_real(output) if output.is_complex() else output
    directions = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real)
    spread = _spread(real.detach()) if spread is None else spread
    product: torch.Tensor = (real * directions).sum() / spread.clamp_min(torch.finfo(torch.float32).tiny)
    return product.to(torch.promote_types(product.dtype, torch.float32))


def _spread(values: torch.Tensor) -> torch.Tensor:
    """The root mean square of values around the mean over samples; around zero where samples do not differ, and one where all are zero."""
    if not values.numel():
        return values.new_ones(())
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    largest = values.abs().amax()
    # Squares of very large and very small outputs have no place in single precision.
    unit = values / torch.where(largest > 0, largest, 1)
    whole = unit.square().mean().sqrt()
    apart = (unit - unit.mean(0)).square().mean().sqrt() if unit.ndim and len(unit) > 1 else whole
    return torch.where(largest > 0, torch.where(apart > _ALIKE * whole, apart, whole) * largest, 1)


def number_of(leaves: Iterable[Any]) -> int:
    """A number that the values of a batch give, so that random numbers are the same for it in whatever process and precision it is."""
    tensors = [torch.view_as_real(x) if x.is_complex() else x for x in leaves if isinstance(x, torch.Tensor)]
    return zlib.crc32(b"".join(x.detach().cpu().double().numpy().tobytes() for x in tensors))


def _cuda_devices(batch: Batch) -> Iterator[torch.device]:
    yield from sorted({x.device for x in batch.leaves if isinstance(x, torch.Tensor) and x.is_cuda}, key=str)
