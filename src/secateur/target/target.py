"""What may remain of a dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from secateur.errors import SelectionError

Quantity = Literal["macs", "parameters", "bytes", "latency"]
Runtime = Literal["torch", "onnx"]
"""What runs a model: torch, operator by operator, or ONNX Runtime on the CPU."""


@dataclass(frozen=True, repr=False)
class Target:
    """What may remain, as a fraction of the dense model: of its MACs, its parameters, the bytes of its weights, or its latency.

    MACs, parameters and bytes (of parameters and buffers, as they are stored) are counted. Latency is predicted from the times of single
    operators at several widths, which are kept on disk for each machine, and then measured: what is predicted to lie within the target is
    built and timed in turns with the dense model, on the example inputs, on the model's device and with the threads that torch uses, and
    the prediction corrected until the target is met. With ``runtime="onnx"`` operators and models are exported and timed in ONNX Runtime
    on the CPU (extra ``onnx``).

    Example:
        >>> Target(macs=0.5)
        Target(macs=0.5)
        >>> Target(latency=0.5, runtime="onnx")
        Target(latency=0.5, runtime='onnx')
    """

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None
    runtime: Runtime = "torch"
    """What runs the model that a latency is of."""
    bytes: float | None = None

    def __post_init__(self) -> None:
        if len(self._given) != 1 or not 0 < next(iter(self._given.values())) < 1:
            raise SelectionError(
                f"A target names one of macs, parameters, bytes and latency, as a fraction between 0 and 1 that may remain, not {self!r}."
            )
        if self.runtime not in get_args(Runtime):
            raise SelectionError(f"runtime is {self.runtime!r}; it must be one of {', '.join(get_args(Runtime))}.")
        if self.runtime != "torch" and self.latency is None:
            raise SelectionError(f"{self!r}: the runtime matters for a latency alone.")

    @property
    def fraction(self) -> float:
        """The fraction that may remain."""
        return next(iter(self._given.values()))

    @property
    def quantity(self) -> Quantity:
        """What is to become smaller."""
        found: Quantity = next(iter(self._given))
        return found

    @property
    def _given(self) -> dict[Quantity, float]:
        values = {name: getattr(self, name) for name in get_args(Quantity)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def __repr__(self) -> str:
        said = [f"{name}={value:g}" for name, value in self._given.items()]
        return f"Target({', '.join([*said, *([] if self.runtime == 'torch' else [f'runtime={self.runtime!r}'])])})"
