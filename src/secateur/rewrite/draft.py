"""The smaller model without its proof, for cuts that are timed or tried and mostly thrown away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.duplicate import duplicate
from secateur.capture.trees import copied
from secateur.errors import RewriteError, SecateurError
from secateur.plan import Factorize
from secateur.rewrite.cut import Cut
from secateur.rewrite.factorize import with_skeletons
from secateur.rewrite.graph import rewrite_graph
from secateur.rewrite.module import Attributes, attempted_attributes, shrink_module
from secateur.rewrite.raising import raise_layers

CLOSE = 1e-2
"""How far apart, relative to the outputs' scale, two drafts of one cut may be: rounding is far below, a wrong attribute far above."""
_FAILURES = (SecateurError, RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError)


def draft(cut: Cut) -> nn.Module:
    """The smaller model of a cut, unproven: the user's class where it runs and agrees with the graph, otherwise the graph.

    It serves inputs of the shapes that the model was captured with.
    """
    source = cut.solution.walk.capture
    program = rewrite_graph(cut)
    graph = raise_layers(program, source)
    expected = _outputs(graph, source.args, dict(source.kwargs))
    for model in _in_class(source.model, cut, attempted_attributes(source.model, cut, program)):
        try:
            found = _outputs(model, source.args, dict(source.kwargs))
        except _FAILURES:
            continue
        if _agree(expected, found):
            return model
    return graph


def draft_with_factors(cut: Cut, edits: Sequence[Factorize], small: nn.Module | None = None) -> nn.Module:
    """The smaller model of a cut with factors of the planned shapes, of made-up values: the user's class where it runs so, or the graph.

    ``small`` is the model that the cut leaves, if it is drafted already.
    Raises :class:`RewriteError` where neither runs.
    """
    source = cut.solution.walk.capture
    small = draft(cut) if small is None else small
    if not edits:
        return small
    failure: Exception | None = None
    for model in (small, raise_layers(rewrite_graph(cut), source)):
        model = duplicate(model)
        with_skeletons(model, edits)
        try:
            _outputs(model, source.args, dict(source.kwargs))
        except _FAILURES as error:
            failure = error
        else:
            return model
    raise RewriteError(f"{type(source.model).__name__} does not run with factors: {failure}") from failure


def _in_class(model: nn.Module, cut: Cut, attributes: Iterable[Attributes]) -> Iterator[nn.Module]:
    for values in attributes:
        small = shrink_module(model, cut, values)
        if small is not None:
            yield small


def _outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    before = [module for module in model.modules() if module.training]
    args, kwargs = copied((args, kwargs))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = model.eval()(*args, **kwargs)
    finally:
        for module in before:
            module.training = True
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def _agree(expected: list[Tensor], found: list[Tensor]) -> bool:
    if [x.shape for x in expected] != [x.shape for x in found]:
        return False
    return all(
        float((a.double() - b.double()).abs().max()) <= CLOSE * float(a.double().abs().max())
        for a, b in zip(expected, found, strict=True)
        if a.numel()
    )
