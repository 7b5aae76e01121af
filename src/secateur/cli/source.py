"""The model and its example inputs as a command names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn
from torch.export import ExportedProgram

from secateur.capture import load_inputs, load_model, parse_input
from secateur.cli.bundles import argument, option
from secateur.cli.default_inputs import default_inputs
from secateur.cli.progress import working
from secateur.errors import FileError
from secateur.export import Directory
from secateur.plan import Plan
from secateur.study import Study, study


@dataclass(frozen=True)
class Inputs:
    """Model and inputs."""

    weights: Path | None = None
    """A state dict for the model: .safetensors, or a .pt that holds tensors alone."""
    trust_pickle: bool = False
    """Open a pickled model, which runs code of whoever wrote it."""
    input: tuple[str, ...] = field(default=(), metadata=option("--input", metavar="[NAME=]SHAPE[:DTYPE[<BOUND]]"))
    """A random example input such as 1x3x224x224, 1x16:int64<30000 or mask=1x16:bool; one option for each input, in order."""
    inputs: Path | None = field(default=None, metadata=option(metavar="FILE.npz"))
    """Real example inputs: arrays by the names of forward's arguments, or in their order."""
    seed: int = 0
    """Starts everything that is random: weights that are not loaded, example inputs, a random criterion, the proof."""

    def opened(self, spec: str, inputs: Any = None) -> Opened:
        """The model that ``spec`` names, with its example inputs unless they are known."""
        given = self._inputs() if inputs is None else inputs
        torch.manual_seed(self.seed)
        with working(f"Building {spec}"):
            model = load_model(spec, weights=self.weights, trust_pickle=self.trust_pickle, inputs=given)
        if isinstance(model, nn.Module):
            model.eval()
        return Opened(model, default_inputs(spec, model, seed=self.seed) if given is None else given, self._told(spec))

    def _inputs(self) -> Any:
        """The inputs that the options give, if they do."""
        if self.input and self.inputs:
            raise typer.BadParameter("Give --input or --inputs, not both.")
        if self.inputs:
            return load_inputs(self.inputs)
        if not self.input:
            return None
        args: list[Tensor] = []
        kwargs: dict[str, Tensor] = {}
        for number, text in enumerate(self.input):
            name, named, shape = text.rpartition("=")
            value = parse_input(shape, seed=self.seed + number)
            if named:
                kwargs[name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def _told(self, spec: str) -> dict[str, Any]:
        told = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items() if k != "trust_pickle"}
        return {"model": spec, **{k: v for k, v in told.items() if v not in (None, ())}}


@dataclass(frozen=True, kw_only=True)
class Source(Inputs):
    """Model and inputs."""

    model: str = field(metadata=argument("MODEL"))
    """A .pt2 or .onnx file, torchvision:NAME, timm:NAME, hf:CONFIG_OR_PATH, or package.module:factory."""

    def open(self) -> Opened:
        """The model with its example inputs."""
        return self.opened(self.model)


@dataclass(frozen=True, kw_only=True)
class Remembered(Inputs):
    """Model and inputs."""

    directory: Path = field(metadata=argument("DIRECTORY"))
    """What prune, apply or compress wrote."""
    model: str = field(default="", metadata=argument("[MODEL]"))
    """The dense model; by default the one that the directory was made from."""

    def open(self, saved: Directory) -> Opened:
        """The dense model, with the directory's example inputs unless others are given."""
        told = saved.plan.settings.get("source", {})
        if not (self.model or told):
            raise FileError(f"{self.directory} does not say what model it was made from. Give MODEL, and --weights where it needs them.")
        weights = self.weights or (Path(told["weights"]) if "weights" in told and not self.model else None)
        known = replace(self, weights=weights, seed=self.seed or told.get("seed", 0))
        inputs = None if self.input or self.inputs else saved.examples()
        return known.opened(self.model or told["model"], inputs)


@dataclass(frozen=True)
class Opened:
    """A model with example inputs, and how they were named."""

    model: nn.Module | ExportedProgram
    inputs: Any
    told: Mapping[str, Any]

    def study(self) -> Study:
        """The model's channels."""
        with working("Capturing the model and finding its channels"):
            return study(self.model, self.inputs)

    def remembered(self, plan: Plan) -> Plan:
        """The plan with a note of the model that it was made for."""
        return replace(plan, settings={**plan.settings, "source": dict(self.told)})
