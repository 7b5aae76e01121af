"""The terminal gets the same figures in short."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from rich.console import Console

from report.page import Page
from report.seen import Seen
from secateur.report import console_report, html_report, json_report, numbers
from secateur.rewrite import FactorizedLayer


def printed(result: Seen) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(console_report(result))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if name in line)
    return [cell.strip() for cell in line.strip("│ ").split("│")][1:]


def test_the_table_sets_dense_beside_compressed(result: Seen) -> None:
    text = printed(result)
    assert row(text, "Parameters") == ["1.82 k", "1.18 k", "−35.0\u00a0%"]
    assert row(text, "Latency") == ["4.25 ms", "2.12 ms", "−50.0\u00a0%"]
    assert "SideWay (module): 1 of 4 layers cut" in text


def test_a_predicted_latency_stands_above_the_measured_one(result: Seen) -> None:
    latency = {"predicted_ms": {"dense": 8.0, "compressed": 5.0}}
    planned = replace(result, plan=replace(result.plan, settings={**result.plan.settings, "latency": latency}))
    text = printed(planned)
    assert row(text, "Latency, predicted") == ["8.00 ms", "5.00 ms", "−37.5\u00a0%"]
    assert text.index("Latency, predicted") < text.index("2.12 ms")
    assert "5.00 ms was 8.00 ms" in Page(html_report(planned)).text
    assert "Latency, predicted" not in printed(result)


def test_proof_fidelity_metrics_and_notes_follow(result: Seen) -> None:
    text = printed(result)
    assert f"proven equal to the masked dense model: error {result.proof.error:.2g}, tolerance 1e-09, 2 trials, float64" in text
    assert "fidelity to the dense model: relative error" in text
    assert "accuracy before: 0.8125" in text
    assert "note: rounded up to keep 10" in text
    assert "no rule for secateur_tests.mixed.default (node mixed_default)" in text


def test_a_proof_that_fails_is_said_to_fail(result: Seen) -> None:
    assert "NOT equal" in printed(replace(result, proof=replace(result.proof, error=1.0)))


def test_factorized_layers_have_rows_of_their_own(result: Seen) -> None:
    assert "Factorized" not in printed(result)
    first, second = "main", "head"
    assert {first, second} <= result.before.macs_by_layer.keys()
    after = {**result.after.macs_by_layer, f"{first}.core": 1500, f"{first}.expand": 500}
    del after[first]
    rows = (
        FactorizedLayer(first, "tucker", (2, 3), "inputs", 0.25, 0.125, 300, 200),
        FactorizedLayer(second, "svd", (4,), "weights", 0.5, None, 9, 8),
    )
    text = printed(replace(result, factorized=rows, after=replace(result.after, macs_by_layer=after)))
    dense = numbers.short(result.before.macs_by_layer[first])
    assert row(text, f"│ {first} ") == ["tucker", "2 x 3", dense, "2.00 k", "25.0 %", "12.5 %"]
    assert row(text, f"│ {second} ")[-1] == "50.0 %"
    assert "2 factorized" in text
    page = Page(html_report(replace(result, factorized=rows))).text
    assert "Factorized layers" in page
    assert f"{first} tucker 2 x 3 inputs 300 200" in page
    told = json.loads(json_report(replace(result, factorized=rows)))["factorized"]
    assert told[0]["output_error"] == 0.125
    assert told[0]["macs_before"] == result.before.macs_by_layer[first]


def test_brackets_are_no_markup(result: Seen) -> None:
    text = printed(replace(result, notes=("[bold]blocks[0][/bold] [/nothing]",), metrics={"[red]loss": 1.0}))
    assert "note: [bold]blocks[0][/bold] [/nothing]" in text
    assert "[red]loss: 1" in text
