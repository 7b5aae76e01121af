"""Ranks that VBMF finds in the layers of torchvision networks whose weights have planted low ranks under noise.

    python benchmarks/decompose_ranks.py vgg16 resnet18

Every kernel is made a Tucker-2 product of a quarter of its channels on both sides, every matrix one of a quarter of its smaller side, plus
normal noise of a tenth of its norm. Planted and found ranks, multiply-adds and seconds for ranks and factors.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
import torchvision
from torch import Tensor, nn

import secateur as sc

PART, NOISE = 4, 0.1


def planted(weight: Tensor, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
    """A weight of the same shape and norm, with its ranks (in, out) or its rank."""
    outputs, inputs, *extent = weight.shape
    rank_in, rank_out = max(1, inputs // PART), max(1, outputs // PART)
    if not extent:
        rank_in = rank_out = min(rank_in, rank_out)
    core = torch.randn(rank_out, rank_in, *extent, generator=generator)
    left, right = torch.randn(outputs, rank_out, generator=generator), torch.randn(inputs, rank_in, generator=generator)
    kernel = torch.einsum("or,rs...,is->oi...", left, core, right)
    noise = torch.randn(weight.shape, generator=generator)
    kernel = kernel / kernel.norm() + NOISE * noise / noise.norm()
    return kernel * weight.norm() / kernel.norm(), (rank_in, rank_out) if extent else (rank_in,)


def plant(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Give every layer that VBMF is asked for a weight of planted ranks, in place; the ranks by layer."""
    generator, ranks = torch.Generator().manual_seed(0), {}
    for name, module in model.named_modules():
        wide = isinstance(module, nn.Conv2d) and module.weight.shape[1] > 3 and math.prod(module.kernel_size) > 1
        if wide or isinstance(module, nn.Linear):
            weight, ranks[name] = planted(module.weight.detach(), generator)
            module.weight = nn.Parameter(weight)
    return ranks


def run(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    ranks = plant(model)
    study = sc.study(model, torch.randn(1, 3, 224, 224))
    start = time.perf_counter()
    plan = study.plan_decomposition(rank=sc.ByVBMF())
    chosen = time.perf_counter() - start
    found = {edit.layer: edit.rank for edit in plan.factorizations}
    for layer, rank in ranks.items():
        print(f"  {layer}: planted {rank}, found {found.get(layer, 'none')}", flush=True)
    result = sc.apply(study, plan)
    exact = sum(found.get(layer) == rank for layer, rank in ranks.items())
    before, after = result.before, result.after
    print(f"{name}: {exact} of {len(ranks)} ranks found exactly, {len(found)} layers factorized")
    print(f"  MACs {before.macs:,} -> {after.macs:,}, {before.macs / after.macs:.2f} times fewer")
    print(f"  parameters {before.parameters:,} -> {after.parameters:,}")
    print(f"  ranks {chosen:.1f} s, factors and proof {time.perf_counter() - start - chosen:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet18", "vgg16"])
    for name in parser.parse_args().models:
        run(name)


if __name__ == "__main__":
    main()
