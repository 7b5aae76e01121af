"""What comes out: the smaller model, its plan, its proof, and what it takes beside the dense one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from secateur.capture.onnx import FileNames
from secateur.errors import RewriteError
from secateur.export import save_directory
from secateur.export.onnx import PortNames
from secateur.layers import Layers
from secateur.measure import Fidelity, Latency, Measurement
from secateur.plan import Plan
from secateur.pretrained import Description, save_pretrained
from secateur.recover import Recovered
from secateur.report import html_report, json_report
from secateur.rewrite import FactorizedLayer, Proof

UNEVEN = "its plan was made without Options(uniform=True)"


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model that has been proven, with everything that a report tells."""

    model: nn.Module
    """The smaller model: the user's own class, or a graph module of ordinary layers."""
    kind: Literal["module", "graph"]
    plan: Plan
    proof: Proof
    before: Measurement
    after: Measurement
    layers: Layers
    """The layers of the dense model: what could be cut, and why the rest could not."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...] = ()
    """Of each run of edits of one kind the kind of model that came out, and the attributes of the class that follow its sizes."""
    factorized: tuple[FactorizedLayer, ...] = ()
    """What became of each layer that was factorized."""
    notes: tuple[str, ...] = ()
    recovered: tuple[str, ...] = ()
    """How tensors got new values after their proof; nothing where all are as they were proven."""
    latency: Mapping[str, Latency] = field(default_factory=dict)
    """``dense`` and ``compressed``, where they were timed."""
    fidelity: Fidelity | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures of the task, by name (``accuracy before`` and the like), where they were taken."""
    pretrained: Description | str = UNEVEN
    """The config that describes the model, or why there is none."""
    file_names: FileNames | None = None
    """What the ONNX file that the dense model was read from calls its inputs and outputs."""

    @property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """Attributes of the user's class that follow the new sizes, by module path."""
        paths = {name for name, _ in self.model.named_modules(remove_duplicate=False)}
        return {path: values for stage in self.stages for path, values in stage["attributes"].items() if path in paths}

    def taken_from(self, done: Recovered) -> Result:
        """The result with what a recovery did to its model in its notes."""
        methods = (done.method,) if done.changes else ()
        return replace(self, notes=(*self.notes, *done.notes), recovered=(*self.recovered, *methods))

    def save(self, path: str | os.PathLike[str], *, force: bool = False, onnx: bool | None = None, command: str | None = None) -> Path:
        """Write the model, its plan and its report into a directory that needs no code of ours to be used.

        Of files that the model does not allow, ``left_out`` in ``plan.json`` says why they are not there.

        Args:
            path: the directory; an existing one is refused unless ``force``.
            onnx: write ``model.onnx`` too; by default where the extra ``onnx`` is installed.
            command: how this came about, for the report.
        """
        reports = {"report.html": html_report(self, command=command), "report.json": json_report(self, command=command)}
        return save_directory(self, Path(path), reports=reports, force=force, onnx=onnx, names=self._port_names())

    def save_pretrained(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write ``config.json`` and weights into a new directory, from which the model's own class loads them, without Secateur.

        For plans that keep the same widths in all layers (``Options(uniform=True)``) of a model whose config sets them. What is
        written is loaded once and compared. ``force`` replaces what an earlier save wrote.

        Raises :class:`RewriteError` where no config describes the model.

        Example::

            plan = sc.study(model, inputs).plan(ratio=0.5, options=sc.Options(uniform=True))
            sc.apply(model, plan, inputs).save_pretrained("small")
            again = type(model).from_pretrained("small")
        """
        if isinstance(self.pretrained, str):
            raise RewriteError(f"No config describes this model: {self.pretrained}. Use save().")
        return save_pretrained(self.pretrained, self.model, path, (self.args, dict(self.kwargs)), force=force)

    def _port_names(self) -> PortNames | None:
        names = self.file_names
        return None if names is None else PortNames(names.in_order(self.args, self.kwargs), names.outputs)

    def __str__(self) -> str:
        parameters = (
            f"parameters {self.before.parameters:,} -> {self.after.parameters:,} ({self.after.parameters / self.before.parameters:.1%})"
        )
        macs = f"MACs {self.before.macs:,} -> {self.after.macs:,} ({self.after.macs / max(self.before.macs, 1):.1%})"
        return f"{parameters}; {macs}; proof error {self.proof.error:.1e}; {self.kind}"
