"""Modules of the dense and of the compressed model that put out the same thing, and which part of it is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.capture import Capture
from secateur.capture.calls import packet
from secateur.errors import RewriteError, SelectionError
from secateur.measure.evaluation import evaluating
from secateur.plan import did_you_mean
from secateur.recover.pairs import Places
from secateur.recover.readers import shape
from secateur.rewrite import Cut

SUMS = ("aten.add", "aten.add_")
MOVES = (
    *("aten.view", "aten.reshape", "aten.permute", "aten.transpose", "aten.flatten", "aten.unflatten", "aten.squeeze", "aten.unsqueeze"),
    *("aten.slice", "aten.roll", "aten.contiguous", "aten.clone", "aten.alias", "aten.dropout", "aten.feature_dropout"),
)
CLOSE = 1e-5
"""Outputs count as the same up to this share of their largest value: normalised graphs may sum in another order."""


@dataclass(frozen=True, eq=False)
class Feature:
    """The output of one module, and what of the dense model's is left of it."""

    name: str
    kept: Places | None = None
    """``None`` where nothing was cut."""

    def __call__(self, dense: Tensor) -> Tensor:
        """The part of the dense model's output that the compressed model still has."""
        return dense if self.kept is None else self.kept(dense)


@dataclass(frozen=True, eq=False)
class Features:
    """The outputs that are compared, and why others that were asked for are not."""

    found: tuple[Feature, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def match_features(student: nn.Module, teacher: nn.Module, cut: Cut | None, wanted: Sequence[str] = ()) -> Features:
    """Find the modules that exist under one name in both models, and the channels of their outputs that stayed.

    With a cut, the dense model is run once on its example inputs, and a module's output is that value of the captured graph to
    which it is equal: the graph knows which of its positions were kept, so that no projection between widths is needed.

    Args:
        cut: what was removed of the teacher; ``None`` if both have the same widths.
        wanted: names or globs of modules; without them the layers whose outputs are added to a residual stream, or where there are
            none all layers whose outputs are not the model's.

    Raises:
        SelectionError: a name matches no module that both models have, or what it matches cannot be compared.
    """
    shared = _shared(student, teacher)
    names = _chosen(shared, wanted) if wanted else [name for name in shared if _is_layer(teacher.get_submodule(name))]
    if cut is None:
        return Features(tuple(Feature(name) for name in names))
    nodes = _nodes(cut.solution.walk.capture, _outputs(cut.solution.walk.capture, names))
    found, skipped = _placed(cut, names, nodes)
    if not wanted:
        added, inner = (tuple(f for f in found if any(map(test, nodes[f.name]))) for test in (_is_added, _is_inner))
        return Features(added or inner, skipped)
    if skipped and not found:
        raise SelectionError(f"None of these outputs can be compared: {'; '.join(f'{n}: {why}' for n, why in skipped.items())}.")
    return Features(tuple(found), skipped)


def _shared(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Modules that both models have, and that the student calls if it is a graph."""
    called = {str(n.target) for n in student.graph.find_nodes(op="call_module")} if isinstance(student, fx.GraphModule) else None
    own = {name for name, _ in student.named_modules()}
    return [name for name, _ in teacher.named_modules() if name and name in own and (called is None or name in called)]


def _chosen(shared: Sequence[str], wanted: Sequence[str]) -> list[str]:
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in shared):
            text = f"{pattern!r} is no module that both models have and call."
            raise SelectionError(f"{text}{did_you_mean(pattern, list(shared))}")
    return [name for name in shared if any(fnmatchcase(name, pattern) for pattern in wanted)]


def _is_layer(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) and not any(True for _ in module.children())


def _is_added(node: fx.Node) -> bool:
    """Whether a node's output is a summand, with nothing but moves of its elements and dropout on the way."""
    user = node
    while len(user.users) == 1:
        user = next(iter(user.users))
        if packet(user) in SUMS:
            return sum(n.op != "get_attr" for n in user.all_input_nodes) == 2
        if packet(user) not in MOVES:
            return False
    return False


def _is_inner(node: fx.Node) -> bool:
    return all(user.op != "output" for user in node.users)


def _placed(cut: Cut, names: Sequence[str], nodes: Mapping[str, list[fx.Node]]) -> tuple[list[Feature], dict[str, str]]:
    found, skipped = [], {}
    for name in names:
        kept = _kept(cut, nodes.get(name, []))
        if isinstance(kept, Places):
            found.append(Feature(name, kept))
        else:
            skipped[name] = kept
    return found, skipped


def _outputs(capture: Capture, names: Sequence[str]) -> dict[str, Tensor]:
    """What each module returns on the example inputs, where it is called once and returns one tensor."""
    with evaluating([capture.model]), watching(capture.model, names) as seen:
        capture.model(*capture.args, **capture.kwargs)
    return {name: values[0] for name, values in seen.items() if len(values) == 1 and isinstance(values[0], Tensor)}


@contextmanager
def watching(model: nn.Module, names: Sequence[str], *, with_gradients: bool = False) -> Iterator[dict[str, list[Any]]]:
    """What modules return while the model runs: by name one value for each call, copied, since what follows may write into it.

    ``with_gradients`` leaves out calls without them, as those of an evaluation between two steps.
    """
    seen: dict[str, list[Any]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if torch.is_grad_enabled() or not with_gradients:
                seen.setdefault(name, []).append(output.clone() if isinstance(output, Tensor) else output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _nodes(capture: Capture, outputs: Mapping[str, Tensor]) -> dict[str, list[fx.Node]]:
    """The nodes of the captured graph that have each output as their value; of several those of the module itself, if it has any."""
    search = _Search(capture.program, outputs)
    with torch.no_grad():
        search.run(*capture.flat_inputs())
    own = {name: [n for n in found if _within(str(n.meta.get("module", "")), name)] for name, found in search.found.items()}
    return {name: own[name] or found for name, found in search.found.items()}


def _within(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


class _Search(fx.Interpreter):
    """Looks for values among those of a graph."""

    def __init__(self, program: fx.GraphModule, wanted: Mapping[str, Tensor]) -> None:
        super().__init__(program)
        self._wanted = wanted
        self.found: dict[str, list[fx.Node]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point():
            for name, tensor in self._wanted.items():
                if value.shape == tensor.shape and bool(((value - tensor).abs() <= CLOSE * tensor.abs().max()).all()):
                    self.found.setdefault(name, []).append(n)
        return value


def _kept(cut: Cut, nodes: Sequence[fx.Node]) -> Places | str:
    """What is kept of the value that all these nodes have, or why that is not known."""
    if not nodes:
        return "its output is not one value of the captured graph"
    try:
        places = [Places.of(cut, node) for node in nodes]
        widths = {cut.node_shape(node) for node in nodes}
    except RewriteError as error:
        return str(error)
    first = places[0]
    same = all(_same(first, other) for other in places[1:])
    sizes = tuple(len(first.kept[d]) if d in first.kept else size for d, size in enumerate(shape(nodes[0])))
    return first if same and widths == {sizes} else "its output keeps other positions in different rows, or is ambiguous in the graph"


def _same(one: Places, other: Places) -> bool:
    return one.kept.keys() == other.kept.keys() and all(torch.equal(one.kept[d], other.kept[d]) for d in one.kept)
