"""Latency that was predicted by layer times beside what was measured, and what the same multiply-adds by MACs take.

    OMP_NUM_THREADS=1 python benchmarks/latency_budget.py
    python benchmarks/latency_budget.py mobilenet_v2 --latency 0.5 0.7 --size 160
    python benchmarks/latency_budget.py resnet18 --ranks

Random weights, scored by the norms of all weights of a channel. First the plan for a target of latency: widths by what is lost for each
millisecond. Then, with the same scores and the very MACs that this leaves, the plan by what is lost for each multiply-add: with any widths,
and with multiples of eight. All are timed in turns with the dense model; "lost" is the sum of the scores that went, of all there are.

With --ranks, plans for the target of latency by ranks alone, and by widths and ranks together (`Cheaper`), in the place of these. They are
weighed on noise, and no layer of random weights is of low rank, so they tell of times alone, and "lost" stays empty.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

import secateur as sc
from secateur.allocate import Options
from secateur.measure import compare_latency
from secateur.plan import Plan
from secateur.rewrite import draft, draft_with_factors
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


def with_widths(study: sc.Study, fraction: float, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Rows of plans that cut widths."""
    scores = study.scores(sc.GroupNorm(), options=Options(layer_norm="none"))
    begin = time.perf_counter()
    found = plans(study, scores, fraction)
    seconds, predicted = time.perf_counter() - begin, study.predicted_latency()
    cuts = {way: study.cut(plan) for way, plan in found.items()}
    models = {"dense": study.model, **{way: draft(cut) for way, cut in cuts.items()}}
    timed = compare_latency(models, study.capture.args, repeats=options.repeats)
    for way, cut in cuts.items():
        macs = remaining(sc.Target(macs=0.5), cut, study.macs)
        figures = macs, predicted.share(cut), timed[way].median_ms / timed["dense"].median_ms, lost(found[way], scores)
        work = (f"{seconds:.0f}", f"{predicted.times.measured}") if way == "latency" else ("", "")
        yield way, *(f"{each:.1%}" for each in figures), *work


def with_ranks(study: sc.Study, fraction: float, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Rows of plans that lower ranks, or cut widths and lower ranks."""
    target, noise = sc.Target(latency=fraction), torch.randn(options.samples, *study.capture.args[0].shape[1:])
    ways = {
        "ranks": lambda: study.plan_decomposition(target=target, data=noise),
        "widths and ranks": lambda: sc.Cheaper().plan(study, target, noise),
    }
    for way, planned in ways.items():
        begin, before = time.perf_counter(), study.predicted_latency().times.measured
        try:
            plan = planned()
        except sc.SelectionError as error:
            yield way, str(error), *[""] * 5
            continue
        seconds, taken = time.perf_counter() - begin, study.predicted_latency().times.measured - before
        small = draft_with_factors(study.cut(replace(plan, edits=plan.prunes)), plan.factorizations)
        timed = compare_latency({"dense": study.model, "small": small}, study.capture.args, repeats=options.repeats)
        predicted = plan.settings["latency"]["predicted_ms"]
        macs = sc.study(small, study.capture.args).macs.total / study.macs.total
        figures = macs, predicted["compressed"] / predicted["dense"], timed["small"].median_ms / timed["dense"].median_ms
        yield way, *(f"{each:.1%}" for each in figures), "", f"{seconds:.0f}", f"{taken}"


def main() -> None:
    """Print a row of the table for each model, target and plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--latency", nargs="*", type=float, default=[0.6])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--ranks", action="store_true", help="ranks, and widths with ranks, in the place of widths")
    parser.add_argument("--samples", type=int, default=16, help="of noise, by which ranks are weighed")
    options = parser.parse_args()
    columns = ("model", "target", "widths by", "MACs left", "predicted", "measured", "lost", "search, s", "times taken")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.models or MODELS:
        study = sc.study(build(name), torch.randn(1, 3, options.size, options.size))
        for fraction in options.latency:
            for row in (with_ranks if options.ranks else with_widths)(study, fraction, options):
                print(f"| {name} | {fraction:.0%} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
