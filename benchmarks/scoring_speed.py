"""The time that scoring alone takes, criterion by criterion, beside torch-pruning where it has the criterion.

    python benchmarks/scoring_speed.py                  # ResNet-50 and DeiT-B, three runs each
    python benchmarks/scoring_speed.py resnet50 --runs 5 --samples 64 --json

The model is captured and its groups are found beforehand, on either side. Seconds are CPU seconds of the best run. Criteria that look at
activations run --samples random images through the model, and most of their time is that; --size sets how large the images are.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import secateur as sc

MODELS = ("resnet50", "deit_base")
CRITERIA: Mapping[str, Any] = {
    "L2": sc.L2(),
    "L2, batch norm folded": sc.L2(fold_bn=True),
    "GM": sc.GeometricMedian(),
    "NN": sc.NuclearNorm(),
    "SNP": sc.SNP(),
    "Random": sc.Random(),
}


def build(name: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """The model with random weights, and example images."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, size, size)
    if name == "deit_base":
        import timm

        return timm.create_model("deit_base_patch16_224", img_size=size).eval(), images
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval(), images


def ours(model: nn.Module, images: torch.Tensor, samples: int) -> Iterator[tuple[str, bool, Callable[[], Any]]]:
    """Each criterion, and whether it looks at activations of this model."""
    study = sc.study(model, images)
    data = torch.randn(samples, *images.shape[1:])
    for title, criterion in CRITERIA.items():
        yield title, reads(study, criterion), partial(study.scores, criterion, data=data, samples=samples)


def reads(study: sc.Study, criterion: Any) -> bool:
    try:
        study.scores(criterion)
    except sc.SelectionError:
        return True
    return False


def theirs(model: nn.Module, images: torch.Tensor) -> Iterator[tuple[str, Callable[[], Any]]]:
    """torch-pruning's importances of the groups that it finds."""
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, example_inputs=images[:1])
    groups = list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))
    importances = {"L2": tp.importance.GroupMagnitudeImportance(p=2), "GM": tp.importance.FPGMImportance(p=2)}
    for title, importance in (importances | {"Random": tp.importance.RandomImportance()}).items():
        yield title, partial(every, importance, groups)


def every(importance: Callable[[Any], Any], groups: list[Any]) -> None:
    for group in groups:
        importance(group)


def cpu_s(work: Callable[[], Any], runs: int) -> float:
    """CPU seconds of the fastest of some runs."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def rows(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model, images = build(name, options.size)
    peer: dict[str, float] = {}
    for title, work in theirs(model, images):
        peer[title] = cpu_s(work, options.runs)
    for title, looks, work in ours(model, images, options.samples):
        yield {
            "model": name,
            "criterion": title,
            "cpu_s": cpu_s(work, 1 if looks else options.runs),
            "samples": options.samples if looks else 0,
            "torch_pruning_cpu_s": peer.get(title),
        }


def line(row: Mapping[str, Any]) -> str:
    peer = "" if row["torch_pruning_cpu_s"] is None else f"{row['torch_pruning_cpu_s']:.2f}"
    return f"| {row['model']} | {row['criterion']} | {row['samples'] or ''} | {row['cpu_s']:.2f} | {peer} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"some of {', '.join(MODELS)}; all by default")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="images for criteria that look at activations")
    parser.add_argument("--size", type=int, default=224, help="pixels along a side")
    parser.add_argument("--json", action="store_true", help="one line of JSON a criterion")
    options = parser.parse_args()
    if not options.json:
        print("| model | criterion | images | CPU seconds | torch-pruning |\n|---|---|---|---|---|")
    for name in options.models or MODELS:
        for row in rows(name, options):
            print(json.dumps(row) if options.json else line(row), flush=True)


if __name__ == "__main__":
    main()
