"""Accuracy of ResNet-56 on CIFAR-10 after a cut to FPGM's FLOPs and some training, with and without the dense model as teacher.

    python benchmarks/finetune.py --images cifar10-jpeg.zip --weights resnet56.th --epochs 1 --train 2000 --test 500
    python benchmarks/finetune.py --images cifar10-jpeg.zip --weights tuned.th --epochs 200 --rate 0.1 --batch 128
    python benchmarks/finetune.py ... --share 0.389              # a speed-up of 2.57; 0.476 is one of 2.1
    python benchmarks/finetune.py --table

The second line is the full recipe (200 epochs as in He et al., CVPR 2019; for a GPU, or several through torchrun). Every way removes
52.6 % of the multiply-adds by distances to the geometric median and trains for the same epochs, on the same batches in the same order,
with the same rate, schedule and augmentation. Secateur cuts the inner convolutions of every block, or the stream too; torch-pruning cuts
the same convolutions to the same widths, and is trained by the same loop, without a teacher. One way is what ``compress`` takes by itself.
``dense`` is the uncut model after the same training, which tells where images are JPEG files that the weights were not trained on. Results
go as JSON lines into benchmarks/results/finetune.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import secateur as sc
from data_sets import cifar10, cifar_resnet, top1

RESULTS = Path(__file__).parent / "results" / "finetune.jsonl"
SHARE = 1 - 0.526
"""Of the multiply-adds that remains in FPGM's setting for ResNet-56."""
TAUGHT = sc.Distillation(label_weight=0.5, logit_weight=0.5, temperature=4.0, feature_weight=0.1)


class Flipped(Dataset[tuple[Tensor, Tensor]]):
    """Images moved by up to four pixels and mirrored at random."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = functional.pad(images, (4, 4, 4, 4)), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        top, left, mirror = (int(torch.randint(0, high, ())) for high in (9, 9, 2))
        image = self.images[place, :, top : top + 32, left : left + 32]
        return (image.flip(-1) if mirror else image), self.labels[place]


@dataclass(frozen=True, eq=False)
class Start:
    """A model to train, what remains of its multiply-adds, and where its channels come from."""

    model: nn.Module
    macs: float
    cut: Any = None


def others(study: sc.Study) -> list[str]:
    """All layers but the inner convolution of each block."""
    return [layer.name for layer in study.layers if not (layer.prunable and layer.name.endswith(".conv1"))]


def inner_plan(study: sc.Study, share: float) -> sc.Plan:
    """The inner convolution of each block loses the same fraction."""
    return study.plan(sc.GeometricMedian(), target=sc.Target(macs=share), exclude=others(study))


def inner(dense: nn.Module, images: Tensor, calibration: Tensor | None, share: float) -> Start:
    """The inner convolutions alone, as torch-pruning can; with calibration images refitted before training."""
    study = sc.study(dense, images)
    return _cut(study, inner_plan(study, share), calibration)


def everywhere(dense: nn.Module, images: Tensor, calibration: Tensor | None, share: float) -> Start:
    """All groups cut alike, the residual stream with them."""
    study = sc.study(dense, images)
    return _cut(study, study.plan(sc.GeometricMedian(), target=sc.Target(macs=share)), calibration)


def chosen(dense: nn.Module, images: Tensor, calibration: Tensor | None, share: float) -> Start:
    """What ``compress`` chooses by itself: channels of all groups by what the outputs lose, then a refit."""
    result = sc.compress(dense, images, target=sc.Target(macs=share), data=calibration, latency=False)
    return Start(result.model, result.after.macs / result.before.macs, sc.study(dense, images).cut(result.plan))


def _cut(study: sc.Study, plan: sc.Plan, calibration: Tensor | None) -> Start:
    result, cut = sc.apply(study, plan), study.cut(plan)
    if calibration is not None:
        sc.Refit(samples=None)(result.model, cut, calibration)
    return Start(result.model, result.after.macs / result.before.macs, cut)


def theirs(dense: nn.Module, images: Tensor, calibration: Tensor | None, share: float) -> Start:
    """torch-pruning with its FPGM importance on the same convolutions, to the same widths."""
    import torch_pruning as tp

    model, plan = copy.deepcopy(dense), inner_plan(sc.study(dense, images), share)
    before, _ = tp.utils.count_ops_and_params(model, images)
    ratios = {model.get_submodule(edit.group): edit.ratio for edit in plan.prunes}
    ignored = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in ratios]
    options: dict[str, Any] = {"importance": tp.importance.FPGMImportance(), "pruning_ratio": 0.0, "ignored_layers": ignored}
    tp.pruner.BasePruner(model, images, pruning_ratio_dict=ratios, **options).step()
    after, _ = tp.utils.count_ops_and_params(model, images)
    return Start(model, after / before)


def whole(dense: nn.Module, images: Tensor, calibration: Tensor | None, share: float) -> Start:
    """The dense model as it is."""
    return Start(copy.deepcopy(dense), 1.0)


@dataclass(frozen=True)
class Way:
    """How a model is cut and trained."""

    name: str
    start: Callable[[nn.Module, Tensor, Tensor | None, float], Start]
    taught: bool = False
    refit: bool = False
    steps: int = 1
    """Cuts with training between them; all training together takes the epochs of the others."""


WAYS = (
    Way("Secateur, inner", inner),
    Way("Secateur, inner, distilled", inner, taught=True),
    Way("Secateur, inner, refit, distilled", inner, taught=True, refit=True),
    Way("Secateur, inner, in three steps, distilled", inner, taught=True, steps=3),
    Way("Secateur, stream too, refit, distilled", everywhere, taught=True, refit=True),
    Way("Secateur, compress, distilled", chosen, taught=True, refit=True),
    Way("torch-pruning FPGM, inner", theirs),
    Way("dense", whole),
)


def run(way: Way, options: argparse.Namespace) -> dict[str, Any]:
    """Cut, train and measure in one way."""
    torch.manual_seed(options.seed)
    dense, metric = cifar_resnet(options.weights), top1(*cifar10(options.images, "test", options.test))
    images, labels = cifar10(options.images, "train", options.train)
    start = way.start(dense, images[:25], images[:1000] if way.refit else None, options.share)
    bare, began = metric(start.model.eval()), time.process_time()
    loader = DataLoader(Flipped(images, labels), batch_size=options.batch, shuffle=True, drop_last=True)
    settings = sc.FineTune(epochs=options.epochs, rate=options.rate, weight_decay=5e-4, seed=options.seed, distillation=TAUGHT)
    settings = replace(settings, checkpoints=options.checkpoints and options.checkpoints / way.name.replace(" ", "-"))
    tuned = in_steps(way, dense, images[:25], loader, settings, options) if way.steps > 1 else at_once(way, dense, start, loader, settings)
    return {
        "way": way.name,
        "macs": start.macs,
        "dense": metric(dense),
        "before": bare,
        "after": metric(tuned.eval()),
        "cpu_s": round(time.process_time() - began),
        "machine": platform.machine(),
        **{name: getattr(options, name) for name in ("epochs", "rate", "batch", "train", "test", "seed")},
        "weights": options.weights.name,
    }


def at_once(way: Way, dense: nn.Module, start: Start, loader: Any, settings: sc.FineTune) -> nn.Module:
    """One run of training behind one cut."""
    taught = {"teacher": dense, "cut": start.cut} if way.taught else {}
    return settings(start.model, loader, resume=settings.checkpoints is not None, **taught).model


def in_steps(way: Way, dense: nn.Module, images: Tensor, loader: Any, settings: sc.FineTune, options: argparse.Namespace) -> nn.Module:
    """Cut and train in turn."""
    schedule = sc.Iterative(steps=way.steps, tune=replace(settings, epochs=max(1, options.epochs // way.steps)), distil=way.taught)
    wish = {"target": sc.Target(macs=options.share), "criterion": sc.GeometricMedian(), "exclude": others(sc.study(dense, images))}
    return schedule(dense, images, loader, resume=settings.checkpoints is not None, **wish).result.model


def table() -> Iterator[str]:
    """What is in the results."""
    yield "| way | MACs | epochs | images | dense | after the cut | after training |"
    yield "|---|---|---|---|---|---|---|"
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        figures = " | ".join(f"{row[key]:.1f}" for key in ("dense", "before", "after"))
        yield f"| {row['way']} | {row['macs']:.1%} | {row['epochs']} | {row['train']:,} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--train", type=int, default=50_000, help="training images")
    parser.add_argument("--test", type=int, default=10_000, help="test images, a multiple of 25")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=SHARE, help="of the multiply-adds that remains; FPGM's by default")
    parser.add_argument("--checkpoints", type=Path, help="directory to resume from after a kill")
    parser.add_argument("--way", action="append", choices=[way.name for way in WAYS], help="only this one (repeatable)")
    parser.add_argument("--table", action="store_true", help="print what is in the results")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table()))
        return
    RESULTS.parent.mkdir(exist_ok=True)
    for way in WAYS:
        if not options.way or way.name in options.way:
            row = run(way, options)
            print(f"{way.name}: {row['dense']:.1f} dense, {row['before']:.1f} cut, {row['after']:.1f} trained", flush=True)
            if not torch.distributed.is_initialized() or not torch.distributed.get_rank():
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
