from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.errors import SelectionError
from secateur.score import Combine, Policy

X, F = torch.tensor([11.0, 19, 38, 25, 46]), torch.tensor([20.0, 12, 18, 16, 39])


def parts(*scores: Tensor) -> list[tuple[np.ndarray, Tensor]]:
    return [(np.arange(len(s)), s.double()) for s in scores]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("sum", [0.270, 0.251, 0.445, 0.332, 0.702]), ("average", [0.135, 0.125, 0.222, 0.166, 0.351])],
)
def test_two_producers_of_a_sum(policy: Policy, expected: list[float]) -> None:
    found = Combine(policy, "tss_norm")(5, parts(X, F))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-3, rtol=0)


def test_producers_are_normalised_before_they_are_added() -> None:
    combine = Combine("sum", "tss_norm")
    torch.testing.assert_close(combine(5, parts(X, F)), combine(5, parts(1000 * X, F)))


def test_scores_of_the_sum_itself_are_only_normalised() -> None:
    sums = torch.tensor([25.0, 22, 64, 43, 58])
    expected = torch.tensor([0.118, 0.104, 0.302, 0.203, 0.274])
    torch.testing.assert_close(Combine("backward", "tss_norm").single(sums), expected, atol=1e-3, rtol=0)


def test_a_channel_is_averaged_over_the_producers_that_make_it() -> None:
    some = [(np.array([0, 1]), torch.tensor([2.0, 4.0])), (np.array([1, 2]), torch.tensor([6.0, 8.0]))]
    assert Combine("average", "none")(4, some).tolist() == [2, 5, 8, 0]
    assert Combine("sum", "none")(4, some).tolist() == [2, 10, 8, 0]


def test_backward_is_refused_where_only_weights_are_known() -> None:
    with pytest.raises(SelectionError, match="backward"):
        Combine("backward")(5, parts(X))


def test_a_group_without_producers_scores_zero() -> None:
    assert Combine()(3, []).tolist() == [0, 0, 0]
