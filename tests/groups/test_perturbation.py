"""Groups agree with those found by perturbing one channel at a time."""

from __future__ import annotations

import pytest

from cases import CASES, Case, studied
from groups.perturbing import Follower, Slot, classes_by_perturbation

COMPUTED = ("weight_norm", "spectral_norm", "standardised")
"""Weights that a layer computes from others."""
SLID_OVER = ("neighbouring_channels",)
"""Channels that lie side by side for a kernel, where one more is seen by its neighbours."""
MULTIPLIED = ("second_order",)
"""Channels of one layer that are multiplied with each other."""
CONVOLUTIONAL = [c for c in CASES if c.build.__module__ == "networks.convolutional" or "decoder" in c.name]
FOLLOWED = [c for c in CONVOLUTIONAL if c.name not in COMPUTED + SLID_OVER + MULTIPLIED] + [c for c in CASES if c.name == "patch_merging"]


def classes_found(case: Case) -> dict[frozenset[Slot], bool]:
    """Places of each channel of each group, of the tensors that layers hold."""
    layers = {n for n, m in studied(case).model.named_modules() if not list(m.children())}
    found: dict[frozenset[Slot], bool] = {}
    for group in studied(case).groups:
        if group.kind == "blocks":
            continue
        for channel in range(group.size):
            slots = {
                (m.tensor, m.dim, int(p))
                for m in group.members
                for p in m.positions[m.channels == channel]
                if m.tensor.rpartition(".")[0] in layers - {""}
            }
            found[frozenset(slots)] = group.prunable
    return found


@pytest.mark.parametrize("case", FOLLOWED, ids=str)
def test_groups_agree_with_perturbing_one_channel_at_a_time(case: Case) -> None:
    assert classes_found(case) == classes_by_perturbation(case)


def test_the_oracle_follows_a_channel_by_hand() -> None:
    case = next(c for c in CASES if c.name == "separable")
    follower = Follower(case.model(), case.inputs())
    wide = follower.model.get_submodule("block.0.0")
    slots, whole = follower.follow(wide, 3)
    assert not whole
    assert {s for s in slots if s[0].endswith(".0.weight") or s[0] == "block.2.weight"} == {
        ("block.0.0.weight", 0, 3),
        ("block.1.0.weight", 0, 3),
        ("block.2.weight", 1, 3),
    }
    last = follower.model.get_submodule("head.fc")
    assert follower.follow(last, 1) == ({("head.fc.weight", 0, 1), ("head.fc.bias", 0, 1)}, True)
