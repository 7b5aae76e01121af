"""The state of a run in one file of tensors and text, without pickle, that is there whole or as it was before."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import FileError
from secateur.export.tensors import read_tensors, write_tensors

FILE = "checkpoint.safetensors"
FORMAT = "secateur-checkpoint/1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run needs to go on as if it had not been stopped."""

    told: Mapping[str, Any]
    """Plain values: where the run is, and what it has recorded."""
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Tensors by the part that they belong to (``model``, ``average``, ``best``) and by name."""
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    """What the optimizer's ``state_dict`` returned."""

    def write(self, folder: Path) -> Path:
        """Write the file aside, then move it into place."""
        tensors = {f"{part}/{name}": tensor for part, state in self.states.items() for name, tensor in state.items()}
        numbers = {}
        for index, entry in self.optimizer.get("state", {}).items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value
                else:
                    numbers[f"{index}/{key}"] = value
        told = json.dumps({"format": FORMAT, "told": self.told, "optimizer": numbers})
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{FILE}.{secrets.token_hex(6)}"
        try:
            write_tensors(tensors, fresh, {"secateur": told})
            os.replace(fresh, folder / FILE)
        finally:
            fresh.unlink(missing_ok=True)
        return folder / FILE

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Read the file back; :class:`FileError` if it is missing or damaged."""
        path = folder / FILE
        tensors, metadata = read_tensors(path)
        try:
            whole = json.loads(metadata["secateur"])
            if whole["format"] != FORMAT:
                raise ValueError(f"its format is {whole['format']!r}; this version reads {FORMAT!r}")
            states: dict[str, dict[str, Tensor]] = {}
            optimizer: dict[int, dict[str, Any]] = {}
            for place, value in [*tensors.items(), *((f"optimizer/{key}", number) for key, number in whole["optimizer"].items())]:
                part, _, name = place.partition("/")
                if part == "optimizer":
                    index, _, key = name.partition("/")
                    optimizer.setdefault(int(index), {})[key] = value
                else:
                    states.setdefault(part, {})[name] = value
            return cls(whole["told"], states, {"state": optimizer})
        except (KeyError, ValueError, TypeError) as error:
            raise FileError(f"{path} is damaged: {type(error).__name__}: {error}. Start anew without resuming.") from error

    @torch.no_grad()
    def into_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer, made for the same parameters, the state that was saved."""
        optimizer.load_state_dict({"state": dict(self.optimizer["state"]), "param_groups": optimizer.state_dict()["param_groups"]})
