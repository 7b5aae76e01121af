"""What it does to latency that widths are multiples of something, at equal multiply-adds, in eager torch and in ONNX Runtime.

    OMP_NUM_THREADS=1 python benchmarks/step_sizes.py                  # all models, steps of 1, 2, 4, 8 and 16
    python benchmarks/step_sizes.py resnet18 --macs 0.5 0.65 --repeats 60

Each model is cut to the target at one ratio for all layers by L2 norm, what stays rounded to multiples of the step. The dense model
and those of all steps take turns. Weights are random; latency does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from secateur.allocate import Options
from secateur.export.onnx import write_onnx
from secateur.export.pt2 import export_program
from secateur.measure import compare_latency, onnx_latency
from secateur.rewrite import draft

MODELS = ("resnet18", "mobilenet_v2", "convnext_tiny")
STEPS = (1, 2, 4, 8, 16)


def build(name: str) -> Any:
    """A torchvision model with random weights."""
    import torchvision

    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def smaller(study: sc.Study, fraction: float) -> tuple[dict[str, Any], dict[str, float]]:
    """The model of each step, and the multiply-adds that it has left."""
    models, left = {}, {}
    for step in STEPS:
        plan = study.plan(sc.L2(), target=sc.Target(macs=fraction), options=Options(step_size=step))
        cut = study.cut(plan)
        models[str(step)] = draft(cut)
        left[str(step)] = sc.study(models[str(step)], study.capture.args).macs.total / study.macs.total
    return models, left


def exported(models: dict[str, Any], args: tuple[Any, ...], folder: Path) -> dict[str, Path]:
    """An ONNX file of each model."""
    files = {name: folder / f"{name}.onnx" for name in models}
    for name, model in models.items():
        if (reason := write_onnx(export_program(model, args, {}), files[name])) is not None:
            raise SystemExit(f"{name} does not export: {reason}")
    return files


def main() -> None:
    """Print a row of the table for each model, target and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--macs", nargs="*", type=float, default=[0.5])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    print("| model | runtime | dense, ms | " + " | ".join(f"step {step}" for step in STEPS) + " | MACs left |")
    print("|---|---|---|" + "---|" * (len(STEPS) + 1))
    for name in options.models or MODELS:
        study = sc.study(build(name), torch.randn(1, 3, options.size, options.size))
        for fraction in options.macs:
            models, left = smaller(study, fraction)
            every, args = {"dense": study.model, **models}, study.capture.args
            counts = ", ".join(f"{100 * left[str(step)]:.1f}" for step in STEPS)
            with tempfile.TemporaryDirectory() as folder:
                files = exported(every, args, Path(folder))
                timed = {
                    "torch": compare_latency(every, args, repeats=options.repeats),
                    "ONNX Runtime": onnx_latency(files, args, repeats=options.repeats),
                }
            for runtime, found in timed.items():
                dense = found["dense"].median_ms
                shares = " | ".join(f"{found[str(step)].median_ms / dense:.1%}" for step in STEPS)
                print(f"| {name} | {runtime} | {dense:.1f} | {shares} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
