"""What a basis of its own is worth to thinner heads, without any training: MiniLM with fewer queries and keys, or values.

    python benchmarks/heads.py minilm --pairs stsb/dev.csv --test 700

Every head of all layers keeps the same number of neurons. "As cut" are the neurons that the criterion chose; "refitted" are these neurons,
with the queries multiplied by what makes the scores fit best; "best basis" are as many directions as there are neurons, any of them.
Nothing else is recovered. Models are drafts of the cut.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import secateur as sc
from criteria import named, ratios
from data_sets import TASKS, TOGETHER, Task, add_options
from secateur.rewrite import draft

CRITERIA: Mapping[str, Any] = {"Random": sc.Random(), "L2": sc.L2(), "SNP": sc.SNP(), "OBS": sc.OBS()}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "q, k": {"as cut": None, "refitted": sc.Attention("kept"), "best basis": sc.Attention()},
    "v": {"as cut": None, "best basis": sc.Attention()},
}
PARTS = {"q, k": ("*.qk",), "v": ("*.v",)}


def rows(study: sc.Study, task: Task, options: argparse.Namespace) -> Iterator[str]:
    """One row for each part, criterion and way."""
    scores = study.scores_by(CRITERIA, data=task.calibration, samples=options.calibration)
    for part, ways in WAYS.items():
        for title in CRITERIA:
            plans = [study.plan(CRITERIA[title], ratios=ratios(named(study, PARTS[part]), r), scores=scores[title]) for r in options.ratios]
            for way, recovery in ways.items():
                found = " | ".join(f"{measured(study, task, plan, recovery):.1f}" for plan in plans)
                yield f"| {part} | {title} | {way} | {found} |"


def measured(study: sc.Study, task: Task, plan: sc.Plan, recovery: Any) -> float:
    """The metric of a model that was cut by a plan, and recovered."""
    cut = study.cut(plan)
    model = draft(cut)
    if recovery is not None:
        recovery(model, cut, task.calibration)
    return task.metric(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, calibration=64, test=500)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.25, 0.5, 0.75])
    options = parser.parse_args()
    task = TASKS[options.task](options)
    study = sc.study(task.model, task.example(TOGETHER))
    print(f"dense {task.metric(task.model):.1f}", flush=True)
    print(f"| part | criterion | neurons | {' | '.join(f'{ratio:.0%}' for ratio in options.ratios)} |")
    print("|---" * (3 + len(options.ratios)) + "|", flush=True)
    for row in rows(study, task, options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
