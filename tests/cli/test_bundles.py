"""Options out of settings classes."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from secateur.allocate import GlobalRank, Isomorphic, Slamp
from secateur.cli.bundles import Choice, Settings, argument
from secateur.cli.fields import field_texts, plain
from secateur.cli.registry import ALLOCATORS, CRITERIA
from secateur.score import L2, SNP, GeometricMedian, Random


@dataclass(frozen=True, kw_only=True)
class Base:
    """Things."""

    first: int = 1
    """The ``first``, see :func:`~a.b.c`,
    over two lines."""


@dataclass(frozen=True, kw_only=True)
class Example(Base):
    """Things to set."""

    place: Path = field(metadata=argument("PLACE"))
    """Where."""
    many: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"
    on: bool = False


def test_help_comes_from_the_sentences_below_the_fields() -> None:
    assert field_texts(Example) == {"first": "The first, see a.b.c, over two lines.", "place": "Where."}


def test_plain_text_has_no_marks() -> None:
    assert plain("Raises :class:`Error`\n  if ``x``.") == "Raises Error if x."


def test_one_parameter_a_field_and_an_object_back() -> None:
    parameters = {p.name: p for p in Settings(Example).parameters()}
    assert list(parameters) == ["first", "place", "many", "mode", "on"]
    assert parameters["place"].default is inspect.Parameter.empty
    assert parameters["first"].default == 1
    values: dict[str, Any] = {"first": 2, "place": Path("x"), "many": ["a", "b"], "mode": "b", "on": True, "other": 0}
    assert Settings(Example).build(values) == Example(first=2, place=Path("x"), many=("a", "b"), mode="b", on=True)


def nothing_given(choice: Choice) -> dict[str, Any]:
    return {p.name: None for p in choice.parameters()} | {"seed": 5}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"criterion": "l2"}, L2()),
        ({"criterion": "l2", "fold_bn": True}, L2(fold_bn=True)),
        ({"criterion": "gm", "mix": 0.25}, GeometricMedian(mix=0.25)),
        ({"criterion": "snp", "gamma": 3}, SNP(gamma=3)),
        ({"criterion": "random"}, Random(seed=5)),
    ],
)
def test_a_criterion_with_its_own_settings(given: dict[str, Any], expected: object) -> None:
    assert CRITERIA.build(nothing_given(CRITERIA) | given) == expected


def test_settings_of_another_criterion_are_refused() -> None:
    with pytest.raises(typer.BadParameter, match="--mix belongs to --criterion gm, not to l2"):
        CRITERIA.build(nothing_given(CRITERIA) | {"criterion": "l2", "mix": 0.5})


def test_an_allocator_within_another() -> None:
    nothing = nothing_given(ALLOCATORS)
    assert ALLOCATORS.build(nothing | {"allocator": "isomorphic"}) == Isomorphic(GlobalRank())
    assert ALLOCATORS.build(nothing | {"allocator": "isomorphic", "inner": "slamp"}) == Isomorphic(Slamp())


def test_a_field_of_another_kind_has_no_option() -> None:
    @dataclass(frozen=True)
    class Odd:
        size: int = 1

    choice = Choice("odd", {"odd": Odd}, "odd", "Odd.", shared=frozenset(["size"]))
    assert [p.name for p in choice.parameters()] == ["odd"]
    assert choice.build({"odd": "odd", "size": 7}) == Odd(7)


def test_options_are_annotated_for_typer() -> None:
    (annotation,) = {type(p.annotation) for p in Settings(Example).parameters()}
    assert annotation is type(Annotated[int, 1])
