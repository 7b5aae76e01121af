"""Notes of one kind in one sentence."""

from __future__ import annotations

from secateur.report.notes import gathered

ROUNDED = [f"layer{i}: removes 8 of 24, not 9: what stays is rounded to multiples of 8 (round)" for i in range(5)]
OTHER = "layer9: kept whole, since it is empty"


def test_layers_with_one_reason_are_told_as_one() -> None:
    found = gathered([*ROUNDED[:2], OTHER, *ROUNDED, OTHER])
    assert found == (
        "5 layers (layer0, layer1, layer2, ...): what stays is rounded to multiples of 8 (round); the plan lists them",
        OTHER,
    )


def test_few_notes_stay_as_they_are() -> None:
    assert gathered([*ROUNDED[:3], OTHER]) == (*ROUNDED[:3], OTHER)
