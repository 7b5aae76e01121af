"""What a recovery is, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from secateur.capture.capture import Capture
from secateur.capture.normalize.weights import stand_ins
from secateur.errors import RewriteError
from secateur.rewrite import Cut
from secateur.rewrite.computed import computed_value, store
from secateur.score.batches import Data


@dataclass(frozen=True)
class Change:
    """What recovery did to one layer: the error of its outputs against the dense model's, as shares of their variance."""

    before: float | None = None
    """``None`` where it was not measured."""
    after: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Recovered:
    """What a recovery changed; the structure that was proven stays."""

    method: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    """By layer."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Layers that were left as they are, with the reason."""
    samples: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of it."""
        if not self.changes:
            why = tuple(dict.fromkeys(self.skipped.values()))[:3]
            return (f"nothing was recovered by {self.method}: {'; '.join(why)}",) if why else ()
        left = f"; left as they are: {'; '.join(f'{n} ({why})' for n, why in self.skipped.items())}" if self.skipped else ""
        data = f" on {self.samples} calibration samples" if self.samples else ""
        return (
            f"recovered after the proof by {self.method}{data}: new values in {len(self.changes)} layers, the structure as proven{left}",
        )


class Recovery(Protocol):
    """A way of winning back what a cut cost: new values for the smaller model's tensors, in place, their shapes as they are."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Recover a model that a cut of a dense one gave; ``data`` is anything that calibration takes."""
        ...


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a model, by each of its names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def stored_tensor(own: Mapping[str, Tensor], name: str, capture: Capture) -> Tensor | None:
    """The tensor that a smaller model holds for one of the dense model, under any of the names that this has there."""
    names = (*capture.tied.get(name, (name,)), stand_ins(capture.graph).get(name, ""))
    return next((own[n] for n in names if n in own), None)


def load_values(program: nn.Module, model: nn.Module) -> None:
    """Give a program's tensors the values that a model of the same structure has now."""
    with torch.no_grad():
        theirs = own_tensors(model)
        for name, tensor in own_tensors(program).items():
            value = theirs[name] if name in theirs else computed_value(model, name)
            if value is not None:
                tensor.copy_(value)


def write_back(values: Mapping[str, Tensor], model: nn.Module, capture: Capture) -> None:
    """Put new values of tensors into a model, under any of the names that the dense model has for them.

    What a layer computes gets its value by way of the tensors behind it.
    """
    own = own_tensors(model)
    with torch.no_grad():
        for name, value in values.items():
            known = stored_tensor(own, name, capture)
            if known is not None:
                known.copy_(value)
            elif not store(model, name, value.detach()):
                raise RewriteError(f"{name} cannot get a new value: what the layer computes it from does not hold one.")
