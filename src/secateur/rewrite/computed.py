"""Weights that a layer computes from tensors of its own: by torch's parametrizations, and by its older weight norm."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from secateur.capture.duplicate import same_but_rounding, same_values

_CANNOT = (RuntimeError, ValueError, NotImplementedError)
"""What torch raises where a parametrization cannot hold a value."""


def computed_names(module: nn.Module) -> tuple[str, ...]:
    """The names under which a module computes tensors."""
    return (*getattr(module, "parametrizations", ()), *_weight_norms(module))


def is_computed(model: nn.Module, name: str) -> bool:
    """Whether some module of a model computes the tensor of that name."""
    module, last = _owner(model, name)
    return module is not None and last in computed_names(module)


def computed_value(model: nn.Module, name: str) -> Tensor | None:
    """What a module computes under a name, in eval mode, in which nothing changes its state; ``None`` if it computes nothing there."""
    module, last = _owner(model, name)
    return _made(module, last) if module is not None and last in computed_names(module) else None


def store(model: nn.Module, name: str, value: Tensor) -> bool:
    """Give the tensors behind a computed one values of which it comes out as this one; whether it then does, but for rounding."""
    module, last = _owner(model, name)
    if module is None or last not in computed_names(module):
        return False
    try:
        if (norm := _weight_norms(module).get(last)) is not None:
            module.get_parameter(f"{last}_g").data = torch.norm_except_dim(value, 2, norm.dim)
            module.get_parameter(f"{last}_v").data = value.clone()
            setattr(module, last, norm.compute_weight(module))
        else:
            setattr(module, last, value)
        return same_but_rounding(value, _made(module, last))
    except _CANNOT:
        return False


def compute_alike(small: nn.Module, dense: nn.Module, name: str, *, anyway: bool = False) -> bool:
    """Let a layer of a small model compute its weight as the dense model's layer of that name does; whether it does so now.

    It does if that gives the value that the weight, a parameter of the layer, has now, or ``anyway``, for values that are put there
    later. Where the weight is still the dense model's, the very same tensors stand behind it afterwards.
    """
    (layer, last), (model, _) = _owner(small, name), _owner(dense, name)
    if layer is None or model is None or last not in computed_names(model):
        return False
    weight, trial = layer.get_parameter(last), nn.Module()
    trial.register_parameter(last, nn.Parameter(weight.detach().clone()))
    whole = same_values(weight, _made(model, last))
    if not _attach(trial, model, last, values=whole) or not (anyway or same_but_rounding(weight, _made(trial, last))):
        return False
    return _attach(layer, model, last, values=whole)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    path, _, last = name.rpartition(".")
    try:
        return model.get_submodule(path), last
    except AttributeError:
        return None, last


def _weight_norms(module: nn.Module) -> dict[str, WeightNorm]:
    """The hooks of ``torch.nn.utils.weight_norm``, by the name that each computes."""
    return {hook.name: hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm)}


def _made(module: nn.Module, last: str) -> Tensor:
    """The computed tensor, in eval mode."""
    if (norm := _weight_norms(module).get(last)) is not None:
        value: Tensor = norm.compute_weight(module)
        return value.detach()
    steps = module.get_submodule(f"parametrizations.{last}")
    modes = [(each, each.training) for each in steps.modules()]
    try:
        value = steps.eval()()
        return value.detach()
    finally:
        for each, mode in modes:
            each.training = mode


def _attach(layer: nn.Module, model: nn.Module, last: str, *, values: bool) -> bool:
    """Compute a parameter of a layer from now on as another layer does, or with its very ``values``; whether that is possible.

    The layer is in eval mode afterwards, since in training mode a parametrization may change what it keeps.
    """
    layer.eval()
    if (norm := _weight_norms(model).get(last)) is not None:
        weight = layer.get_parameter(last)
        del layer._parameters[last]
        layer.register_parameter(f"{last}_g", nn.Parameter(torch.norm_except_dim(weight.detach(), 2, norm.dim)))
        layer.register_parameter(f"{last}_v", nn.Parameter(weight.detach()))
        setattr(layer, last, norm.compute_weight(layer))
        layer.register_forward_pre_hook(WeightNorm(last, norm.dim))
    else:
        try:
            for step in model.get_submodule(f"parametrizations.{last}").children():
                parametrize.register_parametrization(layer, last, copy.deepcopy(step).eval())
        except _CANNOT:
            return False
    _copy_tensors(model, layer, last, values=values)
    return True


def _copy_tensors(model: nn.Module, layer: nn.Module, last: str, *, values: bool) -> None:
    """Take over which tensors behind a computed one are trained, and their values."""
    own = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in own and name.startswith((f"parametrizations.{last}.", f"{last}_g", f"{last}_v")):
            own[name].requires_grad_(tensor.requires_grad)
            if values:
                own[name].data.copy_(tensor.data)
