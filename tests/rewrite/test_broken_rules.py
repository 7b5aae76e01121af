"""What the proof is worth: one wrong rule, or one wrong index, and no result comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from cases import CASES, studied
from networks.convolutional import Residual
from secateur.errors import ProofError, RewriteError
from secateur.groups.fields import Field
from secateur.groups.rules import registry
from secateur.groups.rules.registry import Call, Outcome, Rule
from secateur.rewrite import apply, rewrite
from secateur.rewrite.apply import Prefer
from secateur.score import Random
from secateur.study import Study, study

BY_NAME = {case.name: case for case in CASES}
Broken = Callable[[Rule, Call], Outcome]


def mirrored(original: Rule, call: Call) -> Outcome:
    """The right fields, with the labels in reverse order."""
    fields = original(call)
    assert isinstance(fields, tuple)
    return tuple(Field(np.flip(f.labels).copy(), f.block) for f in fields)


def separated(original: Rule, call: Call) -> Outcome:
    """A product in which the labels of the input never meet those of the weight."""
    lead = [1] * (len(call.shape) - 1)
    return tuple(Field(f.labels.reshape(*lead, -1)) for f in call["weight"].fields if f.dims == {0})


def first_operand(original: Rule, call: Call) -> Outcome:
    """An elementwise operator that forgets all full-sized operands but the first."""
    full = next((o for o in call.operands() if len(o.shape) == len(call.shape)), None)
    return original(call) if full is None else tuple(full.fields)


def passed(original: Rule, call: Call) -> Outcome:
    """The fields of the first operand as they are."""
    return tuple(call.operands()[0].fields)


def mirrored_vectors(original: Rule, call: Call) -> Outcome:
    """A norm whose scale, shift and statistics meet the channels in reverse order."""
    names = ("weight", "bias", "running_mean", "running_var")
    flipped = {n: replace(call[n], fields=tuple(Field(np.flip(f.labels).copy(), f.block) for f in call[n].fields)) for n in names}
    return original(replace(call, args=call.args | flipped))


def lost(original: Rule, call: Call) -> Outcome:
    """An output without labels, and nothing held."""
    return ()


def tiled(original: Rule, call: Call) -> Outcome:
    """Repeats laid one after the other rather than side by side."""
    x = call["self"]
    dim = call["dim"] % len(x.shape)
    return tuple(Field(np.concatenate([f.labels] * call["repeats"], dim), f.block) if dim in f.dims else f for f in x.fields)


def turned(original: Rule, call: Call) -> Outcome:
    """Outputs with the labels in reverse order."""
    outcome = original(call)
    assert isinstance(outcome, list)
    return [tuple(Field(np.flip(f.labels, -1).copy(), f.block) for f in fields) for fields in outcome]


BROKEN = [
    ("dense_block", "aten.cat", mirrored),
    ("decoder_2d", "aten.cat", lost),
    ("separate_qkv", "aten.linear", separated),
    ("separate_qkv", "aten.softmax", mirrored),
    ("residual", "pointwise", first_operand),
    ("residual", "aten.batch_norm", passed),
    ("mixer", "aten.permute", mirrored),
    ("flatten", "aten.reshape", lost),
    ("flatten", "aten.reshape", mirrored),
    ("rotary", "aten.repeat_interleave", tiled),
    ("unknown_operator", "secateur_tests.mixed", passed),
    ("recurrent", "aten.lstm", turned),
]


def half(found: Study) -> Any:
    """A plan that takes half of every group, and a quarter of the heads where there are any."""
    heads = any(g.prunable and g.kind == "blocks" for g in found.groups)
    return found.plan(Random(seed=3), ratio=0.5, heads=0.25 if heads else None)


@pytest.mark.parametrize(("name", "operator", "broken"), BROKEN, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("prefer", ["auto", "graph"])
def test_a_wrong_rule_gives_no_result(name: str, operator: str, broken: Broken, prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, original, called = studied(BY_NAME[name]), registry._RULES.get(operator), []

    def wrong(call: Call) -> Outcome:
        called.append(call.node.name)
        return broken(original, call)  # type: ignore[arg-type]

    monkeypatch.setitem(registry._RULES, operator, wrong)
    found = study(sound.model, BY_NAME[name].inputs())
    cut = found.cut(half(found))
    with pytest.raises((ProofError, RewriteError)):
        rewrite(cut, prefer=prefer)
    assert called


def test_norms_that_were_never_trained_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = Residual().eval(), BY_NAME["residual"].inputs()
    found = study(model, inputs)
    assert rewrite(found.cut(half(found)), prefer="module").proof.error <= 1e-9
    original = registry._RULES["aten.batch_norm"]
    monkeypatch.setitem(registry._RULES, "aten.batch_norm", lambda call: mirrored_vectors(original, call))
    found = study(model, inputs)
    with pytest.raises((ProofError, RewriteError)):
        rewrite(found.cut(half(found)), prefer="module")


def swap_rows(root: nn.Module, name: str) -> None:
    weight = root.get_parameter(name)
    with torch.no_grad():
        weight[[0, 1]] = weight[[1, 0]].clone()


PLANTED = [("residual", "conv2.weight"), ("grouped", "block.1.0.weight"), ("separable", "block.1.0.weight"), ("mixer", "tokens.0.weight")]


@pytest.mark.parametrize(("name", "weight"), PLANTED)
def test_two_rows_in_the_wrong_order_are_found_in_the_users_class(name: str, weight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = apply.shrink_module

    def wrong(*args: Any) -> nn.Module | None:
        model = original(*args)
        assert model is not None
        swap_rows(model, weight)
        return model

    monkeypatch.setattr(apply, "shrink_module", wrong)
    found = studied(BY_NAME[name])
    with pytest.raises(ProofError, match=weight):
        rewrite(found.cut(half(found)), prefer="module")


@pytest.mark.parametrize(("name", "weight"), [*PLANTED, ("fused_qkv", "proj.weight"), ("language_model", "up.weight")])
def test_two_rows_in_the_wrong_order_are_found_in_a_graph(name: str, weight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = apply.rewrite_graph

    def wrong(*args: Any) -> fx.GraphModule:
        program = original(*args)
        swap_rows(program, weight)
        return program

    monkeypatch.setattr(apply, "rewrite_graph", wrong)
    found = studied(BY_NAME[name])
    with pytest.raises(ProofError, match=weight) as error:
        rewrite(found.cut(half(found)), prefer="graph")
    assert error.value.node is not None


def shifted_slice(node: fx.Node) -> None:
    """Move a slice by one position."""
    x, dim, start, end, *rest = node.args
    node.args = (x, dim, start + 1, end + 1, *rest)  # type: ignore[operator]


def turned_table(node: fx.Node) -> None:
    """Turn an index table by one position."""
    table = node.args[2]
    assert isinstance(table, fx.Node)
    values = node.graph.owning_module.get_buffer(str(table.target))
    values.copy_(values.roll(1))


def doubled_scale(node: fx.Node) -> None:
    """Double the scale of attention."""
    node.kwargs = node.kwargs | {"scale": 2 * node.kwargs["scale"]}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "operator", "spoil"),
    [
        ("fused_qkv", "aten.slice.Tensor", shifted_slice),
        ("channel_shuffle", "aten.index_select.default", turned_table),
        ("fused_qkv", "aten.scaled_dot_product_attention.default", doubled_scale),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_one_wrong_constant_is_found_and_named(
    name: str, operator: str, spoil: Callable[[fx.Node], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, spoilt = apply.rewrite_graph, []

    def wrong(*args: Any) -> fx.GraphModule:
        program = original(*args)
        node = next(n for n in program.graph.nodes if str(n.target) == operator)
        spoil(node)
        spoilt.append(node.name)
        return program

    monkeypatch.setattr(apply, "rewrite_graph", wrong)
    found = studied(BY_NAME[name])
    with pytest.raises(ProofError) as error:
        rewrite(found.cut(half(found)), prefer="graph")
    assert error.value.error is not None
    assert error.value.error > 1e-6
    assert str(error.value.node).startswith(f"{spoilt[0]} ")
