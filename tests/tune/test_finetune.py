"""Fine-tuning: what it changes, what it leaves alone, and which weights it returns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.tune.schedule import rate_factor
from tune.models import Named, Noisy, Normed, cut_to_half, perceptron, vectors

PLAIN = sc.FineTune(epochs=2, rate=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("prefer", ["module", "graph"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_lowers_the_loss_of_a_copy(prefer: Any, optimizer: Any) -> None:
    dense = Normed().eval()
    student, study, plan = cut_to_half(dense, torch.randn(4, 1, 6, 6), prefer=prefer)
    given = [state_of(dense), state_of(student)]
    taught = sc.Distillation(label_weight=0.9, logit_weight=0.05, feature_weight=0.05)
    settings = sc.FineTune(epochs=8, rate=0.2 if optimizer == "sgd" else 0.05, optimizer=optimizer, batch_size=8, distillation=taught)
    tuned = settings(student, Noisy(), teacher=dense, cut=study.cut(plan))
    losses = [epoch.loss for epoch in tuned.record.epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert isinstance(tuned.model, torch.fx.GraphModule if prefer == "graph" else Normed)
    assert tuned.model.state_dict().keys() == student.state_dict().keys()
    for model, before in zip((dense, student), given, strict=True):
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
        assert not any(module._forward_hooks or module.training for module in model.modules())
    assert not torch.equal(tuned.model.state_dict()["norm.running_mean"], student.state_dict()["norm.running_mean"])


def test_the_class_and_the_graph_learn_the_same() -> None:
    dense = Normed().eval()
    dense.drop.p = 0.0
    inputs = torch.randn(4, 1, 6, 6)
    tuned = [PLAIN(cut_to_half(dense, inputs, prefer=prefer)[0], Noisy()).model for prefer in ("module", "graph")]
    for name, value in tuned[0].state_dict().items():
        torch.testing.assert_close(tuned[1].state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_one_step_is_the_one_by_hand() -> None:
    model, (x, y) = perceptron(), vectors()
    tuned = replace(PLAIN, epochs=1, batch_size=32)(model, (x, y))
    nn.functional.cross_entropy(model(x), y).backward()
    for own, before in zip(tuned.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own, before - 0.05 * before.grad)
    assert tuned.record.steps == 1


def test_gradients_of_several_batches_make_one_step() -> None:
    model, (x, y) = perceptron(), vectors()
    whole = replace(PLAIN, epochs=1)(model, [(x, y)])
    parts = replace(PLAIN, epochs=1, accumulate=2)(model, [(x[:16], y[:16]), (x[16:], y[16:])])
    assert_same(parts.model, whole.model, rtol=1e-5, atol=1e-6)
    assert parts.record.steps == 1


def test_a_clipped_step_is_as_long_as_the_clip_allows() -> None:
    model = perceptron()
    tuned = replace(PLAIN, epochs=1, clip=1e-3)(model, [vectors()])
    steps = [(a - b).detach().flatten() for a, b in zip(tuned.model.parameters(), model.parameters(), strict=True)]
    assert float(torch.cat(steps).norm()) == pytest.approx(0.05 * 1e-3, rel=1e-2)


def test_weight_decay_spares_biases() -> None:
    model, (x, _) = perceptron(), vectors()
    settings = replace(PLAIN, epochs=1, weight_decay=0.5)
    tuned = settings(model, [x], loss=lambda outputs, batch: 0 * outputs.sum())
    torch.testing.assert_close(tuned.model[0].weight, model[0].weight * (1 - 0.05 * 0.5))
    torch.testing.assert_close(tuned.model[0].bias, model[0].bias)


def test_the_rate_follows_warm_up_and_cosine() -> None:
    settings = sc.FineTune(epochs=4, rate=0.1, warmup=1.0)
    rates = [epoch.rate for epoch in settings(perceptron(), [vectors()] * 2).record.epochs]
    factors = [rate_factor(place, epochs=4, warmup=1.0, shape="cosine", final=0.0) for place in (0.75, 1.75, 2.75, 3.75)]
    assert rates == pytest.approx([0.1 * factor for factor in factors])
    assert rates[0] == pytest.approx(0.075)


def scripted(values: list[float]) -> tuple[Any, list[dict[str, Tensor]]]:
    """A metric that says these values in turn, and what it was shown."""
    told, seen = iter(values), []

    def metric(model: nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(state_of(model))
        return next(told)

    return metric, seen


@pytest.mark.parametrize(("best", "values", "wanted"), [("highest", [0.1, 0.9, 0.4], 1), ("lowest", [0.1, 0.9, 0.4], 0)])
@pytest.mark.parametrize("average", [None, 0.5])
def test_the_best_weights_are_returned(best: Any, values: list[float], wanted: int, average: float | None) -> None:
    metric, seen = scripted(values)
    tuned = replace(PLAIN, best=best, average=average)(perceptron(), [vectors()], metric=metric)
    torch.testing.assert_close(dict(tuned.model.state_dict()), seen[wanted], rtol=0, atol=0)
    assert tuned.record.best_epoch == wanted
    assert (tuned.record.metric_before, tuned.record.metric_after) == (0.1, values[wanted])


def test_training_stops_where_the_metric_gets_no_better() -> None:
    metric, _ = scripted([0.1, 0.5, 0.4, 0.3, 0.9])
    record = replace(PLAIN, epochs=4, patience=2)(perceptron(), [vectors()], metric=metric).record
    assert len(record.epochs) == 3
    assert record.stopped_early
    assert record.best_epoch == 1


def test_frozen_parameters_and_statistics_stay() -> None:
    model = Normed()
    model.conv.weight.requires_grad_(False)
    for parameter in model.norm.parameters():
        parameter.requires_grad_(False)
    before = state_of(model)
    after = PLAIN(model, Noisy()).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_the_average_lags_behind() -> None:
    model = perceptron()
    last, averaged = (replace(PLAIN, epochs=6, average=average)(model, [vectors()]).model for average in (None, 0.9))
    way, short = (float((m[0].weight - model[0].weight).detach().norm()) for m in (last, averaged))
    assert 0 < short < way


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(sc.TrainingError, match="epoch 1"):
        PLAIN(perceptron(), [vectors()], loss=lambda outputs, batch: outputs.sum() * float("nan"))


def test_mixed_precision_leaves_nothing_behind() -> None:
    model = perceptron()
    mixed = replace(PLAIN, precision="bf16")(model, [vectors()])
    plain = PLAIN(model, [vectors()])
    assert mixed.model.__dict__.keys() == model.__dict__.keys()
    assert {parameter.dtype for parameter in mixed.model.parameters()} == {torch.float32}
    assert not torch.equal(mixed.model[0].weight, plain.model[0].weight)
    torch.testing.assert_close(mixed.model[0].weight, plain.model[0].weight, rtol=0.05, atol=0.01)
    copy.deepcopy(mixed.model)


def test_an_accelerator_of_the_user_keeps_its_precision() -> None:
    own = accelerate.Accelerator(mixed_precision="no")
    replace(PLAIN, precision="bf16")(perceptron(), [vectors()])
    assert own.mixed_precision == "no"
    assert own.device == torch.device("cpu")
    PLAIN(perceptron(), [vectors()])


def test_random_numbers_of_the_user_stay_as_they_were() -> None:
    model, batches = perceptron(), [vectors()]
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    PLAIN(model, batches)
    assert torch.equal(torch.rand(3), wanted)


def test_the_seed_gives_the_order_of_samples() -> None:
    runs = [replace(PLAIN, seed=seed, batch_size=4)(perceptron(), vectors()).model for seed in (0, 0, 1)]
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0][0].weight, runs[2][0].weight)


def test_a_loader_with_a_generator_of_its_own_gives_the_same_order_again() -> None:
    x, y = vectors()

    def loader() -> Any:
        data = torch.utils.data.TensorDataset(x, y)
        return torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(9))

    used = loader()
    list(used)
    assert_same(PLAIN(perceptron(), used).model, PLAIN(perceptron(), loader()).model)


@pytest.mark.parametrize("prefer", ["module", "graph"])
def test_batches_by_name(prefer: Any) -> None:
    model, (x, y) = Named().eval(), vectors()
    student, study, plan = cut_to_half(model, {"values": x}, prefer=prefer)
    tuned = replace(PLAIN, epochs=10)(student, [{"values": x, "labels": y}], teacher=model, cut=study.cut(plan))
    assert tuned.record.epochs[-1].parts["labels"] < tuned.record.epochs[0].parts["labels"]


def test_targets_of_real_numbers_are_fitted() -> None:
    model, (x, _) = nn.Linear(4, 2), vectors()
    dense = nn.Linear(4, 2)
    tuned = replace(PLAIN, epochs=1)(model, [(x, x[:, :2])], teacher=dense)
    outputs, theirs = model(x).detach(), dense(x).detach()
    parts = tuned.record.epochs[0].parts
    assert parts["labels"] == pytest.approx(float((outputs - x[:, :2]).square().mean()))
    assert parts["logits"] == pytest.approx(float((outputs - theirs).square().mean()))


def once() -> Iterator[Any]:
    yield vectors()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batches"),
        (once(), "read only once"),
        ("no_module:here", "no_module"),
        ("somewhere", "module:function"),
        ([vectors()[0]], "no target"),
        ([(vectors()[0], torch.zeros(32, 5))], "shape"),
    ],
)
def test_data_that_do_not_do(data: Any, message: str) -> None:
    with pytest.raises(sc.UsageError, match=message):
        PLAIN(perceptron(), data)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"rate": 0.0},
        {"warmup": 11.0},
        {"momentum": 1.0},
        {"average": 1.0},
        {"checkpoint_every": 5},
        {"accumulate": 0},
        {"distillation": {"temperature": 0.0}},
        {"distillation": {"label_weight": -1.0}},
        {"distillation": {"features": ("0",)}},
    ],
)
def test_settings_that_do_not_do(options: dict[str, Any]) -> None:
    with pytest.raises(sc.UsageError):
        sc.FineTune(**{k: sc.Distillation(**v) if k == "distillation" else v for k, v in options.items()})


def test_patience_needs_a_metric_and_training_needs_parameters() -> None:
    with pytest.raises(sc.UsageError, match="metric"):
        replace(PLAIN, patience=1)(perceptron(), [vectors()])
    with pytest.raises(sc.UsageError, match="trainable"):
        PLAIN(perceptron().requires_grad_(False), [vectors()])


def test_an_exported_program_is_refused() -> None:
    program = torch.export.export(perceptron(), (vectors()[0],)).module()
    with pytest.raises(sc.UsageError, match="into="):
        PLAIN(program, [vectors()])


def test_the_result_tells_of_it() -> None:
    x, y = vectors()
    model = perceptron()
    study = sc.study(model, x)
    result = sc.apply(study, study.plan(ratio=0.5))
    metric, _ = scripted([0.1, 0.2, 0.3])
    told = PLAIN(result.model, [(x, y)], metric=metric).into(result, metric="accuracy")
    assert told.metrics == {"accuracy before fine-tuning": 0.1, "accuracy after fine-tuning": 0.3}
    assert "2 epochs, 2 steps, weights of epoch 2" in told.notes[-1]
    assert told.plan == result.plan
    assert "accuracy after fine-tuning" in sc.report.html_report(told)
