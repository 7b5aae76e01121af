"""Capture a model with the sizes of its inputs left open, by recording it at two sizes at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.capture.capture import Capture
from secateur.capture.flat import FlatModel, flatten_inputs, tensors_of
from secateur.capture.live import DivergedError
from secateur.capture.sizes import Place, groups_of, resized
from secateur.capture.trees import input_names
from secateur.capture.twice import record_twice
from secateur.capture.verify import check_on
from secateur.errors import CaptureError

FACTORS = (0.5, 0.75, 2, 1.5)
"""Sizes that are tried, as multiples of those of the example inputs."""

BATCHES = 3
"""How many times the batch goes in. Times a factor, or its square, it is never 1: so no count of tokens stays the same by chance."""

CLOSED = "the model runs at other input sizes too, this graph does not; with prefer='module' it keeps its class, and runs there"
PARTLY = "at some input sizes the model makes other calls; there this graph refuses"

Groups = Mapping[tuple[Place, ...], float]
"""Dimensions of the inputs that change together, and by which factor."""


@dataclass(frozen=True, eq=False)
class _Model:
    """A model with its example inputs."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flat: list[Any]
    run: FlatModel

    def tensors(self) -> list[Tensor]:
        return tensors_of(self.flat)

    def recorded(self, tensors: Sequence[Tensor]) -> Capture:
        """The calls that the model makes on its example inputs and on these."""
        remaining = iter(tensors)
        others = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self.flat]
        return record_twice(self.model, self.args, self.kwargs, others)


def record_open(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, batch_alone: bool = False) -> Capture:
    """Capture the model with its batch size and all other sizes open at which it makes the same calls, in eval mode.

    The program has been compared with the model on the example inputs and at another size; where Python decided on sizes, it refuses
    those at which it would decide otherwise. ``Capture.notes`` says which sizes are open. Raises :class:`CaptureError` if none can be.
    """
    kwargs = dict(kwargs or {})
    flat, spec = flatten_inputs(args, kwargs)
    case = _Model(model, args, kwargs, flat, FlatModel(model, flat, spec))
    groups = [] if batch_alone else [tuple(group) for group in groups_of(case.tensors())]
    found = _widest(case, groups)
    if found is None:
        raise CaptureError("no input size can be left open")
    capture, changes = found
    closed = _still_closed(case, groups, changes)
    return replace(capture, notes=(*capture.notes, _size_note(case, changes), *_limits(capture, closed)))


@dataclass(frozen=True)
class _Changes:
    """What is different between two runs: the batch size, and other sizes."""

    batch: int
    groups: Groups

    def of(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """The inputs so changed; none where a dimension would vanish."""
        found: list[Tensor] | None = list(tensors)
        for group, factor in self.groups.items():
            found = resized(found, group, factor) if found is not None else None
        return None if found is None else [torch.cat([x] * self.batch) if x.dim() else x for x in found]

    def further(self) -> _Changes:
        """Sizes that are different once more, of a larger batch where that alone is open."""
        others = {group: 1.5 if factor != 1.5 else 0.75 for group, factor in self.groups.items()}
        return _Changes(1 if others else 2, others)


_Found = tuple[Capture, _Changes]


def _widest(case: _Model, groups: Sequence[tuple[Place, ...]]) -> _Found | None:
    """The capture with as many sizes open as can be together, the batch size first."""
    for batch in (BATCHES, 1):
        found = _with_groups(case, groups, batch) or (_attempt(case, _Changes(BATCHES, {})) if batch > 1 else None)
        if found is not None:
            return found
    return None


def _with_groups(case: _Model, groups: Sequence[tuple[Place, ...]], batch: int) -> _Found | None:
    """The capture with all groups open that can be, one after the other."""
    best: _Found | None = None
    for group in _apart(groups):
        known: Groups = {} if best is None else best[1].groups
        if not any(set(group) & set(other) for other in known):
            tries = (_attempt(case, _Changes(batch, {**known, group: factor})) for factor in FACTORS)
            best = next((found for found in tries if found is not None), best)
    return best


def _apart(groups: Sequence[tuple[Place, ...]]) -> Iterator[tuple[Place, ...]]:
    """Dimensions of equal size together (sides of an image, ids and their mask), then each alone."""
    for group in groups:
        yield group
        if len(group) > 1:
            yield from ((place,) for place in group)


def _attempt(case: _Model, changes: _Changes) -> _Found | None:
    """The capture with these sizes open, if there is one that gives what the model gives."""
    others = changes.of(case.tensors())
    if others is None:
        return None
    try:
        found = case.recorded(others)
        if not _agrees(case, found, changes.further().of(case.tensors())):
            check_on(found, others, case.run)
    except Exception:  # noqa: BLE001 - a model may refuse other sizes in any way it likes
        return None
    return None if found.decided else (found, changes)


def _agrees(case: _Model, found: Capture, tensors: Sequence[Tensor] | None) -> bool:
    """Whether program and model agree on these tensors: it raises if not, and says no if the model refuses them or makes other calls."""
    if tensors is None:
        return False
    try:
        return check_on(found, tensors, case.run)
    except Exception:
        with suppress(DivergedError):
            case.recorded(tensors)
            raise
    return False


def _still_closed(case: _Model, groups: Sequence[tuple[Place, ...]], changes: _Changes) -> bool:
    """Whether the model runs at other sizes of what is not open."""
    for group in groups:
        if {place for known in changes.groups for place in known}.issuperset(group):
            continue
        for factor in FACTORS:
            others = resized(case.tensors(), group, factor)
            with suppress(Exception):
                if others is not None:
                    case.run.outputs_on(others)
                    return True
    return False


def _size_note(case: _Model, changes: _Changes) -> str:
    names = [name for name, leaf in zip(input_names(case.args, case.kwargs), case.flat, strict=True) if isinstance(leaf, Tensor)]
    open_ones = [
        [dim for dim in range(x.dim()) if (dim == 0 and changes.batch > 1) or any((place, dim) in group for group in changes.groups)]
        for place, x in enumerate(case.tensors())
    ]
    return f"input dimensions that may vary: {', '.join(f'{name}{dims}' for name, dims in zip(names, open_ones, strict=True) if dims)}"


def _limits(capture: Capture, closed: bool) -> Iterator[str]:
    if closed:
        yield CLOSED
    if any(node.target is torch._assert and not _holds_an_input(node) for node in capture.graph.nodes):
        yield PARTLY


def _holds_an_input(check: fx.Node) -> bool:
    """Whether a check is that a size of an input is the example's."""
    sizes = check.all_input_nodes[0].all_input_nodes
    return len(sizes) == 1 and sizes[0].target is torch.ops.aten.sym_size.int and sizes[0].all_input_nodes[0].op == "placeholder"
