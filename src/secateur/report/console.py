"""The report in short, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.measure import Fidelity
from secateur.report import figures, numbers
from secateur.report.reported import Reported


def console_report(result: Reported) -> RenderableType:
    """Before and after, the proof, and the notes, to be printed by rich."""
    factors = [_factors(result)] if result.factorized else []
    return Group(_table(result), *factors, *_lines(result))


def _table(result: Reported) -> Table:
    cut = sum(bar.state == "cut" for bar in figures.bars(result))
    title = f"{figures.model_name(result)} ({result.kind}): {cut} of {len(result.layers)} layers cut"
    title += f", {len(result.factorized)} factorized" if result.factorized else ""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for name in ("dense", "compressed", "change"):
        table.add_column(name, justify="right")
    for figure in figures.figures(result):
        table.add_row(figure.name, figure.before_text, figure.after_text, figure.change)
    return table


def _factors(result: Reported) -> Table:
    table = Table(title="Factorized layers", title_justify="left")
    for name in ("layer", "method", "rank", "MACs dense", "factors", "error of the weight", "of the outputs"):
        table.add_column(name, justify="left" if name in ("layer", "method") else "right", overflow="fold")
    for row in figures.factorized(result):
        rank, errors = numbers.rank(row.layer.rank), map(numbers.share_or_none, (row.layer.relative_error, row.layer.output_error))
        table.add_row(Text(row.layer.layer), row.layer.method, rank, numbers.short(row.macs_before), numbers.short(row.macs_after), *errors)
    return table


def _lines(result: Reported) -> Iterator[Text]:
    """Text objects, so that brackets in names of layers aren't read as markup."""
    proof = result.proof
    verdict = f"{'proven' if proof.holds else 'NOT'} equal to {proof.reference}"
    errors = f"error {numbers.small(proof.error)}, tolerance {numbers.small(proof.tolerance)}"
    yield Text(f"{verdict}: {errors}, {len(proof.trials)} trials, {proof.dtype}", style="green" if proof.holds else "bold red")
    if "dense" in result.latency:
        yield Text(f"latency: {figures.conditions(result.latency['dense'])}")
    if result.fidelity is not None:
        yield Text(_agreement(result.fidelity))
    yield from (Text(f"{name}: {numbers.plain(value)}") for name, value in result.metrics.items())
    yield from (Text(f"no rule for {operator} (node {node}); its channels stay whole") for node, operator in result.layers.unknown.items())
    yield from (Text(f"note: {note}", style="yellow") for note in figures.all_notes(result))


def _agreement(fidelity: Fidelity) -> str:
    parts = [f"relative error {numbers.plain(fidelity.relative_l2)}", f"cosine {numbers.plain(fidelity.cosine)}"]
    parts += [] if fidelity.top1 is None else [f"same top-1 {numbers.percent(fidelity.top1)}"]
    return f"fidelity to the dense model: {', '.join(parts)}"
