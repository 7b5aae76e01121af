"""What may remain of a dense model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from secateur.errors import SelectionError

Quantity = Literal["macs", "parameters", "latency"]


@dataclass(frozen=True, repr=False)
class Target:
    """What may remain, as a fraction of the dense model: of its MACs, of its parameters, or of its latency.

    MACs and parameters are counted. Latency is predicted from the times of single operators at several widths, which are kept on disk for
    each machine, and then measured: what is predicted to lie within the target is built and timed in turns with the dense model, on the
    example inputs, on the model's device and with the threads that torch uses, and the prediction corrected until the target is met.

    Example:
        >>> Target(macs=0.5)
        Target(macs=0.5)
    """

    macs: float | None = None
    parameters: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        if len(self._given) != 1 or not 0 < next(iter(self._given.values())) < 1:
            raise SelectionError(
                f"A target names one of macs, parameters and latency, as a fraction between 0 and 1 that may remain, not {self!r}."
            )

    @property
    def fraction(self) -> float:
        """The fraction that may remain."""
        return next(iter(self._given.values()))

    @property
    def quantity(self) -> Quantity:
        """What is to become smaller."""
        names: dict[str, Quantity] = {"macs": "macs", "parameters": "parameters", "latency": "latency"}
        return names[next(iter(self._given))]

    @property
    def _given(self) -> dict[str, float]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def __repr__(self) -> str:
        return f"Target({', '.join(f'{name}={value:g}' for name, value in self._given.items())})"
