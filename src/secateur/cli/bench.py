"""The command that times the dense and the smaller model in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table
from rich.text import Text

from secateur.capture import capture
from secateur.cli.command import Answer
from secateur.cli.progress import working
from secateur.cli.results import Timing
from secateur.cli.source import Remembered
from secateur.errors import CaptureError
from secateur.export import load, read_directory
from secateur.export.onnx import PACKAGES, write_onnx_as_open_as_can_be
from secateur.export.pt2 import export_program
from secateur.measure import Latency, Measurement, measure, onnx_latency, slower_than_dense
from secateur.report.numbers import milliseconds, percent, short
from secateur.study import Study

Timed = Mapping[str, Latency]
_FIGURES = (
    ("parameters", "parameters", ""),
    ("macs", "MACs", ""),
    ("bytes", "size of weights", "B"),
    ("peak_activation_bytes", "peak activation memory", "B"),
)


@dataclass(frozen=True)
class Runtimes:
    """Runtimes."""

    eager_only: bool = False
    """Leave ONNX Runtime out."""


def bench(source: Remembered, timing: Timing, runtimes: Runtimes) -> Answer:
    """Time a saved model and its dense one in turns, in PyTorch and in ONNX Runtime, with their size and work.

    Example: secateur bench out
    """
    saved = read_directory(source.directory)
    found = source.open(saved).study()
    small = load(source.directory, found.model)
    args, kwargs = found.capture.args, found.capture.kwargs
    sizes = {"dense": measure(found.capture), "compressed": measure(capture(small, args, kwargs))}
    eager = timing({"dense": found.model, "compressed": small}, args, kwargs)
    exported, note = ({}, "") if runtimes.eager_only else _in_onnx_runtime(found, source.directory / "model.onnx", timing)
    notes = [*([note] if note else []), *slower_than_dense(eager)]
    latency = {"eager": eager, "onnxruntime": exported}
    data = {
        **{name: size.to_json() for name, size in sizes.items()},
        "latency": {runtime: {name: one.to_json() for name, one in timed.items()} for runtime, timed in latency.items()},
        "notes": notes,
    }
    return Answer([_table(sizes, latency), *_conditions(latency), *(Text(f"note: {each}", style="yellow") for each in notes)], data)


def _in_onnx_runtime(found: Study, small: Path, timing: Timing) -> tuple[Timed, str]:
    """Latencies in ONNX Runtime, or why there are none."""
    if missing := next((name for name in PACKAGES if find_spec(name) is None), None):
        return {}, f"not timed in ONNX Runtime: {missing} is not installed (extra onnx)"
    if not small.is_file():
        return {}, f"not timed in ONNX Runtime: there is no {small}"
    args, kwargs = found.capture.args, found.capture.kwargs
    with TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        with working("Exporting the dense model to ONNX"):
            reason = _export(found, dense)
        if reason:
            return {}, f"not timed in ONNX Runtime: the dense model does not export ({reason})"
        with working("Timing both in ONNX Runtime"):
            files = {"dense": dense, "compressed": small}
            return onnx_latency(files, args, kwargs, repeats=timing.repeats, threads=timing.threads), ""


def _export(found: Study, path: Path) -> str | None:
    try:
        return write_onnx_as_open_as_can_be(export_program(found.model, found.capture.args, found.capture.kwargs), path)[0]
    except CaptureError as error:
        return str(error)


def _table(sizes: Mapping[str, Measurement], latency: Mapping[str, Timed]) -> Table:
    table = Table()
    for heading in ("", "dense", "compressed", "remains"):
        table.add_column(heading, justify="right" if heading else "left")
    for field, name, unit in _FIGURES:
        values = [getattr(size, field) for size in sizes.values()]
        table.add_row(name, *(short(value, unit) for value in values), _remains(*values))
    for runtime, timed in latency.items():
        if timed:
            medians = [one.median_ms for one in timed.values()]
            table.add_row(f"latency, {runtime}", *map(milliseconds, medians), _remains(*medians))
            table.add_row("  middle half of the calls", *(f"{one.lower_ms:.3g} to {one.upper_ms:.3g} ms" for one in timed.values()), "")
    return table


def _remains(dense: float, small: float) -> str:
    return percent(small / dense) if dense else ""


def _conditions(latency: Mapping[str, Any]) -> list[Text]:
    return [Text(str(timed["compressed"]), style="dim") for timed in latency.values() if timed]
