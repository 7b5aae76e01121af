"""Whether a layer whose class has a forward of its own computes what its settings say, as one run of the model shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.trees import copied
from secateur.capture.untouched import untouched
from secateur.decompose.calls import Call
from secateur.decompose.linear_maps import acts_as_linear_map
from secateur.decompose.spec import LayerSpec, Refusal, base_class, read_spec


@dataclass
class Seen:
    """What one run showed of a layer."""

    example: Tensor
    calls: list[Call] = field(default_factory=list)
    """Its calls, for a layer of no class of torch's."""
    trusted: bool = False


def seen_in_a_run(capture: Capture, modules: Mapping[str, nn.Module]) -> dict[str, Seen]:
    """Run a model on its example inputs, and look at those layers whose class alone does not tell what they compute."""
    own = {name: module for name, module in modules.items() if isinstance(read_spec(module), Refusal)}
    specs = {name: read_spec(module, trust_forward=True) for name, module in own.items()}
    unsure = {name: spec for name, spec in specs.items() if isinstance(spec, LayerSpec)}
    if not unsure:
        return {}
    seen: dict[str, Seen] = {}
    alone: dict[str, bool] = defaultdict(lambda: True)

    def watch(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        if not arguments or not isinstance(arguments[0], Tensor):
            return
        alone[name] = alone[name] and len(arguments) == 1 and not keywords
        found = seen.setdefault(name, Seen(arguments[0].detach().clone()))
        if not unsure[name].extent:
            found.calls.append(Call(arguments[0].numel() // unsure[name].inputs, ()))

    flat = capture.flat_inputs()
    args, kwargs = pytree.tree_unflatten(copied(flat), capture.in_spec)
    with untouched(capture.model, flat), plain_execution(capture.model, flat):
        handles = [own[name].register_forward_pre_hook(_hook(watch, name), with_kwargs=True) for name in unsure]
        capture.model(*args, **kwargs)
        for handle in handles:
            handle.remove()
        for name, found in seen.items():
            found.trusted = _is_trusted(own[name], found.example, alone=alone[name])
    return seen


def _hook(watch: Any, name: str) -> Any:
    return lambda _, arguments, keywords: watch(name, arguments, keywords)


def _is_trusted(module: nn.Module, example: Tensor, *, alone: bool) -> bool:
    """Whether a layer's forward is its base class's on an input and on a smaller one, or a product where it has no such class."""
    if base_class(module) is None:
        return alone and acts_as_linear_map(module, example)
    return all(acts_as_base(module, x) for x in (example, _cropped(example)))


def _cropped(example: Tensor) -> Tensor:
    """An input one position shorter in each spatial direction, on which padding that depends on the size shows."""
    inner = tuple(slice(None, -1) if size > 1 else slice(None) for size in example.shape[2:])
    return example[(slice(None), slice(None), *inner)] if example.dim() > 2 else example


def acts_as_base(module: nn.Module, example: Tensor) -> bool:
    """Check on an input whether a subclass computes exactly what its base class would with the same settings.

    True for a subclass that pads in front of the convolution only where its padding is empty at this input size.
    """
    base = base_class(module)
    if base is None:
        return False
    try:
        with torch.no_grad():
            ours, plain = module(example), base.forward(module, example)
    except RuntimeError:
        return False
    return bool(isinstance(ours, Tensor) and ours.shape == plain.shape and torch.equal(ours, plain))
