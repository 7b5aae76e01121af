"""Measure factorizations against tensorly's: error and time on the same kernels and ranks, in one run, interleaved.

    python benchmarks/decompose.py                 # under two minutes on two cores
    python benchmarks/decompose.py --json out.json --sizes 64 128 256 512 --cp-sizes 64 128 256 512

Kernels are sums of rank-one terms of falling size plus noise, so that neither a low rank nor a flat spectrum makes the problem trivial.
Both sides start from the same float64 array; ours includes everything from the layer to the finished modules. Times are those of the
processor, the best of some runs, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import tensorly
import torch
from numpy.typing import NDArray
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

from secateur.decompose import CP, SVD, ByVBMF, Refusal, Tucker, choose_rank, decompose

Array = NDArray[np.float64]
RESNET50_WIDTHS = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3


@dataclass(frozen=True)
class Row:
    """One problem: errors relative to the kernel, seconds of the processor, ratios ours / theirs."""

    method: str
    shape: tuple[int, ...]
    rank: tuple[int, ...]
    our_error: float
    their_error: float
    our_seconds: float
    their_seconds: float

    @property
    def error_ratio(self) -> float:
        return self.our_error / self.their_error

    @property
    def time_ratio(self) -> float:
        return self.our_seconds / self.their_seconds


def kernel(width: int, *, seed: int = 0, noise: float = 0.4, decay: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(size, width, generator=generator, dtype=torch.float64) for size in (width, width, 3, 3)]
    sizes = torch.arange(1, width + 1, dtype=torch.float64) ** -decay
    terms = torch.einsum("or,ir,yr,xr->oiyx", *(factor / factor.norm(dim=0) * sizes**0.25 for factor in factors))
    rest = torch.randn(terms.shape, generator=generator, dtype=torch.float64)
    return terms / terms.norm() + noise * rest / rest.norm()


def matrix(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return weight * torch.arange(1, columns + 1, dtype=torch.float64) ** -0.5


def layer_of(weight: Tensor) -> nn.Module:
    layer: nn.Module = nn.Linear(*reversed(weight.shape), dtype=torch.float64) if weight.dim() == 2 else _convolution(weight)
    layer.weight = nn.Parameter(weight)
    return layer


def _convolution(weight: Tensor) -> nn.Module:
    return nn.Conv2d(weight.shape[1], weight.shape[0], 3, dtype=torch.float64)


def compare(weight: Tensor, method: SVD | Tucker | CP, rank: tuple[int, ...], theirs: Callable[[Array], Array], *, repeats: int) -> Row:
    layer, array = layer_of(weight), weight.numpy()
    ours, others, our_error, their_error = [], [], 0.0, 0.0
    for _ in range(repeats):
        start = time.process_time()
        our_error = decompose(layer, method, rank, accept_dearer=True).relative_error
        ours.append(time.process_time() - start)
        start = time.process_time()
        approximation = theirs(array)
        others.append(time.process_time() - start)
        their_error = float(np.linalg.norm(approximation - array) / np.linalg.norm(array))
    return Row(method.name, tuple(weight.shape), rank, our_error, their_error, min(ours), min(others))


def their_svd(rank: int) -> Callable[[Array], Array]:
    def run(array: Array) -> Array:
        u, s, v = tensorly.tenalg.svd_interface(array, n_eigenvecs=rank)
        return (u * s) @ v

    return run


def their_tucker(rank: tuple[int, ...]) -> Callable[[Array], Array]:
    def run(array: Array) -> Array:
        (core, factors), _ = partial_tucker(tensorly.tensor(array), rank=list(reversed(rank)), modes=[0, 1])
        return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])

    return run


def their_cp(rank: int) -> Callable[[Array], Array]:
    def run(array: Array) -> Array:
        return tensorly.cp_to_tensor(parafac(tensorly.tensor(array), rank=rank, n_iter_max=100, init="svd", random_state=0))

    return run


def resnet50_seconds() -> tuple[float, list[str]]:
    """Time VBMF ranks and Tucker factors for the shapes of all 3x3 layers of ResNet-50, and list the ranks."""
    layers = [layer_of(kernel(width, seed=seed)) for seed, width in enumerate(RESNET50_WIDTHS)]
    start, ranks = time.process_time(), []
    for layer in layers:
        rank = choose_rank(layer, Tucker(), ByVBMF())
        ranks.append(rank.reason if isinstance(rank, Refusal) else str(rank))
        if not isinstance(rank, Refusal):
            decompose(layer, Tucker(), rank)
    return time.process_time() - start, ranks


def show(row: Row) -> None:
    name = f"{row.method} {'x'.join(map(str, row.shape))} rank {'/'.join(map(str, row.rank))}"
    print(
        f"{name:34} error {row.our_error:.5f} / {row.their_error:.5f} = {row.error_ratio:.4f}"
        f"   time {row.our_seconds:8.3f} / {row.their_seconds:8.3f} s = {row.time_ratio:.3f}",
        flush=True,
    )


def run(options: argparse.Namespace) -> list[Row]:
    rows = []

    def add(row: Row) -> None:
        rows.append(row)
        show(row)

    for width in options.sizes:
        for part in (4, 2):
            rank = (width // part, width // part)
            add(compare(kernel(width), Tucker(), rank, their_tucker(rank), repeats=options.repeats if width < 512 else 2))
    for width in options.cp_sizes:
        for part in (4, 2):
            if part == 4 or width < 256 or options.json:
                rank = (width // part,)
                add(compare(kernel(width), CP(), rank, their_cp(rank[0]), repeats=options.repeats if width < 128 else 1))
    add(compare(matrix(1024, 4096), SVD(), (128,), their_svd(128), repeats=2))
    add(compare(matrix(4096, 1024), SVD(), (512,), their_svd(512), repeats=2))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 128, 256, 512], help="channels of the kernels given to Tucker")
    parser.add_argument("--cp-sizes", type=int, nargs="*", default=[64, 128, 256], help="channels of the kernels given to CP")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the small problems")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="tensorly")
    rows = run(options)
    seconds, ranks = resnet50_seconds()
    print(f"ResNet-50, all {len(ranks)} 3x3 layers, VBMF ranks and Tucker factors: {seconds:.1f} s; ranks {', '.join(ranks)}")
    if options.json:
        conditions = {
            "torch": torch.__version__,
            "tensorly": tensorly.__version__,
            "threads": torch.get_num_threads(),
            "cpu": platform.processor(),
        }
        rows_out = [{**asdict(row), "error_ratio": row.error_ratio, "time_ratio": row.time_ratio} for row in rows]
        with open(options.json, "w") as file:
            json.dump({"conditions": conditions, "rows": rows_out, "resnet50_seconds": seconds}, file, indent=1)


if __name__ == "__main__":
    main()
