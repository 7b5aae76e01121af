"""Calibration data, read once and held, so that every pass sees the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.capture import Capture
from secateur.errors import SelectionError
from secateur.score.batches import Data, calibration_inputs


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches as ``(args, kwargs)``, and a digest by which a plan recognises them."""

    batches: Sequence[Any]
    digest: str
    samples: int | None

    def __call__(self) -> Sequence[Any]:
        """The batches, the same each time."""
        return self.batches

    def to_json(self) -> dict[str, Any]:
        """What a plan says of the data that it was made with."""
        return {"digest": self.digest, "samples": self.samples}


def calibration(capture: Capture, data: Data | Calibration | None, samples: int | None) -> Calibration | None:
    """Read calibration data for a captured model; ``None`` if there are none.

    Raises :class:`SelectionError` if the data hold no samples.
    """
    if data is None or isinstance(data, Calibration):
        return data
    batches = list(calibration_inputs(capture, data, samples=samples))
    if not batches:
        raise SelectionError("The calibration data hold no samples. An iterator that was read before is empty: give a new one.")
    return Calibration(batches, _digest(batches), samples)


def _digest(batches: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(list(batches)):
        digest.update(leaf.detach().cpu().double().numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode())
    return digest.hexdigest()[:16]
