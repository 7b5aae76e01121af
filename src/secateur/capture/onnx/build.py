"""From a file's graph to a model: constants are computed, weights become layers, everything else becomes a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import secateur.capture.onnx.operators  # noqa: F401 - registers the operators
from secateur.capture.onnx.file import STANDARD, Graph, OnnxFile
from secateur.capture.onnx.fusions import Surroundings, group_norm
from secateur.capture.onnx.model import Block, OnnxModel, Step
from secateur.capture.onnx.names import free_path, module_path, put, tensor_path
from secateur.capture.onnx.registry import Call, LayerOf, Node, find_layer, find_operator, number_places
from secateur.capture.onnx.values import Known, Parts, as_numbers, known

CPU = torch.device("cpu")
_LARGE = 1 << 22
# How many operands of an operator are moved, and not a shape or a place.
_MOVING = dict.fromkeys(("Identity", "Expand", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Gather", "Transpose", "Tile", "Cast"), 1)
_CONSTANTS = ("value", "value_float", "value_int", "value_floats", "value_ints")


def build(file: OnnxFile, fixed: Mapping[str, Tensor]) -> OnnxModel:
    """The model of a file, some of its inputs ``fixed`` to values."""
    ports = [port for port in file.inputs() if port.name not in fixed]
    model = OnnxModel(ports, file.graph.outputs)
    builder = _Builder(file, model, dict(fixed))
    block = builder.block(file.graph, _Scope())
    model.complete(_freeing(block), builder.known, builder.leaves, builder.repeats)
    model.bounds = builder.bounds
    return model.eval()


@dataclass
class _Scope:
    """What the names of one graph mean: those of an inner one may repeat names of another beside it."""

    names: dict[str, str] = field(default_factory=dict)
    around: _Scope | None = None

    def resolve(self, name: str) -> str:
        """The name that a value has in the whole model."""
        if name in self.names or self.around is None:
            return self.names.get(name, name)
        return self.around.resolve(name)


@dataclass
class _Builder:
    file: OnnxFile
    model: OnnxModel
    constants: dict[str, Tensor | Known]
    known: dict[str, Known] = field(default_factory=dict)
    leaves: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    """How often the one row of a leaf stands in the file's tensor."""
    bounds: dict[str, int] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    """Tensors, by identity, that the file stores as weights, and not as constants of nodes."""
    made: dict[Any, str] = field(default_factory=dict)
    """Layers by what they were made of, and leaves by tensor."""
    taken: set[str] = field(default_factory=set)
    casts: dict[str, str] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    zeros: set[str] = field(default_factory=set)
    """Values that are zero whatever the inputs are."""
    readers: dict[int, dict[str, list[Any]]] = field(default_factory=dict)
    parameters: dict[Any, nn.Parameter] = field(default_factory=dict)

    def block(self, graph: Graph, scope: _Scope) -> Block:
        """Steps for all nodes of a graph that do not depend on constants alone."""
        for name, tensor in graph.weights():
            self.constants[self._named(name, scope)] = tensor
            self.stored.add(id(tensor))
        steps = [step for node in graph.nodes for step in self._steps(graph, node, scope)]
        outputs = tuple(self._operand(None, scope.resolve(name)) for name in graph.outputs)
        return Block(tuple(steps), outputs)

    def _named(self, name: str, scope: _Scope) -> str:
        """The name, in the whole model, of a value that a graph makes."""
        number, free = 1, name
        while free in self.taken:
            number, free = number + 1, f"{name}'{number}"
        self.taken.add(free)
        scope.names[name] = free
        return free

    def _steps(self, graph: Graph, proto: Any, scope: _Scope) -> Iterator[Step]:
        if id(proto) in self.skipped:
            return
        node = self._node(graph, proto, scope)
        if node.operator == "Constant":
            self.constants[node.outputs[0]] = self._constant(node)
        elif node.operator == "Identity" and node.inputs[0] in self.constants:
            self.constants[node.outputs[0]] = self.constants[node.inputs[0]]
        elif node.operator == "InstanceNormalization" and (found := self._group_norm(graph, proto, node, scope)) is not None:
            yield found
        elif node.operator == "If":
            yield from self._branch(node, scope)
        elif all(name in self.constants for name in node.inputs if name) and self._fold(node):
            return
        else:
            yield self._step(graph, proto, node, scope)

    def _node(self, graph: Graph, proto: Any, scope: _Scope) -> Node:
        operator = proto.op_type if proto.domain in STANDARD else f"{proto.domain}::{proto.op_type}"
        inputs = tuple(scope.resolve(name) if name else "" for name in proto.input)
        outputs = tuple(self._named(name, scope) if name else "" for name in proto.output)
        return Node(operator, proto.name, inputs, outputs, graph.attributes(proto), self.file.opset)

    def _constant(self, node: Node) -> Tensor | Known:
        found = next((node.attributes[name] for name in _CONSTANTS if name in node.attributes), None)
        if found is None:
            raise node.refuse("a constant of this kind cannot be read")
        return found if isinstance(found, Tensor) else torch.tensor(found)

    def _branch(self, node: Node, scope: _Scope) -> Iterator[Step]:
        """The steps of one block where the condition is a constant, else a step that chooses."""
        condition = self.constants.get(node.inputs[0])
        if condition is None:
            blocks = {name: self.block(graph, _Scope(around=scope)) for name, graph in node.attributes.items()}
            yield Step(replace(node, attributes=blocks), (node.inputs[0],), None)
            return
        chosen: Graph = node.attributes["then_branch" if bool(_value(condition).item()) else "else_branch"]
        inner = _Scope(around=scope)
        block = self.block(chosen, inner)
        yield from block.steps
        for ours, theirs in zip(node.outputs, chosen.outputs, strict=True):
            found = inner.resolve(theirs)
            if found in self.constants:
                self.constants[ours] = self.constants[found]
            else:
                yield Step(Node("Identity", node.name, (found,), (ours,), {}, node.opset), (found,), None)

    def _fold(self, node: Node) -> bool:
        """Compute a node of constants now, unless what comes out is much larger than what goes in."""
        operands = [_value(self.constants[name]) if name else None for name in node.inputs]
        with torch.no_grad():
            found = find_operator(node)(Call(node, operands, CPU))
        values = found if isinstance(found, tuple) else (found,)
        sizes = [x.numel() for x in values if isinstance(x, Tensor)]
        given = sum(x.numel() for x in operands if isinstance(x, Tensor))
        if any(isinstance(x, Parts) for x in values) or sum(sizes) > max(_LARGE, 4 * given):
            return False
        self.constants.update((name, x) for name, x in zip(node.outputs, values, strict=False) if not isinstance(x, Parts))
        return True

    def _step(self, graph: Graph, proto: Any, node: Node, scope: _Scope) -> Step:
        find_operator(node)
        node = self._without_zero_states(node)
        making = find_layer(node.operator)
        weights = self._weights(node, making) if making else None
        if making is not None and weights is not None:
            node, weights = self._with_bias(graph, proto, node, weights, scope)
            path = self._layer(proto, node, making, weights)
            if path is not None:
                operands = ["" if place in making.places else name for place, name in enumerate(node.inputs)]
                self._bound(node, path)
                return Step(node, tuple(self._operand(proto, name) for name in operands), path)
        if node.operator == "Cast":
            self.casts[node.outputs[0]] = self.casts.get(node.inputs[0], node.inputs[0])
        self.known.update((name, as_numbers(_tensor(self.constants[name]))) for name in self._settings(node))
        return Step(node, tuple(self._operand(proto, name) for name in node.inputs), None)

    def _settings(self, node: Node) -> list[str]:
        """Names of the constant operands that are to be numbers."""
        names = [node.inputs[place] for place in number_places(node.operator) if place < len(node.inputs)]
        return [name for name in names if isinstance(self.constants.get(name), Tensor)]

    def _without_zero_states(self, node: Node) -> Node:
        """A recurrent node that starts from zeros as one that is given no states; makes a note of zeros on the way."""
        if node.operator in _MOVING and all(self._is_zero(name) for name in node.inputs[: _MOVING[node.operator]]):
            self.zeros.update(node.outputs)
        if node.operator == "ConstantOfShape" and node.attribute("value", torch.zeros(1)).item() == 0:
            self.zeros.update(node.outputs)
        states = node.inputs[5:7]
        if node.operator not in ("LSTM", "GRU", "RNN") or not all(self._is_zero(name) for name in states if name):
            return node
        return replace(node, inputs=(*node.inputs[:5], *[""] * len(states), *node.inputs[7:]))

    def _is_zero(self, name: str) -> bool:
        constant = self.constants.get(name)
        return name in self.zeros or (constant is not None and not bool(_tensor(constant).any()))

    def _weights(self, node: Node, making: LayerOf) -> list[Tensor | None] | None:
        """The constant operands that a layer would hold; ``None`` if one of them is computed."""
        names = [node.inputs[place] if place < len(node.inputs) else "" for place in making.places]
        if any(name and name not in self.constants for name in names) or not any(names):
            return None
        return [_tensor(self.constants[name]) if name else None for name in names]

    def _with_bias(
        self, graph: Graph, proto: Any, node: Node, weights: list[Tensor | None], scope: _Scope
    ) -> tuple[Node, list[Tensor | None]]:
        """A matrix product together with the addition that follows it, if that adds one constant to each output."""
        weight = weights[0]
        follower = self._only_reader(graph, proto) if node.operator == "MatMul" and weight is not None and weight.dim() == 2 else None
        if follower is None or follower.op_type != "Add" or weight is None:
            return node, weights
        other = next((name for name in follower.input if name != proto.output[0]), "")
        bias = self.constants.get(scope.resolve(other))
        if bias is None or _tensor(bias).shape != weight.shape[1:]:
            return node, weights
        self.skipped.add(id(follower))
        name = scope.resolve(other)
        joined = replace(node, inputs=(*node.inputs[:2], name), outputs=(self._named(follower.output[0], scope),))
        return joined, [weight, _tensor(bias)]

    def _group_norm(self, graph: Graph, proto: Any, node: Node, scope: _Scope) -> Step | None:
        """A group norm that was written around an instance norm, as the layer that it is."""
        if scope.around is not None:
            return None
        around = Surroundings(self.file.makers.get, lambda each: self._only_reader(graph, each), lambda name: self._vector(name, scope))
        found = group_norm(proto, around)
        if found is None:
            return None
        layer = nn.GroupNorm(found.groups, found.weight.numel(), eps=node.attribute("epsilon", 1e-5))
        layer.weight, layer.bias = nn.Parameter(found.weight.clone()), nn.Parameter(found.bias.clone())
        path = free_path(self.model, module_path(proto))
        put(self.model, path, layer)
        self.skipped.update(id(each) for each in found.behind)
        source, output = scope.resolve(found.source), self._named(found.output, scope)
        whole = Node("GroupNormalization", node.name, (source, "", ""), (output,), {}, node.opset)
        return Step(whole, (self._operand(proto, source), "", ""), path)

    def _vector(self, name: str, scope: _Scope) -> Tensor | None:
        constant = self.constants.get(scope.resolve(name))
        return None if constant is None else _tensor(constant)

    def _only_reader(self, graph: Graph, proto: Any) -> Any:
        readers = self._readers(graph)
        found = readers.get(proto.output[0], [])
        return found[0] if len(found) == 1 else None

    def _readers(self, graph: Graph) -> Mapping[str, list[Any]]:
        """The nodes that read each value of a graph; an output counts as read twice, and so does what inner graphs may read."""
        key = id(graph.proto)
        if key not in self.readers:
            readers: dict[str, list[Any]] = {}
            for node in graph.nodes:
                inner = any(attribute.HasField("g") for attribute in node.attribute)
                for name in _read(node) if inner else node.input:
                    readers.setdefault(name, []).extend([node] * (2 if inner else 1))
            for name in graph.outputs:
                readers.setdefault(name, []).extend([None, None])
            self.readers[key] = readers
        return self.readers[key]

    def _layer(self, proto: Any, node: Node, making: LayerOf, weights: list[Tensor | None]) -> str | None:
        """The path of the layer that a node is: a new one, or one with the same weights that was made before."""
        if node.operator == "BatchNormalization":
            node = replace(node, attributes={**node.attributes, "rank": self._rank(node)})
        identity = tuple(
            id(self.constants[node.inputs[place]]) for place in making.places if place < len(node.inputs) and node.inputs[place]
        )
        key = (node.operator, identity, repr(sorted(node.attributes.items())))
        if key in self.made and not _is_plain(weights[0]):
            return self.made[key]
        layer = making.make(node, [x.clone() if x is not None and _is_plain(x) else x for x in weights])
        if layer is None:
            return None
        self._share(layer)
        name = proto.input[making.places[0]]
        path = free_path(self.model, module_path(proto, name))
        put(self.model, path, layer)
        self.made[key] = path
        return path

    def _rank(self, node: Node) -> int:
        return self.file.rank(node.inputs[0]) or 4

    def _share(self, layer: nn.Module) -> None:
        """Give a layer the parameter that another one has for the same numbers in memory."""
        for name, parameter in list(layer.named_parameters(recurse=False)):
            place = ("place", parameter.data_ptr(), tuple(parameter.shape), parameter.stride())
            setattr(layer, name, self.parameters.setdefault(place, parameter))

    def _bound(self, node: Node, path: str) -> None:
        if node.operator == "Gather":
            name = self.casts.get(node.inputs[1], node.inputs[1])
            table = self.model.get_submodule(path)
            assert isinstance(table, nn.Embedding)
            self.bounds[name] = min(table.num_embeddings, self.bounds.get(name, table.num_embeddings))

    def _operand(self, proto: Any, name: str) -> str:
        """What a step calls an operand; a constant is put where the model finds it."""
        constant = self.constants.get(name) if name else None
        if constant is None or name in self.known:
            return name
        value = _value(constant)
        if isinstance(value, Known):
            self.known[name] = value
            return name
        return self._leaf(proto, name, value)

    def _leaf(self, proto: Any, name: str, tensor: Tensor) -> str:
        """A stored tensor of its own: a parameter if the file stores it as a weight, else a buffer. Vectors are never shared."""
        if id(tensor) in self.made:
            return self.made[id(tensor)]
        trainable = id(tensor) in self.stored and tensor.is_floating_point() and "::" not in name
        repeats = _repeats(tensor) if not trainable or _is_put_beside(proto) else 0
        own = tensor[:1].clone() if repeats else tensor.clone() if _is_plain(tensor) else tensor
        path = free_path(self.model, tensor_path(proto, name) if proto is not None else "output_constant")
        put(self.model, path, nn.Parameter(own) if trainable else own)
        self.leaves[path] = path
        self.repeats |= {path: repeats} if repeats else {}
        if not _is_plain(tensor):
            self.made[id(tensor)] = path
        return path


def _value(constant: Tensor | Known) -> Tensor | Known:
    return constant if isinstance(constant, Known) else known(constant) or constant


def _tensor(constant: Tensor | Known) -> Tensor:
    return constant if isinstance(constant, Tensor) else constant.tensor(CPU)


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor is a vector, or one number over and over.

    Exporters store equal tensors once; such ones are often equal by initialisation, though they belong to layers of their own.
    """
    if tensor is None or tensor.numel() == max(tensor.shape, default=1):
        return True
    return bool((tensor == tensor.reshape(-1)[0]).all())


def _repeats(tensor: Tensor) -> int:
    """How often the first row of a tensor of three or more dimensions stands in it, where it is nothing else; 0 otherwise.

    Exporters store what a model repeats for every sample of a batch (a token, positions) as often as their example had samples.
    """
    return len(tensor) if tensor.dim() > 2 and len(tensor) > 1 and bool((tensor == tensor[:1]).all()) else 0


def _is_put_beside(proto: Any) -> bool:
    """Whether a node puts operands beside each other behind the first dimension; equal rows of weights elsewhere may be heads'."""
    return proto is not None and proto.op_type == "Concat" and any(a.name == "axis" and a.i != 0 for a in proto.attribute)


def _read(node: Any) -> Iterator[str]:
    """Names that a node or a graph inside of it reads."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read(inner)
        yield from (value.name for value in attribute.g.output)


def _freeing(block: Block) -> Block:
    """The steps that matter, each with the values that it is the last to need."""
    needed = set(block.outputs)
    steps = []
    for step in reversed(block.steps):
        if needed.isdisjoint(step.node.outputs):
            continue
        read = set(_names_read(step))
        steps.append(replace(step, spent=tuple(read - needed)))
        needed |= read
    return Block(tuple(reversed(steps)), block.outputs)


def _names_read(step: Step) -> Iterator[str]:
    yield from filter(None, step.operands)
    for attribute in step.node.attributes.values():
        if isinstance(attribute, Block):
            yield from attribute.outputs
            for inner in attribute.steps:
                yield from _names_read(inner)
