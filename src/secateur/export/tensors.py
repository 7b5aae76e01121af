"""Tensors in safetensors files: of a model every parameter and buffer, tied ones once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.capture.leaves import Leaves
from secateur.errors import FileError


def write_weights(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers (those too that a state_dict leaves out); the metadata lists the other names of tied ones."""
    leaves = Leaves.of(model)
    aliases = {alias: first for first, names in leaves.tied.items() for alias in names if alias != first}
    write_tensors(leaves.tensors, path, {"format": "pt", "aliases": json.dumps(aliases)})


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a file by its first name, and the first name by each other name."""
    tensors, metadata = read_tensors(path)
    try:
        aliases = json.loads(metadata.get("aliases", "{}"))
        return tensors, {str(alias): str(first) for alias, first in aliases.items() if first in tensors}
    except (ValueError, AttributeError) as error:
        raise FileError(f"{path} is damaged: its list of tied names cannot be read ({error}). Save the model again.") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors by name."""
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors would let nobody else read the file
        save_file({name: _own_copy(tensor) for name, tensor in tensors.items()}, path, metadata=dict(metadata))
        _put_in_order(path)
        path.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise FileError(f"Cannot write {path.name}: {error}.") from error


def _put_in_order(path: Path) -> None:
    """Sort the metadata in place, which safetensors writes in any order, so that the same tensors make the same bytes."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file, or :class:`FileError` if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise FileError(f"There is no file {path}.") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise FileError(f"{path} is damaged or no safetensors file: {error}. Save the model again, or copy the file again.") from error


def _own_copy(tensor: Tensor) -> Tensor:
    """The same values in memory that no other tensor shares."""
    own = tensor.detach().cpu().contiguous()
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone(memory_format=torch.contiguous_format)
