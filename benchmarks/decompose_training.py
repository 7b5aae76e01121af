"""Fine-tuning of a CIFAR-10 ResNet-56 whose kernels are CP factors: fits of several kinds at several rates, side by side.

    python benchmarks/decompose_training.py --images cifar10-jpeg.zip --weights resnet56.th --train 3200 --rates 0.001 0.01

All models are factorized from the same weights at the same ranks, and see the same batches in the same order: one epoch of the images that
are taken. "parafac" is tensorly's alternating least squares from a random start, "ours" the fit of this library without error-preserving
correction; "corrected" are both after it, at an error that is larger by the slack. Losses are means of runs of steps; "energy" is the sum
of squared norms of all rank-one terms, relative to the squared norm of the kernel: the mean over layers, and the largest.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from data_sets import cifar10, cifar_resnet, top1
from secateur.decompose import CP
from secateur.decompose.als import Factors, Fit, Target, balance
from secateur.decompose.epc import error_preserving_correction

FITS = ("parafac", "parafac, corrected", "ours", "ours, corrected")
RUNS = 8


@dataclass(frozen=True)
class Row:
    """One fit, trained at one rate."""

    fit: str
    rate: float
    error: float
    energy: float
    largest: float
    before: float
    losses: tuple[float, ...]
    after: float


def factorized(study: sc.Study, fit: str, options: argparse.Namespace) -> nn.Module:
    corrected, theirs = fit.endswith("corrected"), fit.startswith("parafac")
    method = CP(epc=False, starts=1, sweeps=1) if theirs else CP(epc=corrected, slack=options.slack)
    plan = study.plan_decomposition(method, rank={options.layers: sc.ByRatio(options.removed)})
    model = sc.apply(study, plan).model
    if theirs:
        for edit in plan.factorizations:
            factors = parafac_of(study.model.get_submodule(edit.layer).weight, edit.rank[0], options.iterations)
            put(model.get_submodule(edit.layer), shrunk(study, edit.layer, factors, options.slack) if corrected else factors)
    return model


def parafac_of(weight: Tensor, rank: int, iterations: int) -> Factors:
    """Tensorly's factors of a kernel: output channels, input channels, rows, columns."""
    kernel = tensorly.tensor(weight.detach().double().numpy())
    sizes, found = parafac(kernel, rank=rank, n_iter_max=iterations, init="random", random_state=0)
    out, *rest = (torch.as_tensor(factor) for factor in found)
    return balance((out * torch.as_tensor(sizes), *rest))


def shrunk(study: sc.Study, layer: str, factors: Factors, slack: float) -> Factors:
    """The same after error-preserving correction."""
    target = Target.of(study.model.get_submodule(layer).weight.detach().double()[None])
    lost = target.kernel[0] - torch.einsum("or,ir,yr,xr->oiyx", *factors)
    fit = Fit(tuple(factor[None, None] for factor in factors), lost.square().sum().reshape(1, 1))
    return tuple(factor[0, 0] for factor in error_preserving_correction(target, fit, slack=slack).factors)


@torch.no_grad()
def put(module: nn.Module, factors: Factors) -> None:
    """Make these factors the weights of the layers that compute with them."""
    out, *others = factors
    for part, values in zip(module.children(), [*(factor.T for factor in others), out], strict=True):
        part.weight.copy_(values.reshape(part.weight.shape))


def energies(dense: nn.Module, model: nn.Module) -> Iterator[tuple[float, float]]:
    """For each factorized layer how large its rank-one terms are together, as a multiple of what they sum to, and its relative error."""
    for name, module in model.named_modules():
        if hasattr(module, "depthwise0"):
            reduce, *depthwise, expand = (part.weight.detach().double() for part in module)
            norms = torch.stack([part.flatten(1).norm(dim=1) for part in (reduce, *depthwise, expand.transpose(0, 1))]).prod(0)
            kernel = dense.get_submodule(name).weight.detach().double()
            spatial = [part.flatten(1) for part in depthwise]
            lost = kernel - torch.einsum("or,ri,ry,rx->oiyx", expand.flatten(1), reduce.flatten(1), *spatial)
            yield float(norms.square().sum() / kernel.square().sum()), float(lost.norm() / kernel.norm())


def trained(model: nn.Module, images: Tensor, labels: Tensor, rate: float, batch: int) -> list[float]:
    """The loss of each step of one epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    losses = []
    model.train()
    for picked in order[: len(order) // batch * batch].split(batch):
        loss = F.cross_entropy(model(images[picked]), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def in_runs(losses: list[float]) -> tuple[float, ...]:
    """Means of equal runs of steps."""
    return tuple(float(run.mean()) for run in torch.tensor(losses).tensor_split(RUNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--fits", nargs="*", choices=FITS, default=list(FITS))
    parser.add_argument("--rates", type=float, nargs="*", default=[0.001, 0.01])
    parser.add_argument("--train", type=int, default=3200, help="images of the epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", default="layer*", help="layers to factorize, as a glob")
    parser.add_argument("--removed", type=float, default=0.5, help="part of each layer's parameters that goes")
    parser.add_argument("--iterations", type=int, default=100, help="of tensorly's fit")
    parser.add_argument("--slack", type=float, default=1.01, help="what the correction may add to the error, as a factor")
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--json", help="append the rows to this file")
    options = parser.parse_args()
    images, labels = cifar10(options.images, "train", options.train)
    metric = top1(*cifar10(options.images, "test", options.test))
    dense = cifar_resnet(options.weights)
    study = sc.study(dense, images[:1])
    print(f"dense {metric(dense):.1f}")
    for fit in options.fits:
        model = factorized(study, fit, options)
        found, errors = zip(*energies(dense, model), strict=True)
        told = sum(errors) / len(errors), sum(found) / len(found), max(found)
        for rate in options.rates:
            start, tuned = time.perf_counter(), copy.deepcopy(model)
            losses = in_runs(trained(tuned, images, labels, rate, options.batch))
            row = Row(fit, rate, *told, metric(model), losses, metric(tuned))
            curve = " ".join(f"{loss:.2f}" for loss in losses)
            print(
                f"| {fit} | {told[0]:.3f} | {told[1]:.3g}, {told[2]:.3g} | {row.before:.1f} | {rate:g} | {curve} | {row.after:.1f} |",
                end="",
            )
            print(f" {time.perf_counter() - start:.0f} s", flush=True)
            if options.json:
                with open(options.json, "a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
