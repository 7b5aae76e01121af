"""Example inputs for models that say themselves what they take."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from secateur.capture import parse_input
from secateur.capture.onnx import OnnxModel
from secateur.errors import UsageError

USUAL_SIZE = 224


def default_inputs(spec: str, model: nn.Module | ExportedProgram, *, seed: int = 0) -> Any:
    """The inputs that a model is made for, where that is known; else an error that says what to give."""
    if isinstance(model, ExportedProgram):
        return ()
    if isinstance(model, OnnxModel):
        return _of_file(spec, model, seed)
    source, _, name = spec.partition(":")
    found = _SOURCES[source](name, model) if source in _SOURCES else None
    if found is None:
        raise UsageError(f"There is no default input for {spec}. Give {_wanted(model)}.")
    image = parse_input(found, seed=seed)
    return ([image],) if image.ndim == 3 else image


def _of_file(spec: str, model: OnnxModel, seed: int) -> tuple[Tensor, ...]:
    if any(port.open for port in model.ports):
        options = " ".join(f"--input {port.example()}" for port in model.ports)
        raise UsageError(f"{spec} leaves sizes open: {'; '.join(map(str, model.ports))}. Give them, as in {options}; or --inputs FILE.npz.")
    return model.examples(seed=seed)


def _torchvision(name: str, model: nn.Module) -> str | None:
    """The shape that the published weights are made for: a list of images for detectors, a batch for all others."""
    models = importlib.import_module("torchvision").models
    if name in models.list_models(module=models.detection):
        return f"3x{USUAL_SIZE}x{USUAL_SIZE}"
    if name in models.list_models(module=models.video) or name in models.list_models(module=models.optical_flow):
        return None
    weights = next(iter(models.get_model_weights(name)), None)
    size = getattr(weights.transforms(), "crop_size", [USUAL_SIZE])[0] if weights else USUAL_SIZE
    return f"1x3x{size}x{size}"


def _timm(name: str, model: nn.Module) -> str | None:
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return "x".join(map(str, (1, *size))) if size else None


_SOURCES: Mapping[str, Callable[[str, nn.Module], str | None]] = {"torchvision": _torchvision, "timm": _timm}
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _wanted(model: nn.Module) -> str:
    """What to write, as far as the model's forward tells."""
    if main := getattr(model, "main_input_name", None):
        shape = "1x16:int64<100" if main == "input_ids" else "1x3x224x224"
        return f"the inputs by name, such as --input '{main}={shape}', or --inputs FILE.npz"
    taken = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in taken if p.default is inspect.Parameter.empty and p.kind not in _VARIABLE]
    count = f"one for each of {', '.join(names)}" if len(names) > 1 else f"for {names[0]}" if names else "as forward takes them"
    return f"--input SHAPE, such as --input 1x3x224x224, {count}; or --inputs FILE.npz"
