"""The drawing."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from secateur.sweep.plot import HEIGHT, WIDTH, Dot, plot

SVG = "{http://www.w3.org/2000/svg}"
DOTS = (Dot(100, 0.9, "dense", "dense"), Dot(80, 0.85, "most", "front"), Dot(50, 0.6, "half", "behind"), Dot(40, 0.7, "least", "front"))


def drawn(*dots: Dot, title: str = "Net") -> ElementTree.Element:
    return ElementTree.fromstring(plot(dots, title=title, across="MACs that remain (%)", up="accuracy"))


def texts(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def place(root: ElementTree.Element, label: str) -> tuple[float, float]:
    [found] = [text for text in root.iter(f"{SVG}text") if text.text == label]
    return float(found.attrib["x"]), float(found.attrib["y"])


def test_more_is_to_the_right_and_better_is_above() -> None:
    root = drawn(*DOTS)
    across, up = zip(*(place(root, label) for label in ("least", "half", "most", "dense")), strict=True)
    assert sorted(across) == list(across)
    assert up[1] > up[0] > up[2] > up[3]
    assert all(0 < x < WIDTH for x in across)
    assert all(0 < y < HEIGHT for y in up)


def test_the_front_is_joined_and_the_dense_model_is_marked() -> None:
    root = drawn(*DOTS)
    [line] = root.iter(f"{SVG}polyline")
    circles = {(c.attrib["cx"], c.attrib["cy"]) for c in root.iter(f"{SVG}circle") if c.attrib.get("class") == "front"}
    assert {tuple(pair.split(",")) for pair in line.attrib["points"].split()} == circles
    assert len(circles) == 2
    assert len([r for r in root.iter(f"{SVG}rect") if r.attrib.get("class") == "dense"]) == 1
    assert {"MACs that remain (%)", "accuracy", "on the Pareto front", "behind it"} <= set(texts(root))


def test_ticks_are_round_and_in_their_places() -> None:
    root = drawn(*DOTS)
    assert {"40", "60", "80", "100"} <= set(texts(root))
    lower, upper = place(root, "40"), place(root, "100")
    assert upper[0] - lower[0] == pytest.approx(place(root, "dense")[0] - place(root, "least")[0], abs=0.2)


def test_names_are_escaped() -> None:
    assert "a <b> & c" in texts(drawn(*DOTS, title="a <b> & c"))


def test_one_place_for_all_is_drawn() -> None:
    assert place(drawn(Dot(100, 0.0, "dense", "dense")), "dense")[0] > 0


def test_what_has_no_place_is_named() -> None:
    root = drawn(*DOTS, Dot(30, math.nan, "0.3", "behind"))
    assert "Net (not drawn: 0.3: nan)" in texts(root)
    assert "nan" not in "".join(c.attrib["cy"] for c in root.iter(f"{SVG}circle"))


def test_it_needs_nothing_else() -> None:
    root = drawn(*DOTS)
    assert not {element.tag.removeprefix(SVG) for element in root.iter()} - {
        "svg",
        "title",
        "rect",
        "text",
        "line",
        "g",
        "polyline",
        "circle",
    }
    assert not [key for element in root.iter() for key in element.attrib if "href" in key or key.startswith("on")]
