"""The table of rules: one rule an operator, and what happens without."""

from __future__ import annotations

import pytest
import torch

from cases import VECTORS
from groups.by_hand import found, own, whole
from networks.whole import Unknown
from secateur.groups.rules import Call, Outcome, find, rule
from secateur.groups.rules.registry import _RULES
from secateur.study import study

aten = torch.ops.aten


def test_a_second_registration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aten\.cat has a rule already: secateur\.groups\.rules\.joining\.cat"):
        rule("aten.cat")(lambda call: ())


def test_a_rule_is_found_by_overload_then_by_operator_then_as_elementwise() -> None:
    assert find(aten.max.dim) is _RULES["aten.max.dim"]
    assert find(aten.cat.default) is _RULES["aten.cat"]
    assert find(aten.digamma.default) is _RULES["pointwise"]
    assert find(aten.kron.default) is None
    assert find(torch.add) is None


def test_an_operator_without_a_rule_holds_its_operands_and_is_listed() -> None:
    met = found(lambda a, b: torch.kron(a, b), (3, 4), (5, 4))
    assert met["a0"] == whole(3)
    assert met["b1"] == whole(4)
    assert "aten.kron.default has no rule" in met.why("a0") or "kron" in met.why("a0")
    assert any("kron" in name for name in met.study.coverage.unknown.values())


def test_adding_a_rule_is_one_small_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.groups.rules.registry._RULES", dict(_RULES))

    @rule("secateur_tests.mixed")
    def mixed(call: Call) -> Outcome:
        """Channels in reverse order: all of them go together, each with its mirror image."""
        x = call.operands()[0]
        for field in x.fields:
            call.ledger.unite(field.labels, field.labels[..., ::-1])
        return tuple(x.fields)

    analysis = study(Unknown().eval(), VECTORS(2))
    group = next(g for g in analysis.groups if g.name == "second")
    assert group.prunable
    assert group.size == 4
    assert not analysis.coverage.unknown


def test_operands_without_labels_need_no_rule() -> None:
    met = found(lambda a: a.sum() + torch.kron(torch.ones(2, 2), torch.ones(2, 2)).sum(), (4,))
    assert met["a0"] == own("a0", 4)
    assert not met.study.coverage.unknown
