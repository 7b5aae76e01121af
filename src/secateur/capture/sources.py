"""Models and inputs as the command line names them."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from secateur.capture.leaves import Leaves
from secateur.capture.onnx import load_onnx
from secateur.errors import FileError, MissingExtraError, ModelError, UsageError

FORMS = "a .pt2 or .onnx file, torchvision:NAME, timm:NAME, hf:CONFIG_OR_PATH or package.module:factory"


def load_model(spec: str, *, weights: Path | None = None, trust_pickle: bool = False, inputs: Any = None) -> nn.Module | ExportedProgram:
    """Return the model that ``spec`` names, with ``weights`` (``.safetensors``, or a state_dict as ``.pt`` or ``.pth``) loaded.

    ``spec`` is a ``.pt2`` or ``.onnx`` file, ``torchvision:NAME``, ``timm:NAME``, ``hf:CONFIG_OR_PATH`` or ``package.module:factory``;
    a pickled ``.pt`` runs code of whoever wrote it and is opened with ``trust_pickle`` only. An ONNX file is compared with ONNX
    Runtime on ``inputs``, or on random ones.
    """
    suffix = Path(spec).suffix.lower()
    if suffix in _FILES:
        if weights is not None and suffix in (".pt2", ".onnx"):
            raise UsageError(f"{spec} holds its own weights; --weights belongs to a model that is built from code.")
        model = _FILES[suffix](_existing(Path(spec)), trust_pickle, inputs)
    else:
        model = _built(spec)
    if weights is not None and isinstance(model, nn.Module):
        load_weights(model, weights, trust_pickle=trust_pickle)
    return model


def load_weights(model: nn.Module, path: Path, *, trust_pickle: bool = False) -> None:
    """Load a state_dict into a model, or raise one FileError that lists all that does not fit."""
    wanted = model.state_dict()
    given = _with_tied(_read_state(_existing(path), trust_pickle), model)
    lacking = [f"missing: {name}" for name in wanted.keys() - given.keys()]
    needless = [f"unknown: {name}" for name in given.keys() - wanted.keys()]
    unlike = [
        f"shape of {name}: {list(given[name].shape)} in the file, {list(wanted[name].shape)} in the model"
        for name in wanted.keys() & given.keys()
        if given[name].shape != wanted[name].shape
    ]
    if lacking or needless or unlike:
        problems = [*sorted(lacking), *sorted(needless), *sorted(unlike)]
        raise FileError("\n  ".join([f"{path} does not fit {type(model).__name__}:", *problems]))
    model.load_state_dict(given)


def parse_input(text: str, *, seed: int = 0) -> Tensor:
    """Return a random example input of the shape, dtype and upper bound that ``text`` tells.

    >>> parse_input("1x3x8x8").shape
    torch.Size([1, 3, 8, 8])
    >>> int(parse_input("1x16:int64<1000").max()) < 1000
    True
    """
    sizes, _, rest = text.partition(":")
    dtype_name, _, bound = rest.partition("<")
    dtype = getattr(torch, dtype_name or "float32", None)
    try:
        shape = [int(size) for size in sizes.split("x")]
        limit = int(bound) if bound else 10
    except ValueError:
        shape, limit = [], 0
    if not isinstance(dtype, torch.dtype) or not shape or min(shape) < 1 or limit < 1:
        raise UsageError(f"Cannot read the input {text!r}: write sizes and dtype as in 1x3x224x224:float32 or 1x16:int64<1000.")
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else limit, shape, generator=generator).to(dtype)


def load_inputs(path: Path) -> dict[str, Tensor] | tuple[Tensor, ...]:
    """Return the arrays of an ``.npz`` file: by name, or in order where they are called ``arr_0``, ``arr_1``, ... or ``0``, ``1``, ..."""
    try:
        with np.load(_existing(path), allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(np.ascontiguousarray(archive[name])) for name in archive.files}
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is no readable .npz file of numeric arrays: {error}") from error
    positions = [name.removeprefix("arr_") for name in arrays]
    if all(position.isdigit() for position in positions):
        return tuple(arrays[name] for _, name in sorted(zip(map(int, positions), arrays, strict=True)))
    return arrays


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileError(f"There is no file {path}.")
    return path


def _open_exported(path: Path, trust_pickle: bool, inputs: Any) -> ExportedProgram:
    try:
        return torch.export.load(path)
    except Exception as error:
        raise FileError(f"{path} cannot be read as an exported program: {error}") from error


def _open_pickle(path: Path, trust_pickle: bool, inputs: Any) -> nn.Module:
    if not trust_pickle:
        raise UsageError(
            f"{path} is a pickle, which runs code of whoever wrote it. Save the model with torch.export.save as .pt2, "
            "or name a factory and give the state_dict with --weights. If you trust the file: --trust-pickle."
        )
    try:
        model: Any = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise FileError(f"{path} cannot be unpickled: {error}") from error
    if not isinstance(model, nn.Module):
        raise FileError(f"{path} holds a {type(model).__name__}, no model. A state_dict goes to --weights, beside a model built from code.")
    return model


def _open_onnx(path: Path, trust_pickle: bool, inputs: Any) -> nn.Module:
    return load_onnx(path, inputs=inputs)


_FILES: Mapping[str, Callable[[Path, bool, Any], nn.Module | ExportedProgram]] = {
    ".pt2": _open_exported,
    ".pt": _open_pickle,
    ".pth": _open_pickle,
    ".onnx": _open_onnx,
}


def _built(spec: str) -> nn.Module:
    source, colon, name = spec.partition(":")
    if not (source and colon and name):
        raise UsageError(f"Cannot tell what model {spec!r} means: give {FORMS}.")
    build = _HUBS.get(source)
    try:
        model = build(name) if build else _call_factory(source, name)
    except UsageError:
        raise
    except Exception as error:
        raise ModelError(f"Building {spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}, no torch.nn.Module.")
    return model


def _call_factory(module_name: str, name: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for part in name.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"Cannot find {module_name}:{name}: {error}. Give {FORMS}.") from error
    return factory if isinstance(factory, nn.Module) else factory()


def _torchvision(name: str) -> Any:
    models = _package("torchvision", "vision", "A torchvision model").models
    # Detectors and segmenters would otherwise fetch the weights of their backbone.
    takes = inspect.signature(models.get_model_builder(name)).parameters
    return models.get_model(name, weights=None, **({"weights_backbone": None} if "weights_backbone" in takes else {}))


def _timm(name: str) -> Any:
    return _package("timm", "vision", "A timm model").create_model(name, pretrained=False)


def _transformers(name: str) -> Any:
    """Build a model from a saved directory with its weights, or at random from a configuration file."""
    transformers = _package("transformers", "transformers", "A transformers model")
    config = transformers.AutoConfig.from_pretrained(name)
    classes = getattr(config, "architectures", None) or []
    build = getattr(transformers, classes[0], transformers.AutoModel) if classes else transformers.AutoModel
    if Path(name).is_file():
        return build(config) if build is not transformers.AutoModel else build.from_config(config)
    return build.from_pretrained(name)


_HUBS: Mapping[str, Callable[[str], Any]] = {"torchvision": _torchvision, "timm": _timm, "hf": _transformers}


def _package(name: str, extra: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise MissingExtraError(name, extra, purpose) from error
        raise


def _read_state(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    try:
        plain = path.suffix == ".safetensors"
        content: Any = _read_safetensors(path) if plain else torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if trust_pickle:
            raise FileError(f"{path} cannot be unpickled: {error}") from error
        raise FileError(
            f"{path} cannot be read as weights: it is damaged, or a pickle of more than tensors, which runs code of whoever wrote it. "
            "Save the model's state_dict alone. If you trust the file: --trust-pickle."
        ) from error
    except Exception as error:
        raise FileError(f"{path} cannot be read as weights: {error}") from error
    content = content.state_dict() if isinstance(content, nn.Module) else content
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise FileError(f"{path} holds no state_dict, that is, no tensors by name.")
    prefixed = all(str(name).startswith("module.") for name in content)
    return {str(name).removeprefix("module.") if prefixed else str(name): tensor for name, tensor in content.items()}


def _with_tied(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add the names that a file leaves out because another name holds the same tensor."""
    for names in Leaves.of(model).tied.values():
        source = next((name for name in names if name in given), None)
        if source is not None:
            given = {**dict.fromkeys(names, given[source]), **given}
    return given


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
