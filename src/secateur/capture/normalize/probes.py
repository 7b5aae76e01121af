"""Which sizes of a dynamic graph follow its inputs."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from secateur.capture.normalize.edit import aten, describe
from secateur.capture.states import check_states

_Place = tuple[int, int]
"""An input and one of its dimensions."""


def probe_sizes(program: fx.GraphModule, flat_inputs: Sequence[Any], others: Sequence[Any] | None) -> None:
    """Run a dynamic graph, without content, on inputs of other sizes, and set ``variants`` in each node's meta.

    ``others`` are inputs at which all sizes differ that are open. Where they are not known, dimensions of the inputs are doubled, those of
    equal size together if the graph runs so. Where the graph reads a size that no run could change, nothing is set: then every size may
    follow the inputs.
    """
    if others is not None:
        facts = _outcomes(program, [_without_content(x) for x in others])
        _set_variants(program, [] if facts is None else [facts])
        return
    runs: dict[frozenset[_Place], dict[fx.Node, Any]] = {}
    for places in _candidates(flat_inputs):
        known = {place for found in runs for place in found}
        if not places <= known and (facts := _run(program, flat_inputs, places)) is not None:
            runs[places] = facts
    if _read_sizes(program) <= {place for places in runs for place in places}:
        _set_variants(program, list(runs.values()))


def _set_variants(program: fx.GraphModule, runs: Sequence[Mapping[fx.Node, Any]]) -> None:
    for node in program.graph.nodes if runs else ():
        node.meta["variants"] = [facts[node] for facts in runs]


def _read_sizes(program: fx.GraphModule) -> set[_Place]:
    placeholders = program.graph.find_nodes(op="placeholder")
    users = [(index, user) for index, node in enumerate(placeholders) for user in node.users]
    return {(index, int(str(user.args[1]))) for index, user in users if user.target is aten.sym_size.int and user.users}


def _candidates(flat_inputs: Sequence[Any]) -> Iterator[frozenset[_Place]]:
    """Dimensions that may grow together: all of one size, all of one size at one position, each alone."""
    sizes = {(i, dim): size for i, x in enumerate(flat_inputs) if isinstance(x, Tensor) for dim, size in enumerate(x.shape)}
    groupings: list[Callable[[_Place], Any]] = [sizes.__getitem__, lambda place: (sizes[place], place[1]), lambda place: place]
    for key in groupings:
        for group in dict.fromkeys(map(key, sizes)):
            yield frozenset(place for place in sizes if key(place) == group)


def _run(program: fx.GraphModule, flat_inputs: Sequence[Any], places: frozenset[_Place]) -> dict[fx.Node, Any] | None:
    """What each node returns when some dimensions of the inputs are doubled, or nothing if that fails."""
    doubled = [{dim for index, dim in places if index == position} for position in range(len(flat_inputs))]
    return _outcomes(program, [_without_content(x, dims) for x, dims in zip(flat_inputs, doubled, strict=True)])


def _outcomes(program: fx.GraphModule, flat_inputs: Sequence[Any]) -> dict[fx.Node, Any] | None:
    """What each node returns for such inputs, or nothing if that fails."""
    probe = _Probe(program)
    try:
        with torch.no_grad():
            probe.run(*flat_inputs)
    except Exception:  # noqa: BLE001  # whatever the graph says against a size: it does not follow it
        return None
    return probe.facts


def _without_content(value: Any, doubled: Container[int] = ()) -> Any:
    if not isinstance(value, Tensor):
        return value
    sizes = [size * 2 if dim in doubled else size for dim, size in enumerate(value.shape)]
    return torch.empty(sizes, dtype=value.dtype, device="meta")


class _Probe(fx.Interpreter):
    """A run on tensors without content that notes what each node returned."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self.facts: dict[fx.Node, Any] = {}

    def fetch_attr(self, target: str) -> Any:
        return _without_content(super().fetch_attr(target))

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_states(target, args)
        names = [argument.name for argument in target._schema.arguments] if isinstance(target, OpOverload) else []
        if "device" in names[: len(args)]:
            args = (*args[: names.index("device")], "meta", *args[names.index("device") + 1 :])
        elif "device" in names:
            kwargs = {**kwargs, "device": "meta"}
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.facts[n] = describe(result)
        return result
