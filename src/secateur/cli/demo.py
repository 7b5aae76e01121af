"""The whole road on a trained classifier, told as it goes."""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.rule import Rule
from rich.text import Text
from torch import Tensor, nn

import secateur.cli.demo_data as material
from secateur.allocate import Options
from secateur.cli.bundles import option
from secateur.cli.command import Answer
from secateur.cli.destination import command_line
from secateur.cli.progress import working
from secateur.cli.results import Timing
from secateur.pipeline import apply
from secateur.plan import Plan
from secateur.recover import Refit
from secateur.report import console_report, json_report
from secateur.result import Result
from secateur.study import Study, study
from secateur.study.suited import suited
from secateur.target import Target

REMAINS = 0.8
CROPS = 4
"""Of each image, for the refit; half as many for the scores."""
EVEN = Options(step_size=8)
"""ONNX Runtime is twice as slow as before the cut where widths are no multiples of its vectors."""


@dataclass(frozen=True)
class Demonstration:
    """Demo."""

    out: Path = field(default=Path("out/demo"), metadata=option(metavar="DIRECTORY"))
    """Where the files go; what an earlier demo left there is replaced."""
    onnx: bool | None = field(default=None, metadata=option("--onnx/--no-onnx"))
    """Write model.onnx; by default where the extra onnx is installed."""


def demo(settings: Demonstration, timing: Timing) -> Generator[RenderableType, None, Answer]:
    """Prune EfficientNet-Lite0 with its ImageNet weights to 0.8 of the MACs: list, cut, prove, recover, measure, save.

    Example: secateur demo --out out/demo
    """
    yield Rule("1. A trained model", align="left")
    with working("Loading the model and the images"):
        model = material.trained_classifier()
        pictures, labels = material.labelled_images()
        images = material.centre(pictures)
    yield Text(f"EfficientNet-Lite0, trained on ImageNet, and {len(labels)} labelled images: a smoke test, no benchmark.")
    metrics = {"accuracy before": top1(model, images, labels)}
    found = yield from _looked_at(model, images)
    plan = yield from _planned(found, pictures)
    result = yield from _cut(found, plan)
    metrics["accuracy after"] = top1(result.model, images, labels)
    result, metrics["accuracy recovered"] = yield from _recovered(result, found, pictures, labels)
    yield from _compared(metrics, len(labels))
    yield Rule("6. Measure and save", align="left")
    note = f"accuracy is the share of {len(labels)} images that are named correctly: a smoke test, no benchmark"
    latency = timing({"dense": found.model, "compressed": result.model}, result.args, result.kwargs)
    result = replace(result, metrics=metrics, latency=latency, notes=(*result.notes, note))
    with working("Writing the files"):
        path = result.save(settings.out, force=True, onnx=settings.onnx, command=command_line())
    return _ending(result, path)


def _looked_at(model: nn.Module, images: Tensor) -> Generator[RenderableType, None, Study]:
    yield Rule("2. What can be cut", align="left")
    with working("Capturing the model and finding its channels"):
        found = study(model, images[:1])
        table = found.layers.table()
    yield table
    return found


def _planned(found: Study, pictures: Sequence[Any]) -> Generator[RenderableType, None, Plan]:
    yield Rule(f"3. A plan: {REMAINS:.0%} of the multiply-adds may remain", align="left")
    target = Target(macs=REMAINS)
    way = suited(found, options=EVEN, target=target, data=_crops(pictures, range(len(pictures)), CROPS // 2, seed=1))
    with working("Choosing channels"):
        plan = way.plan(found, target=target)
    plan = replace(plan, settings={**plan.settings, "source": {"model": f"{material.__name__}:trained_classifier"}})
    removed = sum(len(edit.remove) for edit in plan.prunes)
    yield Text(f"{removed} of {sum(edit.size for edit in plan.prunes)} channels in {len(plan.prunes)} layers go. Nothing is changed yet.")
    yield Text(
        f"Scored by what the next layers lose behind a refit ({way.criterion}), on {CROPS // 2} random crops of each image, and compared by"
        f" how many multiply-adds go with them ({way.allocator}); labels are not used. Widths stay multiples of 8."
    )
    return plan


def _cut(found: Study, plan: Plan) -> Generator[RenderableType, None, Result]:
    yield Rule("4. Cut and prove", align="left")
    with working("Cutting and proving"):
        result = apply(found, plan)
    trials = f"{len(result.proof.trials)} trials in {result.proof.dtype}"
    yield Text(f"The smaller model equals the dense one with masked channels: error {result.proof.error:.1e}, {trials}.", style="green")
    return result


def _recovered(
    result: Result, found: Study, pictures: Sequence[Any], labels: Tensor
) -> Generator[RenderableType, None, tuple[Result, float]]:
    """Accuracy with layers refitted on other images than those tested; the model is left with a refit on all of them."""
    yield Rule("5. Refit the layers behind the cut", align="left")
    halves = [list(range(0, len(pictures), 2)), list(range(1, len(pictures), 2))]
    refit, cut, right = Refit(), found.cut(result.plan), 0.0
    for calibration, test in (halves, halves[::-1]):
        half = copy.deepcopy(result.model)
        refit(half, cut, _crops(pictures, calibration, CROPS))
        right += top1(half, material.centre([pictures[i] for i in test]), labels[test]) * len(test)
    done = refit(result.model, cut, _crops(pictures, range(len(pictures)), CROPS))
    yield Text(
        f"{len(done.changes)} layers, in closed form, from {CROPS} random crops of each image. Tested in two halves: a refit on ten images"
        " serves the other ten, so that no image is tested with its own. The saved model is refitted on all twenty."
    )
    return result.taken_from(done), right / len(pictures)


def _crops(pictures: Sequence[Any], chosen: Sequence[int], count: int, *, seed: int = 0) -> list[Tensor]:
    return list(material.random_crops([pictures[i] for i in chosen], count, seed=seed))


def _compared(metrics: Mapping[str, float], count: int) -> Iterator[RenderableType]:
    for name, value in metrics.items():
        yield Text(f"  {name:<18}{value:>6.0%}  ({round(value * count)} of {count})", style="bold")


def _ending(result: Result, path: Path) -> Answer:
    told = json.loads(json_report(result, command=command_line()))
    files = ", ".join(sorted(file.name for file in path.iterdir()))
    lines = [Text(f"{path} holds {files}."), Text(f"The report: {path / 'report.html'}", style="bold")]
    return Answer([console_report(result), *lines], told | {"directory": str(path)})


def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose highest logit is that of their label."""
    with working("Classifying the images"), torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())
