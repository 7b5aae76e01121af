"""Time and memory of a refit after a cut to half of the MACs, for models of real size with random weights.

    OMP_NUM_THREADS=2 python benchmarks/refit_cost.py                 # ResNet-50 and DeiT-B, 256 images of 224 x 224
    python benchmarks/refit_cost.py resnet50 --samples 64 --profile   # where the time goes

Each model is refitted in a process of its own. Seconds are those of the refit alone, on the wall and on all cores together, beside those of
one run of the dense model on the same images. Memory is what the process takes at most while it refits, with everything in it: torch, the
dense and the smaller model, the images, and what the refit holds. What cut and proof have left to the allocator is given back before.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import gc
import json
import pstats
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = ("resnet50", "deit_base")
TOGETHER = 8
"""Images in a batch: those of the example inputs, since a graph runs at the size that it was captured with."""


def build(name: str) -> Any:
    """A model with random weights."""
    import torch

    torch.manual_seed(0)
    if name.startswith("deit"):
        import timm

        return timm.create_model(f"{name}_patch16_224").eval()
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval()


def peak_gib() -> float:
    """The largest resident size of this process since :func:`forget_peak` (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / (1 << 20)


def forget_peak() -> None:
    """Give memory that nobody uses back to the system, and begin anew with the peak."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def dense_seconds(model: Any, images: Any) -> tuple[float, float]:
    """Seconds of one run of a model, on the wall and on all cores."""
    import torch

    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for part in images.split(TOGETHER):
            model(part)
    return time.perf_counter() - wall, time.process_time() - cpu


def once(name: str, samples: int, *, profile: bool) -> dict[str, Any]:
    """One refit in this process."""
    import torch

    import secateur as sc

    model, images = build(name), torch.randn(samples, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    study = sc.study(model, images[:TOGETHER])
    plan = study.plan(sc.L2(), target=sc.Target(macs=0.5))
    result = sc.apply(study, plan)
    dense_wall, dense_cpu = dense_seconds(model, images)
    forget_peak()
    before, watch = peak_gib(), cProfile.Profile()
    wall, cpu = time.perf_counter(), time.process_time()
    if profile:
        watch.enable()
    done = sc.Refit(samples=samples)(result.model, study.cut(plan), images)
    watch.disable()
    row = {
        "model": name,
        "samples": samples,
        "threads": torch.get_num_threads(),
        "layers": len(done.changes),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "dense_wall_s": dense_wall,
        "dense_cpu_s": dense_cpu,
        "gib_before": before,
        "peak_gib": peak_gib(),
    }
    if profile:
        pstats.Stats(watch, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return row


def main() -> None:
    """Refit each model in a fresh process, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--profile", action="store_true", help="tell on standard error which functions take the time")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once, options.samples, profile=options.profile)))
        return
    for name in options.models or MODELS:
        more = ["--profile"] if options.profile else []
        command = [sys.executable, __file__, "--once", name, "--samples", str(options.samples), *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
