"""The report for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from secateur.report import figures
from secateur.report.provenance import provenance
from secateur.report.reported import Reported

FORMAT = "secateur-report/1"


def json_report(result: Reported, *, command: str | None = None) -> str:
    """All figures of a result as JSON text; what is not finite becomes text (``"nan"``, ``"inf"``)."""
    content = {
        "format": FORMAT,
        "model": figures.model_name(result),
        "kind": result.kind,
        "inputs": figures.input_shapes(result),
        "before": result.before.to_json(),
        "after": result.after.to_json(),
        "remains": {figure.name: figure.remains for figure in figures.figures(result)},
        "latency": {name: timed.to_json() for name, timed in result.latency.items()},
        "fidelity": result.fidelity.to_json() if result.fidelity else None,
        "metrics": dict(result.metrics),
        "proof": result.proof.to_json() | {"holds": result.proof.holds},
        **_layers(result),
        "factorized": [
            row.layer.to_json() | {"macs_before": row.macs_before, "macs_after": row.macs_after} for row in figures.factorized(result)
        ],
        "notes": figures.all_notes(result),
        "attributes": result.attributes,
        "plan": json.loads(result.plan.to_json()),
        "provenance": provenance(command),
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _layers(result: Reported) -> dict[str, Any]:
    found = result.layers.to_json()
    counts = [{"kept": bar.kept, "removed": bar.removed, "state": bar.state} for bar in figures.bars(result)]
    rows = [row | count for row, count in zip(found["layers"], counts, strict=True)]
    return found | {"layers": rows, "renormalising": figures.renormalising(result)}


def _plain(value: Any) -> Any:
    """A copy made of JSON values alone; whatever else there is becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
