"""Calibration data, read once and held, so that every pass sees the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.capture import Capture
from secateur.score.batches import Data, calibration_inputs
from secateur.score.ranks import check_samples, collected


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
    check_samples(len(batches))
    return Calibration(batches, _digest(batches), samples)


def _digest(batches: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(list(batches)):
        digest.update(leaf.detach().cpu().double().numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode())
    found = collected(digest.hexdigest()[:16])
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()[:16]
