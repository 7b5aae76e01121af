"""Build a class from its config with the weights of a smaller model, compare the two, and write what the class loads."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import RewriteError
from secateur.export.whole import whole_directory
from secateur.measure import compare_outputs
from secateur.measure.evaluation import evaluating
from secateur.pretrained.description import Description

AGREE = 1e-4
"""How far outputs of the loaded model may be from those of the model that was saved, relative to them."""
SHAKE = 0.1
CONFIG = "config.json"


def save_pretrained(
    description: Description, model: nn.Module, path: str | os.PathLike[str], inputs: tuple[Any, Any], *, force: bool = False
) -> Path:
    """Write ``config.json`` and weights into a new directory, from which the model's class loads them with ``from_pretrained``.

    Raises:
        FileError: the path is taken; by what an earlier save wrote, only unless ``force``.
        RewriteError: the class does not give the model's outputs once it is loaded.
    """
    with whole_directory(Path(path), force=force, mark=CONFIG) as fresh:
        built(description, model.state_dict()).save_pretrained(fresh)  # type: ignore[operator]
        loaded = description.model_class.from_pretrained(fresh)  # type: ignore[attr-defined]
        error = _difference(loaded.to(next(model.parameters())), model, inputs)
        if not error <= AGREE:
            raise RewriteError(f"{type(loaded).__name__}.from_pretrained gives outputs {error:.1e} off the result's")
    return Path(path)


def built(description: Description, small: Mapping[str, Tensor]) -> nn.Module:
    """A new model of the class with the weights of a smaller model; :class:`RewriteError` where it has others."""
    model, state = description.model_class(copy.deepcopy(description.config)).eval(), description.weights(small)
    dtypes = {t.dtype for t in state.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        model = model.to(dtypes.pop())
    own = model.state_dict(keep_vars=True)
    given = {name: tensor for name, tensor in state.items() if name in own}
    held = {own[name].data_ptr() for name in given}
    missing = [name for name, tensor in own.items() if tensor.data_ptr() not in held]
    if missing:
        raise RewriteError(f"the result holds no {missing[0]}, which {type(model).__name__} has")
    model.load_state_dict(given, strict=False)
    return model


def disagreement(description: Description, small: nn.Module, inputs: tuple[Any, Any]) -> float:
    """How far outputs of the class built anew are from the smaller model's, on weights that were shaken so that they show.

    In float64, or where the model holds to another precision in that. Raises :class:`RewriteError` where the class does not run.
    """
    failure: Exception | None = None
    for double in (True, False):
        shaken = _shaken(small, double)
        try:
            fresh = built(description, shaken.state_dict()).to(next(small.parameters()).device)
            return _difference(fresh, shaken, pytree.tree_map(_in_double, inputs) if double else inputs)
        except RewriteError:
            raise
        except Exception as error:  # noqa: BLE001 - the class and the graph are user code
            failure = error
    raise RewriteError(f"{description.model_class.__name__} built with {description} does not run: {failure}") from failure


def _shaken(model: nn.Module, double: bool) -> nn.Module:
    shaken, generator = copy.deepcopy(model).eval(), torch.Generator().manual_seed(0)
    if double:
        shaken = shaken.double()
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter.add_(SHAKE * torch.randn(parameter.shape, generator=generator).to(parameter))
    return shaken


def _in_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _difference(first: nn.Module, second: nn.Module, inputs: tuple[Any, Any]) -> float:
    def run(model: nn.Module) -> Any:
        args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)
        return model(*args, **kwargs)

    with evaluating([first, second]), torch.no_grad():
        return compare_outputs(lambda: run(second), lambda: run(first), [()]).relative_l2
