"""Convolutions, norms, pooling, reductions and softmax."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from groups.by_hand import Found, found, own, whole
from secateur.study import study


def layers(*modules: nn.Module) -> Found:
    """Analyse layers in a row, the first of which takes two channels."""
    return Found(study(nn.Sequential(*modules), torch.randn(2, 2, 5)))


def row(analysis: Found, name: str, dim: int) -> list[int]:
    """Classes along a dimension of a weight."""
    return analysis.solution.classes[analysis.solution.slot_labels[name, dim].ravel()].tolist()


def test_a_convolution_reads_channels() -> None:
    met = found(lambda a, b, c: F.conv2d(a, b, c, padding=1), (2, 3, 5, 5), (4, 3, 3, 3), (4,))
    assert met["b1"] == met["a1"] == own("a1", 3)
    assert met["c0"] == met["b0"] == own("b0", 4)
    assert met["b2"] == met["b3"] == whole(3)
    assert met["a0"] == own("a0", 2)


def test_what_a_convolution_slides_over_may_go_and_what_it_makes_takes_the_labels_that_it_meets() -> None:
    met = found(lambda a, b, c: F.conv2d(a, b, padding=1) + c, (2, 3, 5, 6), (4, 3, 3, 3), (1, 4, 5, 1))
    assert (met["a2"], met["a3"], met["c2"]) == (own("a2", 5), own("a3", 6), own("c2", 5))
    assert met["b2"] == whole(3)
    assert (frozenset({2}), False) in met.fields("aten.conv2d")


def test_a_convolution_holds_what_it_slides_over_together_with_other_dimensions() -> None:
    met = found(lambda a, b: F.conv1d(a.reshape(1, 2, 3), b, padding=1), (6,), (4, 2, 3))
    assert met["a0"] == whole(6)


def test_a_kernel_of_one_passes_the_positions() -> None:
    assert found(F.conv1d, (2, 3, 5), (4, 3, 1))["a2"] == own("a2", 5)
    assert found(lambda a, b: F.conv1d(a, b, stride=2) + torch.rand(3), (2, 3, 5), (4, 3, 1))["a2"] == own("a2", 5)


@pytest.mark.parametrize("function", [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d])
def test_a_transposed_convolution_has_its_weight_the_other_way_round(function: object) -> None:
    rank = int(str(getattr(function, "__name__", function)).removesuffix("d")[-1])
    met = found(function, (1, 4, *[1] * rank), (4, 3, *[1] * rank), (3,))  # type: ignore[arg-type]
    assert met["b0"] == met["a1"] == own("a1", 4)
    assert met["c0"] == met["b1"] == own("b1", 3)


def test_the_groups_of_a_convolution_lose_equally_many_inputs_and_outputs() -> None:
    met = layers(nn.Conv1d(2, 4, 1), nn.Conv1d(4, 6, 1, groups=2), nn.Conv1d(6, 2, 1))
    assert met.rectangles == [(2, 2), (2, 3)]
    assert row(met, "1.weight", 1) == row(met, "0.weight", 0)
    assert len(set(row(met, "0.weight", 0) + row(met, "1.weight", 0))) == 10
    blocks = next(g for g in met.study.groups if g.kind == "blocks")
    assert {(m.tensor, m.dim): m.channels.tolist() for m in blocks.members} == {
        ("0.weight", 0): [0, 0, 1, 1],
        ("0.bias", 0): [0, 0, 1, 1],
        ("1.weight", 1): [0, 0, 1, 1],
        ("1.weight", 0): [0, 0, 0, 1, 1, 1],
        ("1.bias", 0): [0, 0, 0, 1, 1, 1],
        ("2.weight", 1): [0, 0, 0, 1, 1, 1],
    }


def test_the_outputs_of_a_depthwise_convolution_go_with_its_inputs() -> None:
    met = layers(nn.Conv1d(2, 3, 1), nn.Conv1d(3, 6, 3, groups=3), nn.Conv1d(6, 2, 1))
    a, b, c = row(met, "0.weight", 0)
    assert row(met, "1.weight", 0) == row(met, "1.bias", 0) == row(met, "2.weight", 1) == [a, a, b, b, c, c]
    assert not met.rectangles


def test_the_groups_of_a_transposed_convolution() -> None:
    met = layers(nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(4, 6, 1, groups=2), nn.Conv1d(6, 2, 1))
    assert row(met, "1.weight", 0) == row(met, "0.weight", 0)
    assert row(met, "1.weight", 1) == row(met, "2.weight", 1) == row(met, "1.bias", 0)
    assert met.rectangles == [(2, 2), (2, 3)]


@pytest.mark.parametrize(
    ("norm", "tensors"),
    [(nn.BatchNorm1d(4), ("weight", "bias", "running_mean", "running_var")), (nn.InstanceNorm1d(4, affine=True), ("weight", "bias"))],
    ids=["batch", "instance"],
)
def test_norms_of_one_channel_each_go_with_it(norm: nn.Module, tensors: tuple[str, ...]) -> None:
    met = layers(nn.Conv1d(2, 4, 1), norm.eval(), nn.Conv1d(4, 2, 1))
    assert all(row(met, f"1.{t}", 0) == row(met, "0.weight", 0) for t in tensors)
    assert not met.study.coverage.renormalising


def test_layer_norms_run_over_the_channels_that_stay() -> None:
    for function in (lambda a, b: F.layer_norm(a, (4,), b), lambda a, b: F.rms_norm(a, (4,), b)):
        met = found(function, (2, 4), (4,))
        assert met["b0"] == met["a1"] == own("a1", 4)
        assert len(met.study.coverage.renormalising) == 1


@pytest.mark.parametrize(("groups", "rows", "averages"), [(1, [], True), (2, [(2, 3)], True), (6, [], False)])
def test_group_norms_keep_equally_many_of_each_group(groups: int, rows: list[tuple[int, int]], averages: bool) -> None:
    met = found(lambda a, b: F.group_norm(a, groups, b), (1, 6, 2), (6,))
    assert met["b0"] == met["a1"] == own("a1", 6)
    assert met.rectangles == rows
    assert bool(met.study.coverage.renormalising) == averages


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_resampling_passes_what_keeps_its_size(mode: str) -> None:
    met = found(lambda a: F.interpolate(a, (7, 3), mode=mode).exp(), (1, 2, 4, 3))
    assert (met["a1"], met["a2"], met["a3"]) == (own("a1", 2), whole(4), own("a3", 3))
    met = found(lambda a: F.interpolate(a, scale_factor=(2, 1), mode=mode).exp(), (1, 2, 4, 3))
    assert (met["a2"], met["a3"]) == (whole(4), whole(3))


@pytest.mark.parametrize(
    "function", [F.max_pool1d, lambda a, k: F.adaptive_avg_pool1d(a, k), lambda a, k: F.interpolate(a, scale_factor=k)]
)
def test_pooling_and_resampling_pass_channels(function: object) -> None:
    met = found(lambda a: function(a, 2).exp(), (2, 3, 4))  # type: ignore[operator]
    assert (met["a0"], met["a1"], met["a2"]) == (own("a0", 2), own("a1", 3), whole(4))


def test_a_mean_of_neighbours_passes_what_it_does_not_run_over() -> None:
    met = found(lambda a: F.avg_pool2d(a, (1, 2)).exp(), (2, 3, 4, 6))
    assert [met[f"a{d}"] for d in range(4)] == [own(f"a{d}", size) for d, size in enumerate((2, 3, 4, 6))]
    assert (frozenset({3}), False) in met.fields("aten.avg_pool2d")


def test_sums_end_the_labels_that_they_run_over() -> None:
    met = found(lambda a, b: a.sum(1) + b, (3, 4), (3,))
    assert (met["a0"], met["a1"]) == (own("a0", 3), own("a1", 4))
    assert met["b0"] == met["a0"]
    assert not met.study.coverage.renormalising


def test_a_sum_over_the_rows_of_a_split_dimension_joins_them() -> None:
    assert found(lambda a: a.reshape(2, 3).sum(0).exp(), (6,))["a0"] == own("a0", 3) * 2


@pytest.mark.parametrize("name", ["mean", "var", "std", "amax", "amin", "prod", "logsumexp"])
def test_statistics_run_over_the_channels_that_stay(name: str) -> None:
    met = found(lambda a: getattr(a, name)(1), (3, 4))
    assert (met["a0"], met["a1"]) == (own("a0", 3), own("a1", 4))
    assert len(met.study.coverage.renormalising) == 1


def test_the_place_of_a_maximum_holds_the_dimension() -> None:
    assert found(lambda a: a.argmax(1).float(), (3, 4))["a1"] == whole(4)


def test_softmax_holds_what_it_shares_probability_over() -> None:
    met = found(lambda a: a.softmax(1), (3, 4))
    assert (met["a0"], met["a1"]) == (own("a0", 3), whole(4))
    assert met.why("a1") == "softmax runs over it"


def test_softmax_within_rows_lets_rows_go_alone() -> None:
    met = found(lambda a: a.reshape(2, 3).log_softmax(1).exp(), (6,))
    assert met["a0"] == ["a0[0]"] * 3 + ["a0[3]"] * 3


def test_softmax_over_all_of_a_split_dimension_holds_it() -> None:
    assert found(lambda a: a.reshape(2, 3).flatten().softmax(0), (6,))["a0"] == whole(6)


def test_a_grouped_convolution_of_the_input_makes_equally_many_channels_in_every_group() -> None:
    met = layers(nn.Conv1d(2, 6, 1, groups=2), nn.Conv1d(6, 3, 1))
    assert met.rectangles == [(2, 3)]
    group = met.study.groups[0]
    assert (group.name, group.layout, group.prunable) == ("0", "2 x 3", True)
    assert row(met, "1.weight", 1) == row(met, "0.weight", 0)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_every_gate_of_a_recurrent_layer_has_a_row_for_each_unit(kind: type[nn.RNNBase], gates: int) -> None:
    met = Found(study(kind(3, 2, num_layers=2, bidirectional=True), torch.randn(4, 1, 3)))
    first, second = row(met, "weight_hh_l0", 1), row(met, "weight_hh_l0_reverse", 1)
    assert row(met, "weight_ih_l0", 0) == row(met, "bias_ih_l0", 0) == row(met, "weight_hh_l0", 0) == first * gates
    assert row(met, "weight_ih_l0_reverse", 0) == second * gates
    assert row(met, "weight_ih_l1", 1) == row(met, "weight_ih_l1_reverse", 1) == first + second
    assert len(set(first + second)) == 4
    assert met.rectangles == [(4, 2)]


def test_units_that_start_at_given_values_stay() -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = nn.GRU(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.cell(x, torch.ones(1, x.shape[1], 4))[0])

    met = Found(study(Started(), torch.randn(5, 2, 3)))
    assert not [g for g in met.study.groups if g.prunable]
    assert "starts at a value" in str(met.study.groups[0].reason)


def test_projected_states_have_no_rule() -> None:
    met = Found(study(nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 6, proj_size=2)), torch.randn(5, 2, 3)))
    assert "weights of this kind" in str(met.study.groups[0].reason)
