"""Proof: the smaller model computes what the dense model computes with the removed channels masked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.capture.capture import Capture
from secateur.errors import ProofError
from secateur.groups.fields import Fields
from secateur.rewrite.cut import Cut
from secateur.rewrite.execute import Double, double_by_default, widened
from secateur.rewrite.masked import Masked
from secateur.rewrite.slices import Slices

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Trial:
    """One comparison of the smaller model with the masked dense model."""

    inputs: str
    error: float
    """Largest absolute difference, relative to the outputs' scale."""
    sensitivity: float
    """Largest absolute difference, relative to how much the outputs change between two inputs."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart it was."""

    error: float
    """The largest figure of all trials."""
    tolerance: float
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    dtype: str = "float64"

    @property
    def holds(self) -> bool:
        """Whether the error lies within the tolerance (a NaN does not)."""
        return self.error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """The proof as plain values."""
        return asdict(self)


def prove(
    cut: Cut,
    program: fx.GraphModule,
    inputs: Sequence[Sequence[Any]],
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    rename: Mapping[str, str] | None = None,
) -> Proof:
    """Compare a smaller program with the masked dense one, in double precision, on each set of inputs.

    Both run with the dense model's weights after batch norm was calibrated and constant parameters were perturbed, so
    that zeros and ones hide nothing. ``rename`` gives the program's names of stored tensors where they differ.
    Raises :class:`ProofError` if they differ by more than ``tolerance``.
    """
    proof = _trials(cut, program, inputs, tolerance, seed, rename or {})
    if not proof.holds:
        node = first_difference(cut, program, inputs[0], seed)
        place = f"; the first node that differs is {node}" if node else ""
        raise ProofError(
            f"the smaller model differs from the masked dense model by {proof.error:.2e} of the output's scale"
            f" (tolerance {tolerance:.0e}){place}. The result was discarded.",
            node=node,
            error=proof.error,
        )
    return proof


def _trials(
    cut: Cut, program: fx.GraphModule, inputs: Sequence[Sequence[Any]], tolerance: float, seed: int, rename: Mapping[str, str]
) -> Proof:
    capture = cut.solution.walk.capture
    check_leaves(cut, program, rename)
    notes: tuple[str, ...] = ()
    dense = perturbed_leaves(capture, inputs[0], seed)
    reference = [Masked(cut, dense).outputs(x) for x in inputs]
    if not _finite(reference[0]):
        dense, notes = {}, ("perturbed weights gave values that are not finite: the model's own weights were used",)
        reference = [Masked(cut, dense).outputs(x) for x in inputs]
    small = smaller_leaves(cut, dense, program, rename)
    trials = []
    for number, flat in enumerate(inputs):
        found = Double(program, small).outputs(flat)
        other = reference[(number + 1) % len(reference)]
        trials.append(compare(reference[number], found, other, "the given inputs" if number == 0 else f"random inputs {number}"))
    worst = max((_worse(t) for t in trials), key=lambda e: math.inf if math.isnan(e) else e)
    return Proof(worst, tolerance, tuple(trials), notes)


def _worse(trial: Trial) -> float:
    return trial.error if math.isnan(trial.error) else max(trial.error, trial.sensitivity)


def _finite(outputs: Sequence[Any]) -> bool:
    return all(bool(torch.isfinite(o).all()) for o in outputs if isinstance(o, Tensor) and o.is_floating_point())


def compare(reference: Sequence[Any], found: Sequence[Any], other: Sequence[Any], name: str) -> Trial:
    """Errors over all outputs: relative to their scale, and to their change between two inputs."""
    error = sensitivity = 0.0
    for want, have, elsewhere in zip(reference, found, other, strict=True):
        if not isinstance(want, Tensor):
            continue
        if want.shape != have.shape:
            return Trial(name, math.inf, math.inf)
        difference = _largest(want.to(torch.complex128) - have.to(torch.complex128)) if want.is_complex() else _difference(want, have)
        if difference == 0:
            continue
        scale = _largest(want)
        change = _largest(_finite_part(want) - _finite_part(elsewhere)) if want.shape == elsewhere.shape else scale
        error = _maximum(error, difference / scale if scale else math.inf)
        sensitivity = _maximum(sensitivity, difference / change if change > 1e-6 * scale else difference / scale if scale else math.inf)
    return Trial(name, error, sensitivity)


def _difference(want: Tensor, have: Tensor) -> float:
    a, b = want.double(), have.double()
    equal_infinities = torch.isinf(a) & (a == b)
    return _largest(torch.where(equal_infinities, 0.0, a - b))


def _finite_part(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, 0) if x.is_floating_point() else x.to(torch.complex128) if x.is_complex() else x.double()


def _largest(x: Tensor) -> float:
    if not x.numel():
        return 0.0
    values = x.abs().double() if not x.is_complex() else x.abs()
    finite = torch.where(torch.isinf(values), 0.0, values) if values.numel() else values
    return float(finite.max())


def _maximum(a: float, b: float) -> float:
    return b if math.isnan(b) or b > a else a


def check_leaves(cut: Cut, program: fx.GraphModule, rename: Mapping[str, str]) -> None:
    """Every stored tensor of the program is exactly the kept part of the dense one."""
    capture, slices = cut.solution.walk.capture, Slices.of(cut)
    for node in program.graph.find_nodes(op="get_attr"):
        name = rename.get(str(node.target), str(node.target))
        have = Capture.leaf(_Holder(program), str(node.target))  # type: ignore[arg-type]
        dense = dense_leaf(capture, name)
        if dense is None:
            continue
        want = slices.apply(name, dense)
        if want.shape != have.shape or not torch.equal(torch.nan_to_num(want), torch.nan_to_num(have)):
            raise ProofError(f"the tensor {node.target} is not the kept part of the dense model's {name}", node=node.name)


@dataclass(frozen=True)
class _Holder:
    program: fx.GraphModule


def dense_leaf(capture: Capture, name: str) -> Tensor | None:
    """The stored tensor of that name in the dense capture, if it has one."""
    try:
        return capture.leaf(name)
    except AttributeError:
        return None


def smaller_leaves(cut: Cut, dense: Mapping[str, Tensor], program: fx.GraphModule, rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The kept parts of replaced dense tensors, by the program's names."""
    slices = Slices.of(cut)
    out = {}
    for node in program.graph.find_nodes(op="get_attr"):
        name = rename.get(str(node.target), str(node.target))
        if name in dense:
            out[str(node.target)] = slices.apply(name, dense[name])
    return out


def perturbed_leaves(capture: Capture, flat_inputs: Sequence[Any], seed: int) -> dict[str, Tensor]:
    """Weights to prove with: parameters that are constant get spread, batch norm gets statistics of these inputs."""
    generator = torch.Generator().manual_seed(seed)
    leaves = {}
    for node in capture.graph.find_nodes(op="get_attr"):
        leaf = capture.leaf(str(node.target))
        tensor = leaf.detach()
        if not isinstance(leaf, torch.nn.Parameter) or not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        first = tensor.reshape(-1)[0]
        if bool((tensor == first).all()):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.device)
            leaves[str(node.target)] = tensor.double() + 0.3 * noise * max(abs(float(first)), 0.3)
    calibration = _Calibrating(capture.program, leaves, generator)
    calibration.outputs(flat_inputs)
    return calibration.leaves


class _Calibrating(Double):
    """Runs the graph with batch statistics in batch norm, and keeps them, perturbed, as running statistics."""

    def __init__(self, program: fx.GraphModule, leaves: Mapping[str, Tensor], generator: torch.Generator) -> None:
        super().__init__(program, leaves)
        self.generator = generator

    def run_node(self, n: fx.Node) -> Any:
        """Replace the running statistics of a batch norm before it runs."""
        if n.target is torch.ops.aten.batch_norm.default and all(isinstance(a, fx.Node) and a.op == "get_attr" for a in n.args[3:5]):
            self._calibrate(n)
        return super().run_node(n)

    def _calibrate(self, n: fx.Node) -> None:
        x = self.env[n.args[0]]  # type: ignore[index]
        dims = [d for d in range(x.ndim) if d != 1]
        mean, variance = x.mean(dims), x.var(dims, correction=0)
        variance = variance + 1e-2 * (variance.mean() + mean.square().mean() * 1e-2 + 1e-6)
        noise = torch.randn((2, mean.numel()), generator=self.generator, dtype=mean.dtype).to(mean.device)
        for place, value in ((3, mean + 0.1 * variance.sqrt() * noise[0]), (4, variance * torch.exp(0.2 * noise[1]))):
            node = n.args[place]
            assert isinstance(node, fx.Node)
            self.leaves[str(node.target)] = value
            self.env[node] = value


def random_like(flat_inputs: Sequence[Any], seed: int) -> list[Any]:
    """Inputs of the same shapes, dtypes and ranges, with other values."""
    generator = torch.Generator().manual_seed(seed)
    return [_random_tensor(x, generator) if isinstance(x, Tensor) else x for x in flat_inputs]


def _random_tensor(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.dtype == torch.bool or x.numel() == 0:
        return x
    if x.is_floating_point():
        spread = float(x.double().std()) if x.numel() > 1 else 0.0
        if spread == 0:
            return x
        return (torch.randn(x.shape, generator=generator, dtype=torch.float64) * spread + float(x.double().mean())).to(x)
    if x.is_complex():
        return x
    low, high = int(x.min()), int(x.max())
    return x if low == high or high <= 1 else torch.randint(low, high + 1, x.shape, generator=generator).to(x)


def first_difference(cut: Cut, program: fx.GraphModule, flat_inputs: Sequence[Any], seed: int) -> str | None:
    """The first node whose kept values differ between the masked dense graph and its rewritten copy, by name."""
    dense = perturbed_leaves(cut.solution.walk.capture, flat_inputs, seed)
    masked, small = Masked(cut, dense), Double(program, smaller_leaves(cut, dense, program, {}))
    names = {n.name for n in cut.solution.walk.capture.graph.nodes}
    if not any(n.name in names for n in program.graph.nodes if n.op == "call_function"):
        return None
    values = _recorded(masked, flat_inputs)
    found = _recorded(small, flat_inputs)
    for node in cut.solution.walk.capture.graph.nodes:
        want, have = values.get(node.name), found.get(node.name)
        if node.op == "call_function" and isinstance(want, Tensor) and isinstance(have, Tensor):
            kept = _kept_values(cut, cut.fields(node), want)
            if kept.numel() != have.numel() or _difference(kept.reshape(-1), have.reshape(-1)) > 1e-7 * max(_largest(want), 1e-300):
                return f"{node.name} ({node.target}, module {node.meta.get('module') or 'root'})"
    return None


def _kept_values(cut: Cut, fields: Fields, value: Tensor) -> Tensor:
    mask = cut.mask(fields)
    return value if mask is None else value[torch.as_tensor(mask).expand(value.shape)]


def _recorded(run: Double, flat_inputs: Sequence[Any]) -> dict[str, Any]:
    run.garbage_collect_values = False
    with suppress(RuntimeError, ValueError, IndexError):
        run.outputs(flat_inputs)
    return {node.name: value for node, value in run.env.items()}


__all__ = ["TOLERANCE", "Proof", "Trial", "compare", "double_by_default", "prove", "random_like", "widened"]
