"""One real run of a captured graph, which tells shapes, dtypes and the values of constants."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from secateur.capture.capture import Fact
from secateur.capture.leaves import Place, address, place
from secateur.capture.writes import detach_writes, written

CONSTANT_PREFIX = "_constant_"
"""Names of tensors that the graph needs and that are neither parameter nor buffer of the user's model."""

LARGEST_FLOATING_VALUE = 1_000_000
"""Floating-point constants with more elements than this keep no value."""


@dataclass(frozen=True)
class Memory:
    """Where what a call returned lay in memory in the run that told the facts."""

    addresses: frozenset[object] = frozenset()
    place: Place | None = None
    """How it lay there, if it was one tensor."""

    @classmethod
    def of(cls, result: Any) -> Memory:
        """The memory of a tensor or of several."""
        if isinstance(result, Tensor):
            where = place(result)
            return cls(frozenset((where[0],)), where) if len(where) > 1 else NOWHERE
        if isinstance(result, list | tuple):
            return cls(frozenset(address(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)) - {0})
        return NOWHERE


NOWHERE = Memory()


def observe(program: fx.GraphModule, flat_inputs: Sequence[Any]) -> None:
    """Run the graph once and set ``fact``, ``constant`` and ``memory`` in each node's meta.

    Neither the inputs nor the tensors that the program stores are changed, and the random state is as before.
    """
    Observer(program).observe(flat_inputs)


def cuda_devices(program: torch.nn.Module, flat_inputs: Sequence[Any]) -> list[torch.device]:
    """Return the CUDA devices on which tensors of a module and its inputs lie."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    tensors = [*program.parameters(), *program.buffers(), *(x for x in flat_inputs if isinstance(x, Tensor))]
    return sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)


def settle(program: fx.GraphModule, flat_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Observe the program, keep its writes off stored tensors and inputs, and return its outputs."""
    observer = Observer(program)
    outputs = observer.observe(flat_inputs)
    if observer.overwritten:
        detach_writes(program.graph, observer.overwritten)
        program.recompile()
        outputs = Observer(program).observe(flat_inputs)
    return outputs


def observe_anew(program: fx.GraphModule, flat_inputs: Sequence[Any]) -> None:
    """Observe a program whose graph was edited: run what constants alone determine, and believe the shapes of the rest.

    Nothing but a whole run tells of graphs that write in place, or that hold calls of which no shape is known.
    """
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    if any("fact" not in node.meta or written(node.target, node.args, node.kwargs) for node in calls):
        observe(program, flat_inputs)
    else:
        _ConstantsObserver(program).observe(flat_inputs)


class Observer(fx.Interpreter):
    """An interpreter that notes what each node returned, where its memory lies, and what depends on inputs."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.extra_traceback = False
        self.overwritten: list[Node] = []
        """Placeholders and stored tensors that the graph writes in place."""
        self._origin: dict[Node, Node] = {}
        self._aliases: dict[Node, list[Node]] = defaultdict(list)
        self._saved: list[tuple[Tensor, Tensor]] = []

    def observe(self, flat_inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run on copies of the inputs, and put back every stored tensor that the graph wrote."""
        copies = [x.detach().clone() if isinstance(x, Tensor) else x for x in flat_inputs]
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(self.module, flat_inputs)):
                outputs: tuple[Any, ...] = self.run(*copies)
                return tuple(x.clone() if isinstance(x, Tensor) and self._saved else x for x in outputs)
        finally:
            with torch.no_grad():
                for tensor, before in self._saved:
                    tensor.copy_(before)

    def run_node(self, n: Node) -> Any:
        """Run one node and note what came out."""
        if n.op == "output":
            return super().run_node(n)
        targets = [x for x in written(n.target, n.args, n.kwargs) if isinstance(x, Node)] if n.op == "call_function" else []
        self._save(targets)
        result = super().run_node(n)
        self._trace_memory(n, result)
        self._spread_writes(n, targets)
        n.meta["constant"] = self._is_constant(n)
        n.meta["fact"] = self._fact(n, result)
        return result

    def _save(self, targets: list[Node]) -> None:
        for node in targets:
            origin = self._origin[node]
            if origin.op in ("get_attr", "placeholder") and origin not in self.overwritten:
                self.overwritten.append(origin)
                if origin.op == "get_attr":
                    leaf = self.fetch_attr(str(origin.target))
                    self._saved.append((leaf, leaf.detach().clone()))

    def _trace_memory(self, node: Node, result: Any) -> None:
        memory = Memory.of(result)
        node.meta["memory"] = memory
        lender = next((x for x in node.all_input_nodes if memory.addresses & x.meta["memory"].addresses), None)
        origin = node if lender is None else self._origin[lender]
        self._origin[node] = origin
        self._aliases[origin].append(node)

    def _spread_writes(self, node: Node, targets: list[Node]) -> None:
        if not targets:
            return
        steady = all(x.meta["constant"] for x in node.all_input_nodes) and not _is_random(node)
        for origin in {self._origin[target] for target in targets}:
            for alias in self._aliases[origin]:
                _forget_value(alias, constant=steady and alias.meta.get("constant", True))

    def _is_constant(self, node: Node) -> bool:
        if node.op == "placeholder" or _is_random(node):
            return False
        return all(x.meta["constant"] for x in node.all_input_nodes)

    def _fact(self, node: Node, result: Any) -> Any:
        if isinstance(result, Tensor):
            return Fact(tuple(result.shape), result.dtype, self._value(node, result))
        if isinstance(result, list | tuple):
            return [self._fact(node, item) for item in result]
        return result

    def _value(self, node: Node, result: Tensor) -> Tensor | None:
        is_floating = result.is_floating_point() or result.is_complex()
        if not node.meta["constant"] or (is_floating and (_is_floating_leaf(node) or result.numel() >= LARGEST_FLOATING_VALUE)):
            return None
        return result.detach().clone() if self._origin[node].op == "get_attr" else result.detach()


class _ConstantsObserver(Observer):
    """Runs what no input has a say in; for graphs without writes, in which all else has the shape that it had."""

    def run_node(self, n: Node) -> Any:
        if n.op == "output":
            return ()
        if n.op == "get_attr" or self._is_constant(n):
            return super().run_node(n)
        _forget_value(n, constant=False)
        n.meta["memory"] = NOWHERE
        self._origin[n] = n
        return None


def _is_floating_leaf(node: Node) -> bool:
    return node.op == "get_attr" and not str(node.target).startswith(CONSTANT_PREFIX)


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _is_dropout_off(node)


def _is_dropout_off(node: Node) -> bool:
    return "dropout" in str(node.target) and len(node.args) > 2 and node.args[2] is False


def _forget_value(node: Node, *, constant: bool) -> None:
    node.meta["constant"] = constant
    fact = node.meta.get("fact")
    if isinstance(fact, Fact):
        node.meta["fact"] = Fact(fact.shape, fact.dtype)
    elif isinstance(fact, list):
        node.meta["fact"] = [Fact(item.shape, item.dtype) if isinstance(item, Fact) else item for item in fact]
