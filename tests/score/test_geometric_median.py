from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from processes import TESTS
from score.by_hand import group
from secateur.errors import SelectionError
from secateur.score import Combine, Evidence, GeometricMedian, tiles

PLAIN = Combine("sum", "none")


def scored(weights: Tensor, mix: float = 0.0) -> Tensor:
    return GeometricMedian(mix)(group(size=len(weights)), Evidence({"layer.weight": weights}, PLAIN))


def double_loop(weights: Tensor) -> Tensor:
    rows = weights.double().flatten(1)
    return torch.stack([torch.stack([(a - b).norm() for b in rows]).sum() for a in rows])


@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (30, 5), (1, 4)])
def test_equals_a_double_loop(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape)
    torch.testing.assert_close(scored(weights), double_loop(weights))


def test_equals_a_double_loop_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 4)
    weights = torch.randn(11, 6)
    torch.testing.assert_close(scored(weights), double_loop(weights))


def test_distances_are_between_weights_not_their_squares() -> None:
    assert scored(torch.tensor([[-1.0], [1.0], [2.0]])).tolist() == [5, 3, 4]


def test_the_smallest_norms_go_first_in_a_mix() -> None:
    weights = torch.tensor([[0.1], [5.0], [5.1], [9.0], [0.05], [4.0], [7.0], [6.0], [8.0], [3.0]])
    order = scored(weights, 0.2).argsort().tolist()
    rest = [c for c in range(10) if c not in (4, 0)]
    alone = double_loop(weights[rest])
    assert order[:2] == [4, 0]
    assert order[2] == rest[int(alone.argmin())]
    torch.testing.assert_close(scored(weights, 0.2)[rest], alone)


def test_a_mix_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(SelectionError, match="mix"):
        GeometricMedian(1.0)


def test_half_precision_weights_are_scored_precisely() -> None:
    weights = torch.randn(20, 9, dtype=torch.bfloat16)
    found = scored(weights)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, double_loop(weights))


def test_equal_filters_score_alike_to_the_last_bit_with_one_and_two_threads() -> None:
    weights = torch.randn(700, 40)
    order = torch.randperm(700)
    weights[order[:300]] = weights[order[300:600]]
    orders = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found = scored(weights)
        assert torch.equal(found[order[:300]], found[order[300:600]])
        orders.append([scored(weights, mix).argsort(stable=True).tolist() for mix in (0.0, 0.25)])
    assert orders[0] == orders[1]
    torch.testing.assert_close(found, double_loop(weights), rtol=1e-12, atol=0)


def test_filters_that_are_all_alike_score_nothing() -> None:
    assert scored(torch.randn(1, 30).expand(9, 30)).tolist() == [0] * 9


def test_no_table_of_all_pairs_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    monkeypatch.setattr(tiles, "TILE", 8)

    def watched(a: Tensor, b: Tensor) -> Tensor:
        largest.append(max(a.numel(), b.numel(), len(a) * len(b)))
        return tiles.distances(a, b)

    tiles.pair_sums(torch.randn(40, 6), watched, of_equals=0)
    assert max(largest) <= 64


MEASURED = """
import resource, sys, torch
from score.by_hand import group, member
from secateur.score import Combine, Evidence, GeometricMedian
torch.set_num_threads(1)
shape, dim, mix = eval(sys.argv[1])
def scored(weights):
    made = group(size=weights.shape[dim], members=[member("layer.weight", range(weights.shape[dim]), dim=dim)])
    return GeometricMedian(mix)(made, Evidence({"layer.weight": weights}, Combine()))
weights, small = torch.randn(shape), torch.randn(8, 8)
scored(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert scored(weights).shape == (4096,)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are counted in other units elsewhere")
@pytest.mark.parametrize("settings", [((4096, 512, 3, 3), 0, 0), ((4096, 512, 3, 3), 0, 0.25), ((512, 4096, 3, 3), 1, 0)], ids=str)
def test_four_thousand_filters_take_little_memory(settings: tuple[tuple[int, ...], int, float]) -> None:
    """The weights take 72 MiB; those of a transposed convolution are copied, filter by filter."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, repr(settings)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not done.returncode, done.stderr
    assert float(done.stdout) < (120 if settings[1] else 60)
