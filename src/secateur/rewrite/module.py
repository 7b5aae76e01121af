"""Keep the user's class: the same modules with smaller tensors, and the numbers in them that follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from secateur.capture.capture import Capture
from secateur.capture.casts import stored_name
from secateur.capture.duplicate import duplicate
from secateur.capture.normalize.weights import stand_ins
from secateur.rewrite.computed import computed_names, is_computed, store
from secateur.rewrite.cut import Cut
from secateur.rewrite.graph import smaller
from secateur.rewrite.leaves import dense_leaf
from secateur.rewrite.slices import Slices

Attributes = dict[str, dict[str, Any]]
"""New values of attributes, by module path and attribute name."""


def shrink_module(model: nn.Module, cut: Cut, attributes: Attributes) -> nn.Module | None:
    """A copy of the user's model with smaller tensors and new attributes; ``None`` if some tensor is not the model's own.

    What a layer computes, such as a weight from its norm and its direction, is the model's own where that can be turned round.
    """
    slices, capture = Slices.of(cut), cut.solution.walk.capture
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    computed = computed_weights(model, cut)
    if not all(is_computed(model, name) for name in computed):
        return None
    memo: dict[int, Any] = {}
    for name in slices.kept.keys() & own.keys():
        new = smaller(own[name], name, slices)
        memo |= {id(own[alias]): new for alias in capture.tied.get(name, (name,))}
    smaller_model = duplicate(model, memo)
    if not all(store(smaller_model, name, smaller(capture.leaf(name), name, slices).detach()) for name in computed):
        return None
    set_attributes(smaller_model, attributes)
    return smaller_model


def computed_weights(model: nn.Module, cut: Cut) -> list[str]:
    """The weights that get smaller and that the model computes from tensors of its own."""
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return [name for name in Slices.of(cut).kept if name not in own]


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write new values of attributes into a model."""
    for path, values in attributes.items():
        module = model.get_submodule(path)
        for name, value in values.items():
            setattr(module, name, tuple(value) if isinstance(getattr(module, name, None), tuple) else value)


def merged(first: Attributes, second: Attributes) -> Attributes:
    """All attributes of both; where both have one, that of the second."""
    return {path: {**first.get(path, {}), **second.get(path, {})} for path in {**first, **second}}


def layer_attributes(model: nn.Module, cut: Cut, program: fx.GraphModule) -> Attributes:
    """Widths, groups and normalised shapes of torch's own layers, as the new shapes and the rewritten graph have them."""
    slices, capture = Slices.of(cut), cut.solution.walk.capture
    groups = _rewritten_groups(program)
    firsts = {name: first for first, names in capture.tied.items() for name in names}
    out: Attributes = {}
    for path, module in model.named_modules():
        shapes = {}
        for name in (*module._parameters, *module._buffers, *computed_names(module)):
            full = f"{path}.{name}" if path else name
            first = firsts.get(full, full)
            if first in slices:
                shapes[name] = slices.shape(first, capture.leaf(first).shape)
        found = _widths(module, shapes, groups.get(f"{path}.weight" if path else "weight"))
        if found:
            out[path] = found
    return out


def _rewritten_groups(program: fx.GraphModule) -> dict[str, int]:
    """Numbers of groups in the rewritten graph, by the weight that goes with them."""
    out = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            names = [a.name for a in node.target._schema.arguments]
            named = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
            count, weight = named.get("groups", named.get("num_groups")), named.get("weight")
            if isinstance(count, int) and isinstance(weight, fx.Node) and (name := stored_name(weight)):
                out[name] = count
    return out


def _widths(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], groups: int | None) -> dict[str, Any]:
    """The attributes that torch's layers keep beside their tensors."""
    if isinstance(module, nn.RNNBase):
        sides = {"input_size": shapes.get("weight_ih_l0"), "hidden_size": shapes.get("weight_hh_l0")}
        return {name: shape[1] for name, shape in sides.items() if shape is not None}
    shape = shapes.get("weight", shapes.get("running_mean"))
    if shape is None:
        return {}
    if isinstance(module, nn.modules.conv._ConvNd):
        count = module.groups if groups is None else groups
        first, second = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
        return {first: shape[0], second: shape[1] * count, "groups": count}
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": shape[0]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0], "num_groups": module.num_groups if groups is None else groups}
    return {"num_parameters": shape[0]} if isinstance(module, nn.PReLU) else {}


def attempted_attributes(model: nn.Module, cut: Cut, program: fx.GraphModule) -> list[Attributes]:
    """Attributes that may follow the new sizes, to be tried in this order, each to be proven.

    First those of torch's layers and all other whole numbers of which it is clear what they count; then with those too that equal both a
    size that changed and one that did not, such as a length as large as the width; last those of torch's layers alone.
    """
    own = layer_attributes(model, cut, program)
    changed, steady = _changed_sizes(cut, program), _steady_sizes(cut)
    clear = {path: {old: new for old, new in sizes.items() if old not in steady[path]} for path, sizes in changed.items()}
    tries = [merged(_proposed(model, clear), own), merged(_proposed(model, changed), own), own]
    return [attributes for number, attributes in enumerate(tries) if attributes not in tries[:number]]


def _proposed(model: nn.Module, changed: Mapping[str, Mapping[int, int | None]]) -> Attributes:
    """Whole numbers of modules that equal a size which changed inside them."""
    out: Attributes = {}
    for path, module in model.named_modules():
        sizes = {old: new for old, new in changed.get(path, {}).items() if new is not None}
        found = {
            name: new for name, value in vars(module).items() if (new := _renewed(value, sizes)) is not None and not name.startswith("_")
        }
        if found:
            out[path] = found
    return out


def _steady_sizes(cut: Cut) -> Mapping[str, set[int]]:
    """For each module, the sizes of stored tensors in it that stay as they are."""
    slices, out = Slices.of(cut), defaultdict[str, set[int]](set)
    capture = cut.solution.walk.capture
    for name in {stored for stored, _ in cut.solution.slot_labels}:
        if (leaf := dense_leaf(capture, name)) is None:
            continue
        shape = leaf.shape
        same = {old for old, new in zip(shape, slices.shape(name, shape), strict=True) if old == new}
        for alias in capture.tied.get(name, (name,)):
            for path in _owners(alias):
                out[path] |= same
    return out


def _owners(name: str) -> Iterator[str]:
    """The modules that a stored tensor lies in, from its own to the root."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _renewed(value: Any, sizes: Mapping[int, int | None]) -> Any:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return sizes.get(value)
    if isinstance(value, list | tuple) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        renewed = type(value)(sizes.get(v) or v for v in value)
        return renewed if renewed != value else None
    return None


def _changed_sizes(cut: Cut, program: fx.GraphModule) -> dict[str, dict[int, int | None]]:
    """For each module, what sizes at work in it became; ``None`` where one size became several."""
    out: dict[str, dict[int, int | None]] = defaultdict(dict)
    copies = {n.name: n for n in program.graph.nodes}
    for node in cut.solution.walk.capture.graph.nodes:
        copy_ = copies.get(node.name)
        if node.op != "call_function" or copy_ is None:
            continue
        for old, new in _pairs(node, copy_, cut):
            for path in _ancestors(str(node.meta.get("module", ""))):
                known = out[path].setdefault(old, new)
                if known != new:
                    out[path][old] = None
    for path, sizes in _own_sizes(cut).items():
        out[path] = sizes | out[path]
    return out


def _own_sizes(cut: Cut) -> dict[str, dict[int, int | None]]:
    """For each module, what the sizes of its own tensors became; ``None`` where one size became several."""
    slices, out = Slices.of(cut), defaultdict[str, dict[int, int | None]](dict)
    for name in slices.kept:
        own, shape = out[name.rpartition(".")[0]], cut.solution.walk.capture.leaf(name).shape
        for old, new in zip(shape, slices.shape(name, shape), strict=True):
            if own.setdefault(old, new) != new:
                own[old] = None
    return out


def _ancestors(path: str) -> list[str]:
    """The module that made a call, and the one around it."""
    return [path, path.rpartition(".")[0]] if path else [path]


def _pairs(old: fx.Node, new: fx.Node, cut: Cut) -> Iterator[tuple[int, int]]:
    for a, b in zip(_numbers([old.args, old.kwargs]), _numbers([new.args, new.kwargs]), strict=False):
        if a != b and a > 1 and b > 0:
            yield a, b
    fields = cut.solution.walk.fields.get(old, ())
    fact: Any = old.meta.get("fact")
    for field, one in zip(fields, fact, strict=True) if isinstance(fields, list) and isinstance(fact, list | tuple) else [(fields, fact)]:
        if hasattr(one, "shape"):
            yield from ((a, b) for a, b in zip(one.shape, cut.shape(field, one.shape), strict=True) if a != b)


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, dict):
        yield from _numbers(list(value.values()))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def tied_names(capture: Capture) -> dict[str, str]:
    """The name that the graph uses, by each name of a tensor."""
    return {alias: first for first, names in capture.tied.items() for alias in names}


def rebuilt_names(capture: Capture) -> dict[str, str]:
    """The name that the graph of a capture uses, by each name of a tensor in a graph that is built anew from it."""
    return tied_names(capture) | {own: name for name, own in stand_ins(capture.graph).items()}
