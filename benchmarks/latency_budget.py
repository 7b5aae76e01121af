"""Latency that was predicted by layer times beside what was measured, and what the same multiply-adds by MACs take.

    OMP_NUM_THREADS=1 python benchmarks/latency_budget.py
    python benchmarks/latency_budget.py mobilenet_v2 --latency 0.5 0.7 --size 160

Random weights, scored by the norms of all weights of a channel. First the plan for a target of latency: widths by what is lost for each
millisecond. Then, with the same scores and the very MACs that this leaves, the plan by what is lost for each multiply-add: with any widths,
and with multiples of eight. All are timed in turns with the dense model; "lost" is the sum of the scores that went, of all there are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import torch

import secateur as sc
from secateur.allocate import Options
from secateur.measure import compare_latency
from secateur.plan import Plan
from secateur.rewrite import draft
from secateur.target import remaining

MODELS = ("resnet18", "mobilenet_v2", "deit_tiny")


def build(name: str) -> Any:
    """A model with random weights."""
    torch.manual_seed(0)
    if name.startswith("deit"):
        import timm

        return timm.create_model(f"{name}_patch16_224").eval()
    import torchvision

    return torchvision.models.get_model(name, weights=None).eval()


def lost(plan: Plan, scores: Mapping[str, torch.Tensor]) -> float:
    """The part of all scores that goes."""
    gone = sum(float(scores[edit.group][list(edit.remove)].sum()) for edit in plan.prunes)
    return gone / sum(float(each.sum()) for each in scores.values())


def plans(study: sc.Study, scores: Mapping[str, torch.Tensor], fraction: float) -> dict[str, Plan]:
    """The plan for a target of latency, and those by MACs that leave as many multiply-adds."""
    target, options = sc.Target(latency=fraction), Options(layer_norm="none", step_size=8)
    found = {"latency": study.plan(scores=scores, target=target, allocator=sc.Knapsack("latency"), options=options)}
    macs = sc.Target(macs=remaining(sc.Target(macs=0.5), study.cut(found["latency"]), study.macs))
    for name, step in (("MACs", 1), ("MACs, multiples of 8", 8)):
        options = Options(layer_norm="none", step_size=step)
        found[name] = study.plan(scores=scores, target=macs, allocator=sc.Knapsack("macs"), options=options)
    return found


def main() -> None:
    """Print a row of the table for each model, target and plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--latency", nargs="*", type=float, default=[0.6])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    columns = ("model", "target", "widths by", "MACs left", "predicted", "measured", "lost", "search, s", "times taken")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.models or MODELS:
        study = sc.study(build(name), torch.randn(1, 3, options.size, options.size))
        scores = study.scores(sc.GroupNorm(), options=Options(layer_norm="none"))
        for fraction in options.latency:
            begin = time.perf_counter()
            found = plans(study, scores, fraction)
            seconds, predicted = time.perf_counter() - begin, study.predicted_latency
            cuts = {way: study.cut(plan) for way, plan in found.items()}
            models = {"dense": study.model, **{way: draft(cut) for way, cut in cuts.items()}}
            timed = compare_latency(models, study.capture.args, repeats=options.repeats)
            for way, cut in cuts.items():
                macs = remaining(sc.Target(macs=0.5), cut, study.macs)
                figures = macs, predicted.share(cut), timed[way].median_ms / timed["dense"].median_ms, lost(found[way], scores)
                work = f"{seconds:.0f} | {predicted.times.measured}" if way == "latency" else " | "
                print(f"| {name} | {fraction:.0%} | {way} | " + " | ".join(f"{each:.1%}" for each in figures) + f" | {work} |", flush=True)


if __name__ == "__main__":
    main()
