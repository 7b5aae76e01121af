"""Each group cut alone."""

from __future__ import annotations

import json

import pytest

import secateur as sc
from cases import CASES
from sweep.models import network, samples, weight


def test_each_cut_touches_one_group_and_has_the_metric_of_that_model() -> None:
    found = sc.sensitivity(network(), samples(8), [0.25, 0.5], data=samples(), evaluate=weight, criterion=sc.L2())
    assert [(cut.group, cut.ratio) for cut in found.cuts] == [("0", 0.25), ("0", 0.5), ("2", 0.25), ("2", 0.5)]
    for cut in found.cuts:
        assert cut.plan.ratios == {cut.group: cut.ratio}
        alone = sc.apply(network(), sc.study(network(), samples(8)).plan(sc.L2(), ratios={cut.group: cut.ratio}), samples(8))
        assert cut.metric == pytest.approx(weight(alone.model))
        assert cut.macs == alone.after.macs
        assert found.by_group[cut.group][cut.ratio] == cut.metric


def test_what_is_recovered_is_nearer_to_the_dense_model() -> None:
    bare = sc.sensitivity(network(), samples(8), [0.5], data=samples())
    refitted = sc.sensitivity(network(), samples(8), [0.5], data=samples(), recover=sc.Refit())
    assert all(after.metric > before.metric for before, after in zip(bare.cuts, refitted.cuts, strict=True))


def test_groups_may_be_left_alone_and_small_ratios_are_told() -> None:
    found = sc.sensitivity(network(), samples(8), [0.5, 0.01], evaluate=weight, exclude=("4",))
    assert list(found.by_group) == ["0"]
    assert [(one.what, one.reason) for one in found.missed] == [("0 at 0.01", "that is less than one channel")]
    with pytest.raises(sc.SelectionError, match="Nothing of this model"):
        sc.sensitivity(network(), samples(8), [0.5], evaluate=weight, exclude=("2",))


def test_table_and_json_say_the_same() -> None:
    found = sc.sensitivity(network(), samples(8), [0.25, 0.5], evaluate=weight)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["format"] == "secateur-sensitivity/1"
    assert {(row["group"], row["ratio"]): row["metric"] for row in told["cuts"]} == {(c.group, c.ratio): c.metric for c in found.cuts}
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in str(found).splitlines() if line.startswith("│")]
    assert rows == [[group, *(f"{value:.5g}" for value in row.values())] for group, row in found.by_group.items()]


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("residual", "fused_qkv", "grouped")], ids=str)
def test_all_prunable_groups_have_a_row(case: object) -> None:
    inputs = case.inputs()  # type: ignore[attr-defined]
    study = sc.study(case.model(), inputs)  # type: ignore[attr-defined]
    found = sc.sensitivity(study, ratios=[0.5])
    told = {cut.group for cut in found.cuts} | {one.what.removesuffix(" at 0.5") for one in found.missed}
    assert told == {layer.name for layer in study.layers if layer.prunable}
    assert all(one.reason == "that is less than one channel" for one in found.missed)
    assert found.cuts
