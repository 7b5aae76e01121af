"""CPU seconds and memory of analysis and rewriting against the number of operations in a model's graph.

    python benchmarks/scaling.py                                # one model in three of the sets, what is missing
    python benchmarks/scaling.py torchvision:resnet18@64 hf:llama --again
    python benchmarks/scaling.py --write docs/scaling.md

Models run one after the other in one process. Results are in `benchmarks/results/scaling.jsonl`; models are named as in `zoo.py`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from coverage import finished

RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
PHASES = ("capture", "analysis", "plan", "rewriting")
SETS = ("core", "torchvision", "timm-families", "transformers")


def examine(name: str) -> dict[str, Any]:
    """CPU seconds of every phase of cutting one model to half, and the memory of analysis."""
    import secateur as sc
    from secateur.capture import capture
    from secateur.capture.normalize import normalize
    from secateur.groups import build_groups, solve, walk
    from secateur.rewrite.graph import rewrite_graph
    from secateur.study import Study

    model, (args, kwargs), _ = zoo.build(name)
    row: dict[str, Any] = {"model": name}

    def analysis() -> Study:
        graph = normalize(found)
        solution = solve(walk(graph))
        return Study(graph, solution, tuple(build_groups(solution)))

    found = _timed(row, "capture", lambda: capture(model, args, kwargs))
    study = _timed(row, "analysis", analysis)
    plan = _timed(row, "plan", lambda: study.plan(sc.L2(), ratio=0.5))
    _timed(row, "rewriting", lambda: rewrite_graph(study.cut(plan)))
    row["analysis_mib"] = _peak(analysis)
    row["nodes"] = sum(node.op == "call_function" for node in study.capture.graph.nodes)
    row["labels"] = study.solution.walk.ledger.count
    return row


def _timed(row: dict[str, Any], phase: str, work: Callable[[], Any]) -> Any:
    gc.collect()
    start = time.process_time()
    done = work()
    row[f"{phase}_s"] = round(time.process_time() - start, 4)
    return done


def _peak(work: Callable[[], Any]) -> float:
    """The most MiB that Python and numpy, which hold all labels, take at a time in doing some work once more."""
    tracemalloc.start()
    try:
        work()
        return round(tracemalloc.get_traced_memory()[1] / 2**20, 2)
    finally:
        tracemalloc.stop()


def exponent(rows: Sequence[Mapping[str, Any]], values: Sequence[float], of: str = "nodes") -> tuple[float, float]:
    """The power of the number of nodes (or labels) that fits best on logarithms, and the share of their variance that it explains."""
    x, y = np.log([row[of] for row in rows]), np.log(values)
    slope, start = np.polyfit(x, y, 1)
    return float(slope), float(1 - np.var(y - slope * x - start) / np.var(y))


def page(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown page."""
    sizes = [row["nodes"] for row in rows]
    yield "# Scaling\n"
    yield "CPU seconds of each phase of cutting every group of a model to half, and the memory of analysis, on one core, against the number"
    yield "of operations in its captured graph. Made by `python benchmarks/scaling.py --write docs/scaling.md`; weights are random.\n"
    yield f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}.\n"
    yield f"{len(rows)} models of {min(sizes)} to {max(sizes)} operations. Time grows with the fitted power of the number of operations:\n"
    yield "| phase | power | share of the variance | median ms an operation | most ms an operation |"
    yield "|---" * 5 + "|"
    for phase in (*PHASES[1:], "all three"):
        yield _fitted(phase, rows)
    memory = [row["analysis_mib"] for row in rows]
    (power, share), (by_labels, more) = (exponent(rows, memory, of) for of in ("nodes", "labels"))
    yield "\nWhat Python and numpy hold at the peak of analysis grows with power "
    yield f"{power:.2f} of the number of operations ({share:.0%} of the variance), and with power {by_labels:.2f} of the number of labels"
    yield f"(channels over all dimensions of all weights, and those made on the way; {more:.0%} of the variance), of which larger"
    yield f"networks have more for each operation. It is {max(memory):.0f} MiB at most.\n"
    yield "Capture is one forward of the model with everything recorded, so it takes what the model takes; it is not fitted.\n"
    yield "The ten slowest in all, without capture; they are the widest (most labels), or have most operations:\n"
    yield "| model | operations | labels | capture s | analysis s | plan s | rewriting s | analysis MiB |"
    yield "|---" * 8 + "|"
    for row in sorted(rows, key=_all_three, reverse=True)[:10]:
        seconds = " | ".join(f"{row[f'{phase}_s']:.2f}" for phase in PHASES)
        yield f"| {row['model']} | {row['nodes']} | {row['labels']} | {seconds} | {row['analysis_mib']:.0f} |"
    yield ""


def _fitted(phase: str, rows: Sequence[Mapping[str, Any]]) -> str:
    value = _all_three if phase == "all three" else lambda row: row[f"{phase}_s"]
    power, share = exponent(rows, [max(value(row), 1e-4) for row in rows])
    each = [1000 * value(row) / row["nodes"] for row in rows]
    return f"| {phase} | {power:.2f} | {share:.0%} | {np.median(each):.2f} | {max(each):.2f} |"


def _all_three(row: Mapping[str, Any]) -> float:
    return sum(float(row[f"{phase}_s"]) for phase in PHASES[1:])


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="models to run; by default one in three of the sets")
    parser.add_argument("--again", action="store_true", help="run finished models again")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=600, help="start no further model after this time")
    parser.add_argument("--write", type=Path, help="write the page of all results to this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done, start = finished(options.results), time.monotonic()
    names = options.models or ([] if options.write else [*dict.fromkeys(name for key in SETS for name in zoo.SETS[key]()[::3])])
    for name in (name for name in names if options.again or name not in done):
        if time.monotonic() - start > options.seconds:
            break
        try:
            row = examine(name)
        except Exception as error:  # noqa: BLE001 - a model that does not run is told and left out
            print(name, type(error).__name__, str(error).splitlines()[:1], flush=True)
            continue
        done[name] = row
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    if options.write:
        options.write.write_text("\n".join(page(list(done.values()))))


if __name__ == "__main__":
    main()
