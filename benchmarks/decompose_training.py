"""Fine-tuning of a CIFAR-10 ResNet-56 whose kernels are CP factors, with and without error-preserving correction, side by side.

    python benchmarks/decompose_training.py --images cifar10-jpeg.zip --weights resnet56.th --steps 60

Both models are factorized from the same weights at the same ranks, and see the same batches in the same order. Loss is the mean of each run
of steps; "energy" is the sum of squared norms of all rank-one terms, relative to the squared norm of the kernels.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from data_sets import cifar10, cifar_resnet, top1
from secateur.decompose import CP


def factorized(study: sc.Study, method: CP, options: argparse.Namespace) -> nn.Module:
    plan = study.plan_decomposition(method, rank={options.layers: sc.ByRatio(options.removed)})
    return sc.apply(study, plan).model


def energy(dense: nn.Module, model: nn.Module) -> float:
    """How large the rank-one terms are together, as a multiple of what they sum to."""
    terms, whole = 0.0, 0.0
    for name, module in model.named_modules():
        if hasattr(module, "depthwise0"):
            first, *inner, last = (part.weight.detach().flatten(1) for part in module)
            norms = first.norm(dim=1) * last.norm(dim=0) * math.prod(part.norm(dim=1) for part in inner)
            terms += float(norms.square().sum())
            whole += float(dense.get_submodule(name).weight.detach().square().sum())
    return terms / whole


def trained(model: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace) -> list[float]:
    """The loss of each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=1e-4)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    losses = []
    model.train()
    for step in range(options.steps):
        picked = order[torch.arange(step * options.batch, (step + 1) * options.batch) % len(order)]
        loss = F.cross_entropy(model(images[picked]), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--layers", default="layer*", help="layers to factorize, as a glob")
    parser.add_argument("--removed", type=float, default=0.5, help="part of each layer's parameters that goes")
    parser.add_argument("--slack", type=float, default=CP().slack, help="what the correction may add to the error, as a factor")
    parser.add_argument("--test", type=int, default=500)
    options = parser.parse_args()
    images, labels = cifar10(options.images, "train", options.steps * options.batch)
    metric = top1(*cifar10(options.images, "test", options.test))
    dense = cifar_resnet(options.weights)
    study = sc.study(dense, images[:1])
    print(f"dense {metric(dense):.1f}")
    curves = {}
    for name, method in {"without": CP(epc=False), "with": CP(slack=options.slack)}.items():
        start = time.perf_counter()
        model = factorized(study, method, options)
        told = f"{name} correction: energy {energy(dense, model):.2f}, {metric(model):.1f} before"
        print(told, flush=True)
        curves[name] = trained(model, images, labels, options)
        losses = ", ".join(f"{loss:.2f}" for loss in curves[name])
        print(f"{metric(model):.1f} after {options.steps} steps, {time.perf_counter() - start:.0f} s; losses {losses}", flush=True)
    for start in range(0, options.steps, 10):
        means = {name: sum(losses[start : start + 10]) / len(losses[start : start + 10]) for name, losses in curves.items()}
        print(f"| {start} to {min(start + 10, options.steps)} | {means['without']:.3f} | {means['with']:.3f} |")


if __name__ == "__main__":
    main()
