"""Fidelity is perfect with oneself, follows formulas by hand, and does not depend on how samples are batched."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from secateur.errors import ModelError, UsageError
from secateur.measure import compare_outputs


def test_a_model_agrees_with_itself():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    same = compare_outputs(model, model, [torch.randn(5, 4), torch.randn(2, 4)])
    assert (same.relative_l2, same.cosine, same.top1, same.batches) == (0.0, 1.0, 1.0, 2)


def test_figures_by_hand():
    dense, compressed = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    agreement = compare_outputs(lambda x: dense, lambda x: compressed, [0]).outputs[""]
    assert_close(agreement.relative_l2, 4 / 5)
    assert_close(agreement.cosine, 9 / (5 * 3))
    assert agreement.top1 == 1 / 2


def test_batching_changes_nothing():
    dense, compressed, samples = nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(12, 4)
    whole, pieces = (compare_outputs(dense, compressed, samples.split(size)).outputs[""] for size in (12, 5))
    assert_close(vars(whole), vars(pieces))


def test_the_worst_of_nested_outputs_speaks():
    dense = {"logits": torch.eye(3), "hidden": (torch.ones(2, 2, 2), None)}
    compressed = {"logits": torch.eye(3), "hidden": (torch.ones(2, 2, 2) * 1.5, None)}
    result = compare_outputs(lambda: dense, lambda: compressed, [()])
    assert {name: value.relative_l2 for name, value in result.outputs.items()} == {"['logits']": 0.0, "['hidden'][0]": 0.5}
    assert (result.relative_l2, result.top1) == (0.5, 1.0)
    assert result.outputs["['hidden'][0]"].top1 is None


def test_parts_that_are_no_tensors_are_named():
    result = compare_outputs(lambda x: (x, "text"), lambda x: (x, "text"), [torch.ones(2)])
    assert (set(result.outputs), result.ignored) == ({"[0]"}, ("[1]",))


def test_classes_may_lie_along_any_dimension():
    dense, compressed = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 2.0], [0.0, 3.0]]])
    top1 = [compare_outputs(lambda x: dense, lambda x: compressed, [0], logits_dim=dim).top1 for dim in (1, 2)]
    assert top1 == [1.0, 0.5]
    assert compare_outputs(lambda x: dense, lambda x: compressed, [0]).top1 is None


def test_a_single_column_is_no_choice_of_class():
    assert compare_outputs(nn.Linear(3, 1), nn.Linear(3, 1), [torch.ones(2, 3)]).top1 is None


@pytest.mark.parametrize("batch", [torch.ones(2, 3), (torch.ones(2, 3),), {"input": torch.ones(2, 3)}])
def test_batches_come_as_tensors_arguments_or_keywords(batch):
    assert compare_outputs(nn.Linear(3, 2), nn.Linear(3, 2), [batch]).relative_l2 > 0


def test_nan_is_never_agreement():
    result = compare_outputs(lambda x: (x, x), lambda x: (x * math.nan, x), [torch.ones(2)])
    assert math.isnan(result.relative_l2)
    assert math.isnan(result.cosine)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["relative_l2"] == "nan"


def test_models_are_left_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    model[1].eval()
    compare_outputs(model, nn.Identity(), [torch.randn(4, 3)])
    assert [module.training for module in model.modules()] == [True, True, False]
    assert_close(model[0].running_mean, torch.zeros(3))


def test_outputs_of_another_shape_or_build_are_refused():
    with pytest.raises(ModelError, match="differ in shape"):
        compare_outputs(nn.Linear(3, 2), nn.Linear(3, 4), [torch.ones(1, 3)])
    with pytest.raises(ModelError, match="built differently"):
        compare_outputs(lambda x: (x,), lambda x: [x], [torch.ones(1)])
    with pytest.raises(ModelError, match="no tensor"):
        compare_outputs(lambda x: "text", lambda x: "text", [0])
    with pytest.raises(UsageError, match="no batches"):
        compare_outputs(nn.Identity(), nn.Identity(), [])
