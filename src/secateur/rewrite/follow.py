"""A model whose calls depend on values, recorded anew with the removed channels at zero, so that both sides take the same decisions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from secateur.capture import record
from secateur.capture.decisions import weights_decide
from secateur.capture.duplicate import duplicate
from secateur.capture.normalize import normalize
from secateur.groups import solve, walk
from secateur.groups.solve import Mask
from secateur.rewrite.cut import Cut
from secateur.rewrite.transfer import transfer


def followed(cut: Cut) -> Cut:
    """The same cut of a recording in which the dense model's removed channels are zero, where weights decide what is called.

    A detector keeps as many boxes as its weights find, and a recording holds that number. With zeros in the place of removed
    channels, in the weights that make them and in those that read them, the dense model decides as the smaller one does.
    """
    source = cut.solution.walk.capture
    if not weights_decide(source):
        return cut
    found = normalize(record(zeroed(source.model, cut), source.args, source.kwargs))
    return transfer(cut, solve(walk(found)))


def zeroed(model: nn.Module, cut: Cut) -> nn.Module:
    """A copy of the model with zeros at all positions of its weights that go."""
    model = duplicate(model)
    stored = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for name, dim, mask in cut.slots():
            if name in stored:
                _clear(stored[name], dim, mask)
    return model


def _clear(tensor: Tensor, dim: int, mask: Mask) -> None:
    """Write zeros where the mask is false along a dimension; a table of masks has a row for each group of dimension 0."""
    for part, kept in zip(tensor.chunk(len(mask)), mask, strict=True) if mask.ndim == 2 else [(tensor, mask)]:
        part.index_fill_(dim, torch.as_tensor(np.flatnonzero(~kept), device=tensor.device), 0)
