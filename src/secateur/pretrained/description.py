"""What a config and weights of its class must be to stand for a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Factors = Mapping[str, Mapping[int, Tensor]]
"""What the positions along dimensions of a tensor are multiplied by."""


@dataclass(frozen=True, eq=False)
class Description:
    """A config from which a class builds a smaller model, and the factors that its weights take up."""

    model_class: type[nn.Module]
    config: Any
    numbers: Mapping[str, tuple[int, int]]
    """What stood in the config and what stands there now, by its key."""
    factors: Factors
    """Of an attention whose class derives its scale from the width of a head: what keeps the scale as it was."""

    def __str__(self) -> str:
        return ", ".join(f"{key} {old} -> {new}" for key, (old, new) in self.numbers.items()) or "no other numbers"

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the class, from those of the smaller model."""
        out = dict(state)
        for name, by_dim in self.factors.items():
            for dim, values in by_dim.items():
                shape = [-1 if d == dim else 1 for d in range(out[name].ndim)]
                out[name] = out[name] * values.to(out[name]).reshape(shape)
        return out
