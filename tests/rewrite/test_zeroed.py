"""An independent reference: the user's own model with zeros where the members of a group say that its channels live."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cases import CASES, Case, call, studied
from secateur.capture.duplicate import duplicate
from secateur.groups import ChannelGroup, Member
from secateur.rewrite import Cut
from secateur.rewrite.execute import Double, widened
from secateur.rewrite.graph import rewrite_graph

ABSENT_IS_NOT_ZERO = {("linear_attention", "qk"), ("linear_attention", "heads")}
"""Queries and keys that pass a function with ``f(0) = 1`` before they are summed over."""


def removable(case: Case) -> Iterator[tuple[ChannelGroup, list[int]]]:
    """Each prunable group with the channels of its first legal step, where no average runs over them."""
    for group in studied(case).groups:
        channels = [int(c) for cell, take in enumerate(group.take) for c in np.flatnonzero(group.cells == cell)[:take]]
        if group.prunable and len(channels) < group.size and (case.name, group.name) not in ABSENT_IS_NOT_ZERO:
            yield group, channels


def averages(cut: Cut) -> bool:
    """Whether some norm or mean runs over channels that go."""
    names = cut.solution.ledger.renormalising
    nodes = [n for n in cut.solution.walk.capture.graph.nodes if n.name in names]
    return any(cut.touches(cut.fields(n.all_input_nodes[0])) for n in nodes)


def zero(model: nn.Module, member: Member, channels: list[int]) -> None:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    tensor = tensors[member.tensor]
    for place in member.positions[np.isin(member.channels, channels)].tolist():
        if member.rows == 1:
            tensor.select(member.dim, place).zero_()
        else:
            width, rows = member.length // member.rows, tensor.shape[0] // member.rows
            tensor[place // width * rows : (place // width + 1) * rows, place % width] = 0


def zeroed(case: Case, group: ChannelGroup, channels: list[int]) -> list[Tensor]:
    """Outputs of the user's model, in double precision, with a few channels at zero."""
    model = duplicate(studied(case).model).double()
    with torch.no_grad():
        for member in group.members:
            zero(model, member, channels)
        return pytree.tree_leaves(call(model, pytree.tree_map(widened, case.inputs())))


COMPUTED = ("weight_norm", "weight_norm_by_hooks", "spectral_norm", "standardised")
"""Models that compute weights from others, which zeros would change."""


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in COMPUTED], ids=str)
def test_a_removed_channel_is_a_channel_of_zeros(case: Case) -> None:
    study, compared = studied(case), 0
    for group, channels in removable(case):
        cut = study.cut_of({group.name: channels})
        if averages(cut):
            continue
        found = Double(rewrite_graph(cut)).outputs(study.capture.flat_inputs())
        torch.testing.assert_close(list(found), zeroed(case, group, channels), msg=lambda text, g=group: f"{g}: {text}")
        compared += 1
    assert compared, "no group was compared"
