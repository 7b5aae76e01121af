"""Example inputs in the forms that people write, and whether a model runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture.execution import plain_execution
from secateur.capture.trees import copied
from secateur.capture.untouched import untouched
from secateur.errors import ModelError


def normalise_inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` for inputs given as a tensor, a sequence, a dictionary by name, or a pair of the latter two."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        if not all(isinstance(name, str) for name in inputs):
            raise ModelError(f"A dictionary of example inputs needs the names of forward's arguments as keys, not {list(inputs)!r}.")
        return (), dict(inputs)
    if isinstance(inputs, list | tuple):
        if is_pair(inputs):
            return inputs[0], normalise_inputs(inputs[1])[1]
        return tuple(inputs), {}
    raise ModelError(f"Example inputs are a tensor, a tuple, a dictionary or a pair (tuple, dictionary), not a {type(inputs).__name__}.")


def is_pair(inputs: Any) -> bool:
    """Whether inputs are given as a tuple of positional and a dictionary of keyword inputs."""
    return isinstance(inputs, list | tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], Mapping)


_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def check_model(model: Any) -> None:
    """Raise ModelError unless ``model`` is a module with finished, finite parameters."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model is a {type(model).__name__}; expected a torch.nn.Module, an fx.GraphModule or an ExportedProgram.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("The model is compiled by TorchScript: give the torch.nn.Module that it was made from, or export it to ONNX.")
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTIZED):
            raise ModelError(f"{name!r} is quantized: compress the model with floating-point weights, and quantize what comes out.")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"{name!r} has no shape yet: run the model once on real inputs before giving it to Secateur.")
        if tensor.device.type == "meta":
            raise ModelError(f"{name!r} lies on the meta device and has no values: load the weights first.")
        if tensor.is_floating_point() and _holds_nan(tensor):
            raise ModelError(f"{name!r} holds NaN: these weights cannot be scored, and nothing can be proven about them.")


def _holds_nan(tensor: Tensor) -> bool:
    """Whether a tensor holds NaN; its sum, which is cheap, is NaN then and hardly ever otherwise."""
    with torch.no_grad():
        return bool(torch.isnan(tensor.sum())) and bool(torch.isnan(tensor).any())


def check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ModelError with the model's own error if the model does not run on its example inputs."""
    flat, spec = pytree.tree_flatten((args, dict(kwargs)))
    try:
        with untouched(model, flat), plain_execution(model, flat):
            run_args, run_kwargs = pytree.tree_unflatten(copied(flat), spec)
            model(*run_args, **run_kwargs)
    except Exception as error:
        given = describe_inputs(args, kwargs)
        raise ModelError(f"{type(model).__name__} does not run on the example inputs {given}: {type(error).__name__}: {error}") from error


def describe_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the inputs as a call would show them, tensors by shape and dtype."""
    named = [f"{name}={_describe(value)}" for name, value in kwargs.items()]
    return f"({', '.join([*map(_describe, args), *named])})"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_describe(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_describe, value)) + ")"
    return repr(value) if isinstance(value, int | float | str | bool | None) else type(value).__name__
