"""Raise flat calls to ``nn`` layers under the user's names, so that train, eval, dropout and batch norm work as usual."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from secateur.capture.calls import arguments, packet
from secateur.capture.capture import Capture
from secateur.capture.normalize.weights import computed_from, stand_ins
from secateur.rewrite.computed import compute_alike
from secateur.rewrite.graph import put
from secateur.rewrite.linear_map import LinearMap, Product, product_of

aten = torch.ops.aten
_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "aten.conv1d": nn.Conv1d,
    "aten.conv2d": nn.Conv2d,
    "aten.conv3d": nn.Conv3d,
    "aten.conv_transpose1d": nn.ConvTranspose1d,
    "aten.conv_transpose2d": nn.ConvTranspose2d,
    "aten.conv_transpose3d": nn.ConvTranspose3d,
}
_ROLES = ("weight", "bias", "running_mean", "running_var")
Settings = tuple[type[nn.Module], dict[str, Any]]


def raise_layers(program: fx.GraphModule, capture: Capture, computed: Container[str] | None = None) -> fx.GraphModule:
    """The same computation built of ordinary layers, called as the user's model is called.

    Layers whose weights the user's model computes do so too: those in ``computed``, by default where that gives the values at hand.
    """
    _users_names(program, capture)
    raiser = _Raiser(program, capture)
    for node in list(program.graph.nodes):
        if node.op == "call_function":
            raiser.visit(node)
    program.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output") or _writes(n) or n.target is torch._assert)
    _call_as(program, capture)
    raised = fx.GraphModule(program, program.graph, type(capture.model).__name__)
    _tie(raised, capture)
    _keep_unread(raised, capture)
    _compute_alike(raised, capture, computed)
    raised.train(capture.model.training)
    return raised


def _users_names(program: fx.GraphModule, capture: Capture) -> None:
    """Give weights that stand for what the model computes from a parameter the name of that parameter."""
    names = stand_ins(capture.graph)
    for node in program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name in names:
            node.target = names[name]
            if _has(program, name):
                owner, _, last = name.rpartition(".")
                put(program, names[name], _attribute(program, name))
                delattr(program.get_submodule(owner), last)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


class _Raiser:
    def __init__(self, program: fx.GraphModule, capture: Capture) -> None:
        self.program = program
        self.capture = capture
        self.made: dict[str, Settings] = {}
        self.names = {str(node.target) for node in program.graph.find_nodes(op="get_attr")} | capture.model.state_dict().keys()

    def visit(self, node: fx.Node) -> None:
        """Replace one call by a layer where that says the same."""
        operator, named = packet(node), arguments(node)
        if (product := product_of(node)) is not None:
            self._layer(node, {"input": product.source, "weight": product.weight, "bias": product.bias}, _linear(product))
        elif operator in _CONVOLUTIONS:
            self._layer(node, named, _convolution(operator, named))
        elif operator in _LAYERS:
            self._layer(node, named, _LAYERS[operator](named))
        elif operator in ("aten.dropout", "aten.feature_dropout", "aten.alpha_dropout"):
            self._dropout(node, operator, named)

    def _layer(self, node: fx.Node, named: dict[str, Any], settings: Settings | None) -> None:
        tensors = {k: named[k] for k in _ROLES if isinstance(named.get(k), fx.Node)}
        path = self._owner(node, tensors)
        if (
            path is None
            or settings is None
            or self._holds_more(path, tensors, settings)
            or self.made.setdefault(path, settings) != settings
        ):
            return
        if not isinstance(self._existing(path), settings[0]):
            self._make(path, settings, tensors)
        self._call(node, path, named["indices"] if "indices" in named else named.get("input", named.get("self")))

    def _holds_more(self, path: str, tensors: Mapping[str, fx.Node], settings: Settings) -> bool:
        """Whether that module holds a tensor for whose name a layer made of these has another use."""
        kind, options = settings
        others = {name.removeprefix(f"{path}.") for name in self.names if name.startswith(f"{path}.")} - tensors.keys()
        return any(name in _ROLES or name in options or hasattr(kind, name) for name in others)

    def _existing(self, path: str) -> nn.Module | None:
        try:
            return self.program.get_submodule(path)
        except AttributeError:
            return None

    def _owner(self, node: fx.Node, tensors: Mapping[str, fx.Node]) -> str | None:
        """The module path under which all these tensors have the names that a layer gives them."""
        paths: set[str] | None = None
        for role, tensor in tensors.items():
            if tensor.op != "get_attr":
                return None
            names = self.capture.tied.get(str(tensor.target), (str(tensor.target),))
            found = {n.removesuffix(f".{role}") for n in names if n.endswith(f".{role}")}
            paths = found if paths is None else paths & found
        if not paths:
            return None
        here = str(node.meta.get("module", ""))
        return here if here in paths else sorted(paths)[0]

    def _make(self, path: str, settings: Settings, tensors: Mapping[str, fx.Node]) -> None:
        kind, options = settings
        layer = kind(**options, device="meta")
        values = {role: _attribute(self.program, str(node.target)) for role, node in tensors.items()}
        for role in ("weight", "bias"):
            if role in values and not isinstance(values[role], nn.Parameter):
                del layer._parameters[role]
                layer.register_buffer(role, values[role])
            elif role in values:
                layer.register_parameter(role, values[role])
        for role in ("running_mean", "running_var"):
            if role in values:
                layer.register_buffer(role, values[role])
        if "num_batches_tracked" in layer._buffers:
            layer.register_buffer("num_batches_tracked", self._counter(path))
        if (existing := self._existing(path)) is not None:
            _hand_on(existing, layer, others=tensors)
        put(self.program, path, layer)

    def _counter(self, path: str) -> Tensor:
        try:
            counter = getattr(self.capture.model.get_submodule(path), "num_batches_tracked", None)
        except AttributeError:
            counter = None
        return counter.clone() if isinstance(counter, Tensor) else torch.tensor(0)

    def _dropout(self, node: fx.Node, packet: str, named: dict[str, Any]) -> None:
        source = named["input"]
        rank = len(node.meta["origin"].meta["fact"].shape)
        kind: type[nn.Module] = nn.AlphaDropout if "alpha" in packet else nn.Dropout
        if "feature" in packet:
            kind = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}.get(rank, nn.Dropout2d)
        settings: Settings = (kind, {"p": named["p"]})
        path = self._free_path(str(node.meta.get("module", "")), settings)
        self.made[path] = settings
        if not isinstance(self._existing(path), kind):
            put(self.program, path, kind(p=named["p"]))
        self._call(node, path, source)

    def _free_path(self, module: str, settings: Settings) -> str:
        """The user's dropout layer if the call is its own, else a new name inside the module that dropped."""
        try:
            own = self.capture.model.get_submodule(module) if module else None
        except AttributeError:
            own = None
        if isinstance(own, settings[0]):
            return module
        stem, number = f"{module}.dropout" if module else "dropout", 0
        while f"{stem}_{number}" in self.made:
            number += 1
        return f"{stem}_{number}"

    def _call(self, node: fx.Node, path: str, source: Any) -> None:
        with self.program.graph.inserting_before(node):
            call = self.program.graph.call_module(path, (source,))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        self.program.graph.erase_node(node)


def _hand_on(old: nn.Module, new: nn.Module, *, others: Container[str]) -> None:
    """Give a layer what the module that it stands for holds beside the layer's own tensors."""
    for name, child in old._modules.items():
        new.add_module(name, child)
    for name, parameter in old._parameters.items():
        if name not in others:
            new.register_parameter(name, parameter)
    for name, buffer in old._buffers.items():
        if name not in others:
            new.register_buffer(name, buffer, persistent=name not in old._non_persistent_buffers_set)


def _attribute(root: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(root.get_submodule(owner), last)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(_stored(node).shape)


def _stored(node: fx.Node) -> Tensor:
    root = node.graph.owning_module
    assert root is not None
    value = _attribute(root, str(node.target))
    assert isinstance(value, Tensor)
    return value


def _convolution(packet: str, a: dict[str, Any]) -> Settings | None:
    if not isinstance(a["weight"], fx.Node) or a["weight"].op != "get_attr":
        return None
    shape, transposed = _shape(a["weight"]), "transpose" in packet
    wide = shape[1] * a["groups"]
    options = {
        "in_channels": shape[0] if transposed else wide,
        "out_channels": wide if transposed else shape[0],
        "kernel_size": tuple(shape[2:]),
        "stride": _tuple(a["stride"], shape),
        "padding": a["padding"] if isinstance(a["padding"], str) else _tuple(a["padding"], shape),
        "dilation": _tuple(a["dilation"], shape),
        "groups": a["groups"],
        "bias": a["bias"] is not None,
    }
    if transposed:
        options["output_padding"] = _tuple(a["output_padding"], shape)
    return _CONVOLUTIONS[packet], options


def _tuple(value: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * (len(shape) - 2) if len(values) == 1 else values


def _linear(product: Product) -> Settings | None:
    weight, bias = _stored(product.weight), None if product.bias is None else _stored(product.bias)
    if weight.dim() != 2:
        return None
    inputs, outputs = weight.shape if product.inputs_first else reversed(weight.shape)
    if bias is not None and (bias.shape != (outputs,) or bias.dtype != weight.dtype):
        return None
    kind = LinearMap if product.inputs_first else nn.Linear
    return kind, {"in_features": inputs, "out_features": outputs, "bias": bias is not None}


def _batch_norm(a: dict[str, Any]) -> Settings | None:
    rank = len(a["input"].meta["origin"].meta["fact"].shape) if "origin" in a["input"].meta else 4
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(rank)
    if kind is None or a["training"] or a["running_mean"] is None or (a["weight"] is None) != (a["bias"] is None):
        return None
    size = _shape(a["running_mean"])[0] if a["running_mean"].op == "get_attr" else 0
    return (kind, {"num_features": size, "eps": a["eps"], "momentum": a["momentum"], "affine": a["weight"] is not None}) if size else None


def _layer_norm(a: dict[str, Any]) -> Settings | None:
    if a["weight"] is None:
        return None
    return nn.LayerNorm, {"normalized_shape": tuple(a["normalized_shape"]), "eps": a["eps"], "bias": a["bias"] is not None}


def _rms_norm(a: dict[str, Any]) -> Settings | None:
    return None if a["weight"] is None else (nn.RMSNorm, {"normalized_shape": tuple(a["normalized_shape"]), "eps": a["eps"]})


def _group_norm(a: dict[str, Any]) -> Settings | None:
    if a["weight"] is None or a["bias"] is None or a["weight"].op != "get_attr":
        return None
    return nn.GroupNorm, {"num_groups": a["num_groups"], "num_channels": _shape(a["weight"])[0], "eps": a["eps"]}


def _embedding(a: dict[str, Any]) -> Settings | None:
    if a["weight"].op != "get_attr":
        return None
    rows, width = _shape(a["weight"])
    return nn.Embedding, {"num_embeddings": rows, "embedding_dim": width, "padding_idx": None if a["padding_idx"] < 0 else a["padding_idx"]}


def _prelu(a: dict[str, Any]) -> Settings | None:
    return (
        (nn.PReLU, {"num_parameters": _shape(a["weight"])[0]}) if a["weight"].op == "get_attr" and len(_shape(a["weight"])) == 1 else None
    )


_LAYERS: dict[str, Callable[[dict[str, Any]], Settings | None]] = {
    "aten.batch_norm": _batch_norm,
    "aten.layer_norm": _layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten.group_norm": _group_norm,
    "aten.embedding": _embedding,
    "aten.prelu": _prelu,
}


def _call_as(program: fx.GraphModule, capture: Capture) -> None:
    """Give the graph the calling convention of the user's model: nested inputs and outputs."""
    names = [*_positional_names(capture), *capture.kwargs]
    program.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, capture.in_spec, capture.out_spec)))


def _positional_names(capture: Capture) -> list[str]:
    """The names that the user's forward gives to the positional inputs, where it names them all."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p.name for p in inspect.signature(capture.model.forward).parameters.values() if p.kind in kinds]
    count = len(capture.args)
    return found[:count] if len(found) >= count and not set(found[:count]) & set(capture.kwargs) else [f"arg{i}" for i in range(count)]


def _keep_unread(program: fx.GraphModule, capture: Capture) -> None:
    """What the model stores and no call reads stays in the state dict, except what a stored weight is computed from."""
    parts = {part for node in capture.graph.find_nodes(op="get_attr") for part in computed_from(node)}
    copies: dict[int, Tensor] = {}
    for name, tensor in capture.model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and name not in parts and not _has(program, name):
            if id(tensor) not in copies:
                copy = tensor.detach().clone()
                copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
            put(program, name, copies[id(tensor)])


def _compute_alike(raised: fx.GraphModule, capture: Capture, wanted: Container[str] | None) -> None:
    called = {str(node.target) for node in raised.graph.find_nodes(op="call_module")}
    for node in capture.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if computed_from(node) and name.rpartition(".")[0] in called and (wanted is None or name in wanted):
            compute_alike(raised, capture.model, name, anyway=wanted is not None)


def _tie(program: fx.GraphModule, capture: Capture) -> None:
    """Tied parameters have all their names, and are one."""
    for names in capture.tied.values():
        held = [n for n in names if _has(program, n)]
        if not held:
            continue
        value = _attribute(program, held[0])
        for name in names:
            if name not in held or _attribute(program, name) is not value:
                put(program, name, value)


def _has(program: nn.Module, name: str) -> bool:
    try:
        _attribute(program, name)
    except AttributeError:
        return False
    return True
