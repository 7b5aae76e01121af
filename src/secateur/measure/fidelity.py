"""Fidelity: how well a compressed model's outputs agree with the dense model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.errors import ModelError, UsageError
from secateur.measure.evaluation import evaluating

Model = Callable[..., Any]


@dataclass(frozen=True)
class Agreement:
    """How well one output agrees, over all batches together."""

    relative_l2: float
    """Norm of the difference over the norm of the dense output: 0 if equal."""
    cosine: float
    """Cosine of the angle between the outputs: 1 if equal."""
    top1: float | None
    """Share of the predictions whose highest logit is the same; None if the output is none of logits."""


@dataclass(frozen=True)
class Fidelity:
    """How well a compressed model's outputs agree with the dense model's; of several outputs the worst one speaks."""

    outputs: Mapping[str, Agreement]
    """Agreement of each tensor in the output, by its place in it (``"['logits']"``, ``"[0]"``, empty for a bare tensor)."""
    batches: int
    ignored: tuple[str, ...] = ()
    """Parts of the output that are no tensors and were not compared."""

    @property
    def relative_l2(self) -> float:
        """The largest relative error among the outputs; NaN if any is."""
        return _worst([agreement.relative_l2 for agreement in self.outputs.values()], max)

    @property
    def cosine(self) -> float:
        """The smallest cosine among the outputs; NaN if any is."""
        return _worst([agreement.cosine for agreement in self.outputs.values()], min)

    @property
    def top1(self) -> float | None:
        """The smallest share of equal predictions among the outputs that are logits; None if there are none."""
        return min((agreement.top1 for agreement in self.outputs.values() if agreement.top1 is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """The fidelity as plain JSON values; what is not finite becomes text (``"nan"``, ``"inf"``)."""
        outputs = {name: {key: _plain(value) for key, value in vars(agreement).items()} for name, agreement in self.outputs.items()}
        worst = {"relative_l2": _plain(self.relative_l2), "cosine": _plain(self.cosine), "top1": _plain(self.top1)}
        return worst | {"outputs": outputs, "batches": self.batches, "ignored": list(self.ignored)}


def compare_outputs(dense: Model, compressed: Model, batches: Iterable[Any], *, logits_dim: int | None = None) -> Fidelity:
    """Compare two models' outputs on batches, which may be a data loader of any length.

    A batch is a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments. Sums run over all batches
    in float64, so the result does not depend on how samples are cut into batches. ``logits_dim`` names the dimension of the
    classes; without it, outputs of two dimensions (sample, class) are taken for logits.
    """
    tallies: dict[str, _Tally] = {}
    ignored: set[str] = set()
    count = 0
    with evaluating((dense, compressed)):
        for batch in batches:
            count += 1
            for name, ours, theirs in _paired(_run(dense, batch), _run(compressed, batch), ignored):
                tallies.setdefault(name, _Tally()).add(ours, theirs, logits_dim)
    if not count:
        raise UsageError("There are no batches to compare the models on. Give at least one.")
    if not tallies:
        raise ModelError(f"The models return no tensor that could be compared (found {', '.join(sorted(ignored)) or 'nothing'}).")
    return Fidelity({name: tally.agreement() for name, tally in tallies.items()}, count, tuple(sorted(ignored)))


class _Tally:
    """Running sums over batches of one output."""

    def __init__(self) -> None:
        self.difference = self.dense = self.compressed = self.inner = 0.0
        self.same: int | None = None
        self.predictions = 0

    def add(self, dense: Tensor, compressed: Tensor, logits_dim: int | None) -> None:
        ours, theirs = _numbers(dense), _numbers(compressed)
        self.difference += float((ours - theirs).square().sum())
        self.dense += float(ours.square().sum())
        self.compressed += float(theirs.square().sum())
        self.inner += float((ours * theirs).sum())
        dim = 1 if logits_dim is None and dense.dim() == 2 else logits_dim
        if dim is not None and dense.is_floating_point() and -dense.dim() <= dim < dense.dim() and dense.shape[dim] > 1:
            same = dense.argmax(dim) == compressed.argmax(dim)
            self.same = (self.same or 0) + int(same.sum())
            self.predictions += same.numel()

    def agreement(self) -> Agreement:
        if self.difference == 0:
            error, cosine = 0.0, 1.0
        else:
            error = math.sqrt(self.difference / self.dense) if self.dense else math.inf
            norms = math.sqrt(self.dense) * math.sqrt(self.compressed)
            cosine = self.inner / norms if norms else 0.0
        top1 = None if self.same is None else self.same / max(self.predictions, 1)
        return Agreement(error, cosine, top1)


def _run(model: Model, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _paired(dense: Any, compressed: Any, ignored: set[str]) -> Iterable[tuple[str, Tensor, Tensor]]:
    ours, our_spec = pytree.tree_flatten_with_path(dense)
    theirs, their_spec = pytree.tree_flatten(compressed)
    if our_spec != their_spec:
        raise ModelError(f"The models' outputs are built differently: {our_spec} and {their_spec}.")
    for (path, left), right in zip(ours, theirs, strict=True):
        name = pytree.keystr(path)
        if not isinstance(left, Tensor) or not isinstance(right, Tensor):
            ignored.add(name)
        elif left.shape != right.shape:
            raise ModelError(
                f"The models' outputs {name or '(the only one)'} differ in shape: {tuple(left.shape)} and {tuple(right.shape)}."
            )
        else:
            yield name, left, right


def _numbers(tensor: Tensor) -> Tensor:
    """Elements as float64 on the CPU, where every device's tensors can meet."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu().double()


def _worst(values: list[float], choose: Callable[[list[float]], float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else choose(values)


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
