"""What each criterion costs in accuracy, without any training: a transformer by parts, and two convolutional nets beside torch-pruning.

    python benchmarks/criteria.py minilm --pairs stsb/dev.csv
    python benchmarks/criteria.py lite0 --images imagenet-500-classes-256.zip
    python benchmarks/criteria.py resnet56 --images cifar10-jpeg.zip --weights tuned.th       # tune_cifar.py makes them

MiniLM loses the given fraction of queries and keys, values, hidden neurons, or all of these; the convolutional nets lose it inside their
blocks, so that torch-pruning cuts the very same groups to the same widths. Nothing is recovered afterwards, unless --batch-norm asks for
statistics estimated anew. One row a model goes to
--json as it comes; --plot draws all rows. Models are drafts of the cut; --prove proves each of them too.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

import secateur as sc
from data_sets import TASKS, TOGETHER, Task, add_options
from secateur.rewrite import draft
from secateur.target import remaining

CRITERIA: Mapping[str, Any] = {
    "SNP": sc.SNP(),
    "L2": sc.L2(),
    "L2, batch norm folded": sc.L2(fold_bn=True),
    "GM": sc.GeometricMedian(),
    "NN": sc.NuclearNorm(),
    "Random": sc.Random(),
}
PARTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "minilm": {"q, k": ("*.qk",), "v": ("*.v",), "FFN": ("*.intermediate.dense",), "all": ("*.qk", "*.v", "*.intermediate.dense")},
    "lite0": {"blocks": ("*._expand_conv",)},
    "resnet56": {"blocks": ("layer*.conv1",)},
}
PEERS = ("torch-pruning L2", "torch-pruning FPGM")


@dataclass(frozen=True)
class Row:
    """One pruned model."""

    task: str
    part: str
    criterion: str
    ratio: float
    metric: float
    dense: float
    macs: float
    """Of the dense model's."""
    parameters: float


def named(study: sc.Study, patterns: Sequence[str]) -> list[sc.Layer]:
    """The layers that globs stand for."""
    return [layer for layer in study.layers if layer.prunable and any(fnmatchcase(layer.name, p) for p in patterns)]


def ratios(layers: Sequence[sc.Layer], ratio: float) -> dict[str, float]:
    """A ratio for each layer that keeps the whole part of what the ratio leaves, which is how torch-pruning rounds."""
    widths = {layer.name: int(layer.layout.rpartition("x")[2]) for layer in layers}
    return {name: math.ceil(width * ratio - 1e-9) / width for name, width in widths.items()}


def ours(study: sc.Study, task: Task, name: str, options: argparse.Namespace) -> Iterator[Row]:
    """One row for each criterion, part and ratio."""
    dense, settings = task.metric(task.model), sc.Options(layer_norm="tss_norm")
    print(f"{name}: dense {dense:.2f}, {study.macs.total // TOGETHER:,} MACs", flush=True)
    titles = options.criteria or [c for c in CRITERIA if name != "minilm" or "batch norm" not in c]
    by_title = study.scores_by(
        {title: CRITERIA[title] for title in titles}, data=task.calibration, options=settings, samples=options.calibration
    )
    for title, scores in by_title.items():
        for part, patterns in PARTS[name].items():
            for ratio in options.ratios:
                wanted = ratios(named(study, patterns), ratio)
                plan = study.plan(CRITERIA[title], ratios=wanted, scores=scores, options=settings)
                cut = study.cut(plan)
                left = [remaining(target, cut, study.macs) for target in (sc.Target(macs=0.5), sc.Target(parameters=0.5))]
                model = sc.apply(study, plan).model if options.prove else draft(cut)
                yield Row(name, part, title, ratio, measured(model, task, options), dense, *left)


def theirs(study: sc.Study, task: Task, name: str, options: argparse.Namespace) -> Iterator[Row]:
    """torch-pruning on the same groups: layers that write something else are left alone."""
    import torch_pruning as tp

    dense = task.metric(task.model)
    importances = tp.importance.GroupMagnitudeImportance(p=2), tp.importance.FPGMImportance(p=2)
    for title, importance in zip(PEERS, importances, strict=True):
        for part, patterns in PARTS[name].items():
            cut = {layer.name for layer in named(study, patterns)}
            for ratio in options.ratios:
                model = copy.deepcopy(task.model)
                alone = [
                    m for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and path not in cut and not _follows(m)
                ]
                tp.BasePruner(model, task.example(1), importance=importance, pruning_ratio=ratio, ignored_layers=alone).step()
                small = sc.study(model, task.example(TOGETHER))
                left = small.macs.total / study.macs.total, small.parameters / study.parameters
                yield Row(name, part, title, ratio, measured(model, task, options), dense, *left)


def measured(model: nn.Module, task: Task, options: argparse.Namespace) -> float:
    """The metric of a model as it is, or after its batch-norm statistics were estimated anew."""
    if options.batch_norm:
        sc.reestimate_batch_norm(model, task.calibration)
    return task.metric(model)


def _follows(module: nn.Module) -> bool:
    """Whether a layer is a depthwise convolution, whose channels go with those of the layer before it."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def table(rows: Sequence[Row]) -> str:
    columns = sorted({row.ratio for row in rows})
    lines = [f"| part | criterion | {' | '.join(f'{ratio:.0%}' for ratio in columns)} |", "|---" * (2 + len(columns)) + "|"]
    for part, title in dict.fromkeys((row.part, row.criterion) for row in rows):
        found = {row.ratio: f"{row.metric:.1f}" for row in rows if (row.part, row.criterion) == (part, title)}
        lines.append(f"| {part} | {title} | {' | '.join(found.get(ratio, '') for ratio in columns)} |")
    left = {row.ratio: f"{row.macs:.1%}" for row in rows if row.part == rows[-1].part}
    return "\n".join([*lines, f"| {rows[-1].part} | MACs that remain | {' | '.join(left[ratio] for ratio in columns)} |"])


def plot(rows: Sequence[Row], path: Path) -> None:
    """One panel a part: the metric against the fraction removed, a line a criterion. Needs matplotlib."""
    from matplotlib import pyplot

    parts = list(dict.fromkeys(row.part for row in rows))
    figure, panels = pyplot.subplots(1, len(parts), figsize=(3.6 * len(parts), 3.4), sharey=True, squeeze=False)
    for part, panel in zip(parts, panels[0], strict=True):
        for title in dict.fromkeys(row.criterion for row in rows):
            line = sorted((row.ratio, row.metric) for row in rows if (row.part, row.criterion) == (part, title))
            panel.plot([0.0, *(x for x, _ in line)], [rows[0].dense, *(y for _, y in line)], marker="o", label=title)
        panel.set(title=part, xlabel="removed")
    panels[0][0].set_ylabel(rows[0].task)
    panels[0][-1].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, calibration=64, test=500)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--criteria", nargs="*", choices=CRITERIA)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="torch-pruning too, where it knows the model")
    parser.add_argument(
        "--batch-norm", action="store_true", help="estimate the batch-norm statistics of each model anew, on calibration data"
    )
    parser.add_argument("--prove", action="store_true", help="prove every model")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the rows into this file")
    options = parser.parse_args()
    task, rows = TASKS[options.task](options), []
    study = sc.study(task.model, task.example(TOGETHER))
    peers = theirs(study, task, options.task, options) if options.peer and options.task != "minilm" else iter(())
    for row in itertools.chain(ours(study, task, options.task, options), peers):
        rows.append(row)
        print(row, flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    print(table(rows))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
