"""Weights and inputs to prove with: such that zeros and ones hide nothing, and outputs depend on the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.capture.capture import Capture
from secateur.rewrite.execute import Double


def proving_leaves(capture: Capture, flat_inputs: Sequence[Any], seed: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Perturbed weights, or none and a note where the recorded calls, whose sizes come from values, do not run with them."""
    try:
        return perturbed_leaves(capture, flat_inputs, seed), ()
    except (RuntimeError, ValueError, IndexError):
        return {}, ("the recorded calls do not run with perturbed weights: the model's own weights were used",)


def perturbed_leaves(capture: Capture, flat_inputs: Sequence[Any], seed: int) -> dict[str, Tensor]:
    """Weights to prove with: parameters that are constant get spread, batch norm gets statistics of these inputs.

    Stored weights that were computed from others are used as they were before rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves = {}
    for node in capture.graph.find_nodes(op="get_attr"):
        leaf = capture.leaf(str(node.target))
        tensor = leaf.detach()
        if "recipe" in node.meta:
            (leaves[str(node.target)],) = Double(node.meta["recipe"]).outputs(())
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
