"""What fitting layers of one shape together would gain: spectra and Tucker factors of a network's 3 x 3 kernels, one by one and stacked.

    python benchmarks/decompose_together.py resnet56.th

Times are the processor's on one thread, the best of three. Ranks are a quarter of the channels where factors are fitted; ResNet-50 has
random weights. "As it is" is the time of VBMF ranks for all layers and of the factors at these, as they are found: one layer after another.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from data_sets import cifar_resnet
from secateur.decompose import ByVBMF, Refusal, Tucker, choose_rank, decompose
from secateur.decompose.hooi import hooi
from secateur.decompose.linalg import squared_singular_values


def clock(work: Callable[[], object]) -> float:
    """Processor's milliseconds, the best of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def kernels(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.in_channels > 3]


def stacked(layers: Sequence[nn.Conv2d], *, together: bool) -> list[Tensor]:
    """Kernels ``(layers, out, in, 3, 3)``, those of one shape together or each alone."""
    shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for layer in layers:
        shapes[layer.weight.shape].append(layer.weight.detach().double())
    groups = shapes.values() if together else [[one] for same in shapes.values() for one in same]
    return [torch.stack(group) for group in groups]


def spectra(stacks: Sequence[Tensor]) -> list[Tensor]:
    return [squared_singular_values(unfolding) for stack in stacks for unfolding in Tucker().unfoldings(stack)]


def factors(stacks: Sequence[Tensor]) -> list[object]:
    settings = Tucker()
    quarter = [(stack.shape[2] // 4, stack.shape[1] // 4) for stack in stacks]
    pairs = zip(stacks, quarter, strict=True)
    return [hooi(stack, rank, tolerance=settings.tolerance, iterations=settings.iterations) for stack, rank in pairs]


def as_it_is(layers: Sequence[nn.Conv2d]) -> None:
    for layer in layers:
        rank = choose_rank(layer, Tucker(), ByVBMF())
        if not isinstance(rank, Refusal):
            decompose(layer, Tucker(), rank)


def row(name: str, model: nn.Module) -> str:
    layers = kernels(model)
    alone, together = stacked(layers, together=False), stacked(layers, together=True)
    times = [clock(partial(work, stacks)) for work in (spectra, factors) for stacks in (alone, together)]
    whole = clock(lambda: as_it_is(layers))
    cells = (f"{times[0]:.0f}, {times[1]:.0f}", f"{times[2]:.0f}, {times[3]:.0f}", f"{whole:.0f}")
    return f"| {name} | {len(layers)} in {len(together)} shapes | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="state dict of a CIFAR-10 ResNet-56")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| network | layers | spectra: alone, together (ms) | factors: alone, together (ms) | as it is (ms) |\n|---|---|---|---|---|")
    for name, model in (("ResNet-56", cifar_resnet(options.weights)), ("ResNet-50", resnet50())):
        print(row(name, model), flush=True)


if __name__ == "__main__":
    main()
