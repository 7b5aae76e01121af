"""Latency of layers beside that of their factors, in eager torch and ONNX Runtime, and how well multiply-adds predict it.

    python benchmarks/decompose_latency.py --threads 1

Layers of usual networks at the sizes at which these run them, one image, at ranks that leave about a half and a quarter of the
multiply-adds. Dense and factorized take turns. The last lines give the correlation of the two ratios over all rows, also by method: of
their order, with multiply-adds in hundredths since the half and the quarter are met by rounding, and of their values. At last, of how many
layers and methods the lower of two ranks was the faster one.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from secateur.decompose import CP, SVD, ByRatio, Call, Decomposition, LayerSpec, Refusal, SpatialSVD, Tucker, choose_rank
from secateur.decompose.factors import cost_at
from secateur.decompose.spec import read_spec
from secateur.measure import compare_latency
from secateur.plan import Factorize
from secateur.rewrite.factorize import with_skeletons


@dataclass(frozen=True)
class Row:
    """One layer and its factors: parts of the dense layer's multiply-adds and of its time."""

    layer: str
    method: str
    rank: tuple[int, ...]
    macs: float
    torch: float
    onnx: float

    def __str__(self) -> str:
        rank = " x ".join(map(str, self.rank))
        return f"| {self.layer} | {self.method} | {rank} | {self.macs:.2f} | {self.torch:.2f} | {self.onnx:.2f} |"


def layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    for width, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        yield (
            f"conv 3x3, {width} -> {width} at {size}",
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            torch.randn(1, width, size, size),
        )
    for inputs, outputs, size in ((64, 256, 56), (256, 1024, 14), (512, 2048, 7), (96, 24, 56)):
        yield f"conv 1x1, {inputs} -> {outputs} at {size}", nn.Conv2d(inputs, outputs, 1), torch.randn(1, inputs, size, size)
    for inputs, outputs, tokens in ((384, 1536, 32), (768, 3072, 128), (2048, 1000, 1)):
        yield f"linear, {inputs} -> {outputs}, {tokens} tokens", nn.Linear(inputs, outputs), torch.randn(1, tokens, inputs)


def session(model: nn.Module, x: Tensor, directory: Path, threads: int) -> Callable[[], object]:
    path = directory / f"{len(list(directory.iterdir()))}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    running = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    values = {running.get_inputs()[0].name: x.numpy()}
    return lambda: running.run(None, values)


def compare(name: str, layer: nn.Module, x: Tensor, method: Decomposition, share: float, options: argparse.Namespace) -> Row | None:
    size = x.shape[2:] if isinstance(layer, nn.Conv2d) else ()
    rank = choose_rank(layer, method, ByRatio(1 - share, of="macs"), size=size)
    if isinstance(rank, Refusal):
        return None
    models = nn.ModuleDict({"dense": layer, "factors": copy.deepcopy(layer)}).eval()
    # Values do not matter to time, so nothing is fitted.
    with_skeletons(models, [Factorize("factors", method.name, rank)])
    spec = read_spec(layer)
    assert isinstance(spec, LayerSpec)
    share = cost_at(spec, method, rank, [Call(1, tuple(size))]).macs / spec.macs(size)
    eager = compare_latency(models, (x,), repeats=options.repeats, threads=options.threads, budget_s=4)
    with tempfile.TemporaryDirectory() as directory:
        running = {key: session(model, x, Path(directory), options.threads) for key, model in models.items()}
        onnx = compare_latency(running, repeats=options.repeats, budget_s=4)
    ratios = [times["factors"].median_ms / times["dense"].median_ms for times in (eager, onnx)]
    return Row(name, method.name, rank, share, *ratios)


def correlation(rows: Sequence[Row], runtime: str) -> str:
    macs, times = np.array([round(row.macs, 2) for row in rows]), np.array([getattr(row, runtime) for row in rows])
    found = f"correlation {spearmanr(macs, times).statistic:.2f} of ranks, {pearsonr(macs, times).statistic:.2f} of values"
    return f"{found}; median time {np.median(times):.2f} at median MACs {np.median(macs):.2f}; faster {(times < 1).sum()} of {len(rows)}"


def lower_is_faster(rows: Sequence[Row], runtime: str) -> str:
    pairs = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.macs):
        pairs[row.layer, row.method].append(getattr(row, runtime))
    both = [times for times in pairs.values() if len(times) == 2]
    return f"the lower of two ranks was faster {sum(low < high for low, high in both)} of {len(both)} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[Row] = []
    for name, layer, x in layers():
        for method in (SVD(), Tucker(), SpatialSVD(), CP()):
            for share in (0.5, 0.25):
                row = compare(name, layer, x, method, share, options)
                if row is not None:
                    rows.append(row)
                    print(row, flush=True)
    for runtime in ("torch", "onnx"):
        print(f"{runtime}: {correlation(rows, runtime)}; {lower_is_faster(rows, runtime)}")
        for method in dict.fromkeys(row.method for row in rows):
            print(f"  {method}: {correlation([row for row in rows if row.method == method], runtime)}")


if __name__ == "__main__":
    main()
