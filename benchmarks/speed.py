"""Time from a model to a smaller model, without proof, beside torch-pruning in the same run.

    python benchmarks/speed.py                 # all models, three interleaved runs each
    python benchmarks/speed.py resnet50 vit_24 --runs 5 --json

Each run is a process of its own; figures are CPU seconds of that process from the built model to the smaller one, and
how much its peak memory grew beyond the size of the model. Both cut every layer that they can to half by L2 norm.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

MODELS = ("resnet50", "vit_b_16", "efficientnet_b0", "densenet201", "convnext_base", "vit_12", "vit_24", "vit_48", "vit_96")
WAYS = ("secateur", "torch-pruning")


def build(name: str) -> tuple[Any, Any]:
    """The model and an example input."""
    import torch

    torch.manual_seed(0)
    if name.startswith("vit_") and name != "vit_b_16":
        import timm

        depth = int(name.removeprefix("vit_"))
        model = timm.create_model("vit_tiny_patch16_224", depth=depth)
        return model.eval(), torch.randn(1, 3, 224, 224)
    import torchvision

    size = 224 if name == "vit_b_16" else 64
    return torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, size, size)


def ours(model: Any, x: Any) -> Any:
    """Capture, groups, scores, plan, and the smaller model."""
    import secateur as sc
    from secateur.rewrite.graph import rewrite_graph
    from secateur.rewrite.module import candidate_attributes, layer_attributes, shrink_module

    study = sc.study(model, x)
    cut = study.cut(study.plan(sc.L2(), ratio=0.5))
    program = rewrite_graph(cut)
    attributes = candidate_attributes(model, cut, program)
    for path, values in layer_attributes(model, cut, program).items():
        attributes[path] = {**attributes.get(path, {}), **values}
    return shrink_module(model, cut, attributes)


def theirs(model: Any, x: Any) -> Any:
    """torch-pruning as its examples use it: group norm of magnitudes, the head left alone, heads named where it asks for them."""
    import torch
    import torch_pruning as tp

    model = copy.deepcopy(model)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[last], num_heads=heads)
    pruner.step()
    return model


def once(name: str, way: str) -> dict[str, float]:
    """One run in this process."""
    import torch

    torch.set_num_threads(1)
    act: Callable[[Any, Any], Any] = ours if way == "secateur" else theirs
    small, small_input = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval(), torch.randn(2, 4)
    act(small, small_input)
    model, x = build(name)
    with torch.no_grad():
        model(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    result = act(model, x)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024
    left = sum(p.numel() for p in result.parameters()) / sum(p.numel() for p in model.parameters())
    return {"cpu_s": seconds, "memory_of_model": grown / size, "parameters_left": left}


def run(name: str, way: str, seconds: float) -> dict[str, float] | None:
    """One run in a fresh process; ``None`` where it failed."""
    command = [sys.executable, __file__, "--once", name, way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def main() -> None:
    """Run both in turn, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=900, help="limit for one run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(*options.once)))
        return
    for name in options.models or MODELS:
        found: dict[str, list[dict[str, float] | None]] = {way: [] for way in WAYS}
        for _ in range(options.runs):
            for way in WAYS:
                found[way].append(run(name, way, options.seconds))
        row: dict[str, Any] = {"model": name}
        for way, runs in found.items():
            whole = [r for r in runs if r is not None]
            row[way] = {k: statistics.median(r[k] for r in whole) for k in whole[0]} if whole else "failed"
        if all(isinstance(row[way], dict) for way in WAYS):
            row["ratio"] = row["secateur"]["cpu_s"] / row["torch-pruning"]["cpu_s"]
        print(json.dumps(row) if options.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    cells = [f"{way} {row[way]['cpu_s']:.2f} s" if isinstance(row[way], dict) else f"{way} failed" for way in WAYS]
    memory = f", memory {row['secateur']['memory_of_model']:.1f} x the model" if isinstance(row["secateur"], dict) else ""
    return f"{row['model']}: {', '.join(cells)}, ratio {row.get('ratio', float('nan')):.3f}{memory}"


if __name__ == "__main__":
    main()
