"""The page holds every figure, harms nobody, and needs nothing from outside."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from report.page import Page
from report.seen import HOSTILE, Seen
from secateur.plan import Factorize, Plan
from secateur.report import html_report

VOID = {"meta", "br", "input", "rect"}


@pytest.fixture(scope="module")
def page(result: Seen) -> Page:
    return Page(html_report(result, command='secateur prune x --ratio "0.5" <b>'))


def test_the_head_line_sets_before_beside_after(result: Seen, page: Page) -> None:
    for before, after in (
        (result.before.parameters, result.after.parameters),
        (result.before.macs, result.after.macs),
        (result.before.bytes, result.after.bytes),
        (result.before.peak_activation_bytes, result.after.peak_activation_bytes),
    ):
        assert after < before
        assert f"{before:,} → {after:,}" in page.text
        assert f"−{100 * (1 - after / before):.1f}" in page.text
    assert "2.12 ms was 4.25 ms" in page.text
    assert "median of 17 calls after 3 to warm up, torch 2.9, cpu, 1 thread, batch 2, float32" in page.text


def test_the_proof_stands_with_its_tolerance_and_every_trial(result: Seen, page: Page) -> None:
    assert "Proof holds" in page.text
    assert f"largest error {result.proof.error:.2g}, tolerance 1e-09" in page.text
    for trial in result.proof.trials:
        assert f"{trial.inputs} {trial.error:.2g} {trial.sensitivity:.2g}" in page.text


def test_a_proof_that_fails_is_not_called_one_that_holds(result: Seen) -> None:
    text = Page(html_report(replace(result, proof=replace(result.proof, error=math.nan)))).text
    assert "Proof fails" in text
    assert "Proof holds" not in text


def test_task_figures_and_fidelity_stand_in_the_page(result: Seen, page: Page) -> None:
    assert "accuracy before 0.8125" in page.text
    assert "accuracy <b>after</b> 0.7875" in page.text
    assert result.fidelity is not None
    assert result.fidelity.top1 is not None
    assert f"(the only one) {result.fidelity.relative_l2:.5g} {result.fidelity.cosine:.5g} {100 * result.fidelity.top1:.1f} %" in page.text


def test_every_layer_has_a_bar_or_a_reason(result: Seen, page: Page) -> None:
    labels = [value for name, value in page.attributes if name == "aria-label" and "channels" in value]
    removed = {edit.group: len(edit.remove) for edit in result.plan.prunes}
    assert removed == {HOSTILE: 6}
    gone = [removed.get(layer.name, 0) for layer in result.layers]
    assert labels == [f"{layer.channels - g} channels kept, {g} removed" for layer, g in zip(result.layers, gone, strict=True)]
    reasons = [layer.reason for layer in result.layers if layer.reason]
    assert len(reasons) == 2
    assert all(reason in page.text for reason in reasons)


def test_shares_of_parameters_and_macs_stand_beside_each_layer(result: Seen, page: Page) -> None:
    layers = result.layers
    assert f"{layers.prunable_parameters:.1%} of the parameters and {layers.prunable_macs:.1%} of the MACs".replace("%", " %") in page.text
    for layer in layers:
        assert f"{layer.parameter_share:.1%} {layer.macs_share:.1%}".replace("%", " %") in page.text


def test_the_width_of_a_bar_is_the_share_that_stays(result: Seen) -> None:
    both = r'<rect class="removed" width="100"[^>]*>\s*<rect class="kept" width="([\d.]+)"'
    bar = re.search(rf'10 channels kept, 6 removed">\s*{both}', html_report(result))
    assert bar is not None
    assert float(bar[1]) == 62.5


def test_the_states_of_the_layers_are_counted(page: Page) -> None:
    assert "all 4 cut (1) spared by the plan (1) whole (2)" in page.text


def test_operators_without_a_rule_notes_and_uncounted_work_are_listed(result: Seen, page: Page) -> None:
    assert "mixed_default secateur_tests.mixed.default" in page.text
    for note in result.notes:
        assert note in page.text
    assert result.before.not_counted
    for operator, calls in result.before.not_counted.items():
        assert f"{operator} × {calls}" in page.text


def test_norms_over_channels_are_listed_where_the_layers_know_them(result: Seen) -> None:
    layers = replace(result.layers, renormalising={"layer_norm_7": "aten.layer_norm.default"})
    assert "layer_norm_7 aten.layer_norm.default" in Page(html_report(replace(result, layers=layers))).text


def test_the_plan_and_its_settings_stand_in_the_page(result: Seen, page: Page) -> None:
    assert result.plan.fingerprint[:12] in page.text
    assert "criterion L2(fold_bn=False)" in page.text
    for name, macs in result.before.macs_by_layer.items():
        assert f"{name} {macs:,}" in page.text


def test_factorized_layers_stand_in_the_plan(result: Seen) -> None:
    plan = Plan((*result.plan.edits, Factorize("main", "tucker", (4, 3))), result.plan.fingerprint)
    text = Page(html_report(replace(result, plan=plan))).text
    assert "main tucker, rank 4 × 3" in text
    assert "1 layers factorized" in text


def test_provenance_names_command_versions_and_inputs(page: Page) -> None:
    assert 'command secateur prune x --ratio "0.5" <b> date' in page.text
    assert f"torch {torch.__version__} python {platform.python_version()} platform {platform.platform()}" in page.text
    assert "float32 2 × 3 × 8 × 8" in page.text


def test_attributes_of_the_class_are_listed(result: Seen) -> None:
    attributes = {"": {"width": 10}, "main": {"in_channels": 10, "groups": 1}}
    text = Page(html_report(replace(result, attributes=attributes))).text
    assert "(the model) width = 10 main in_channels = 10, groups = 1" in text


def test_hostile_names_are_text(page: Page) -> None:
    assert HOSTILE in page.text
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "b" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_nothing_is_fetched_from_outside(page: Page, result: Seen) -> None:
    html = html_report(result)
    assert "http://" not in html
    assert "https://" not in html
    fetching = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}
    assert not fetching & {name for name, _ in page.attributes}
    assert not {"link", "script", "iframe", "object", "embed"} & set(page.tags)
    assert len(page.styles) == 1
    assert "url(" not in page.styles[0]
    assert "@import" not in page.styles[0]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_tags_are_closed(result: Seen) -> None:
    html = re.sub(r"<style>.*</style>", "", html_report(result), flags=re.DOTALL)
    open_tags: list[str] = []
    for closing, tag in re.findall(r"<(/?)([a-z][a-z0-9]*)", html):
        if closing:
            assert open_tags.pop() == tag
        elif tag not in VOID:
            open_tags.append(tag)
    assert open_tags == []


@pytest.mark.parametrize(
    ("without", "word"),
    [
        ({"latency": {}}, "Latency"),
        ({"fidelity": None}, "Fidelity"),
        ({"metrics": {}}, "Task"),
        ({"fidelity": None, "metrics": {}}, "Quality"),
        ({"notes": ()}, "Notes"),
        ({"attributes": {}}, "Attributes"),
        ({"args": ()}, "float32 2 × 3 × 8 × 8"),
        ({"plan": Plan((), "0" * 64)}, "1 of 4 layers were cut"),
        ({"kind": "graph"}, "keeps its own class"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_there_is_not_is_not_spoken_of(result: Seen, page: Page, without: dict[str, Any], word: str) -> None:
    assert word in page.text
    assert word not in Page(html_report(replace(result, **without))).text


def test_a_model_that_grew_or_does_nothing_is_told_as_it_is(result: Seen) -> None:
    grown = replace(result, before=replace(result.before, macs=0, parameters=100), after=replace(result.after, macs=0, parameters=150))
    text = Page(html_report(grown)).text
    assert "150 was 100 +50.0" in text
    assert "MACs 0 was 0 0 → 0" in text
