"""A report that was saved, as the figures that a report is printed from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import fx, nn

from secateur.errors import FileError
from secateur.layers import Layer, Layers
from secateur.measure import Agreement, Fidelity, Latency, Measurement
from secateur.plan import Plan
from secateur.rewrite import FactorizedLayer, Proof, Trial


@dataclass(frozen=True, eq=False)
class SavedReport:
    """What a report reads of a result, without its weights."""

    model: nn.Module
    kind: str
    plan: Plan
    proof: Proof
    before: Measurement
    after: Measurement
    layers: Layers
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]
    factorized: tuple[FactorizedLayer, ...]
    notes: tuple[str, ...]
    latency: Mapping[str, Latency]
    fidelity: Fidelity | None
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SavedReport:
        """The report that ``report.json`` holds."""
        try:
            return cls(
                model=_named(content["model"], content["kind"]),
                kind=content["kind"],
                plan=Plan.from_json(json.dumps(content["plan"])),
                proof=_proof(content["proof"]),
                before=Measurement(**content["before"]),
                after=Measurement(**content["after"]),
                layers=_layers(content),
                args=(),
                kwargs={},
                attributes=content["attributes"],
                factorized=tuple(_factorized(row) for row in content["factorized"]),
                notes=tuple(content["notes"]),
                latency={name: Latency(**timed) for name, timed in content["latency"].items()},
                fidelity=_fidelity(content["fidelity"]),
                metrics=content["metrics"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"The report is damaged, or of another version: {type(error).__name__}: {error}.") from error


def report_content(directory: Path) -> dict[str, Any]:
    """What ``report.json`` in a directory holds."""
    file = directory / "report.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"Cannot read the report {file}: {error}.") from error
    if not isinstance(content, dict):
        raise FileError(f"The report {file} is damaged: it is no object.")
    return content


def _named(name: str, kind: str) -> nn.Module:
    """Something that is called as the model was, since reports print the name of its class."""
    if kind == "graph":
        return fx.GraphModule(nn.Module(), fx.Graph())
    named: nn.Module = type(name, (nn.Module,), {})()
    return named


def _own(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values that are fields of a class."""
    return {f.name: given[f.name] for f in fields(cls) if f.name in given}


def _proof(given: Mapping[str, Any]) -> Proof:
    trials = tuple(Trial(trial["inputs"], float(trial["error"]), float(trial["sensitivity"])) for trial in given["trials"])
    return Proof(**{**_own(Proof, given), "error": float(given["error"]), "trials": trials, "notes": tuple(given["notes"])})


def _factorized(given: Mapping[str, Any]) -> FactorizedLayer:
    return FactorizedLayer(**{**_own(FactorizedLayer, given), "rank": tuple(given["rank"])})


def _layers(content: Mapping[str, Any]) -> Layers:
    rows = tuple(Layer(**{**_own(Layer, row), "members": tuple(row["members"])}) for row in content["layers"])
    return Layers(**{**_own(Layers, content), "rows": rows, "unknown": content["without_rule"]})


def _fidelity(given: Mapping[str, Any] | None) -> Fidelity | None:
    if given is None:
        return None
    outputs = {name: Agreement(**_own(Agreement, one)) for name, one in given["outputs"].items()}
    return Fidelity(**{**_own(Fidelity, given), "outputs": outputs, "ignored": tuple(given["ignored"])})
