"""The terminal gets the same figures in short."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from report.seen import Seen
from secateur.report import console_report


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


def test_proof_fidelity_metrics_and_notes_follow(result: Seen) -> None:
    text = printed(result)
    assert f"proven equal to the masked dense model: error {result.proof.error:.2g}, tolerance 1e-09, 2 trials, float64" in text
    assert "fidelity to the dense model: relative error" in text
    assert "accuracy before: 0.8125" in text
    assert "note: rounded up to keep 10" in text
    assert "no rule for aten.fft_fft.default (node fft_fft_default)" in text


def test_a_proof_that_fails_is_said_to_fail(result: Seen) -> None:
    assert "NOT equal" in printed(replace(result, proof=replace(result.proof, error=1.0)))


def test_brackets_are_no_markup(result: Seen) -> None:
    text = printed(replace(result, notes=("[bold]blocks[0][/bold] [/nothing]",), metrics={"[red]loss": 1.0}))
    assert "note: [bold]blocks[0][/bold] [/nothing]" in text
    assert "[red]loss: 1" in text
