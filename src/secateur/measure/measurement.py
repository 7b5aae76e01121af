"""Size and work of a captured model in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secateur.capture.capture import Capture
from secateur.measure.macs import count_macs
from secateur.measure.memory import distinct, peak_activation_bytes, weight_bytes


@dataclass(frozen=True)
class Measurement:
    """What a model takes: elements and bytes of its weights, multiply-adds and memory of one run on the example inputs."""

    parameters: int
    """Elements of the parameters, tied ones counted once."""
    buffers: int
    """Elements of the buffers."""
    bytes: int
    """Bytes of parameters and buffers."""
    macs: int
    macs_by_layer: Mapping[str, int]
    not_counted: Mapping[str, int]
    """How many calls there are of each operator that does arithmetic which ``macs`` leaves out."""
    peak_activation_bytes: int

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition for each MAC."""
        return 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """The measurement as plain JSON values."""
        return asdict(self)


def measure(capture: Capture) -> Measurement:
    """Measure a captured model; nothing is run."""
    model, count = capture.model, count_macs(capture.graph)
    return Measurement(
        parameters=sum(tensor.numel() for tensor in distinct(model.parameters())),
        buffers=sum(tensor.numel() for tensor in distinct(model.buffers())),
        bytes=weight_bytes(model),
        macs=count.total,
        macs_by_layer=count.by_layer,
        not_counted=count.not_counted,
        peak_activation_bytes=peak_activation_bytes(capture.graph),
    )
