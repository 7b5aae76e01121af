"""Draw accuracy against multiply-adds from the rows that decompose_accuracy.py wrote, one panel a task, and print them as tables.

python benchmarks/decompose_plot.py rows.jsonl docs/decomposition-accuracy.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TITLES: Mapping[str, str] = {
    "lite0": "EfficientNet-Lite0, top-1",
    "resnet56": "ResNet-56 on CIFAR-10, top-1",
    "minilm": "MiniLM on STS-B, Spearman x 100",
}
Row = Mapping[str, Any]


def read(path: Path) -> list[Row]:
    """The last row of each task, method, fit and budget."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(row["task"], row["method"], row["fit"], row["budget"]): row for row in rows}.values())


def draw(rows: Sequence[Row], path: Path) -> None:
    """One line a method and fit. Needs matplotlib."""
    from matplotlib import pyplot

    tasks = [task for task in TITLES if any(row["task"] == task for row in rows)]
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.4), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        own = [row for row in rows if row["task"] == task]
        panel.axhline(own[0]["dense"], color="gray", linewidth=0.8)
        for way in sorted({(row["method"], row["fit"]) for row in own}):
            points = sorted((row["macs"], row["metric"]) for row in own if (row["method"], row["fit"]) == way)
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, label=", ".join(way))
        panel.set_title(TITLES[task], fontsize=9)
        panel.set_xlabel("part of the multiply-adds", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def tables(rows: Sequence[Row]) -> Iterator[str]:
    budgets = sorted({row["budget"] for row in rows}, reverse=True)
    for task, title in TITLES.items():
        own = [row for row in rows if row["task"] == task]
        if not own:
            continue
        yield f"\n{title}, dense {own[0]['dense']:.1f}\n"
        yield f"| method | fitted to | {' | '.join(f'{budget:.0%}' for budget in budgets)} |"
        yield "|---" * (2 + len(budgets)) + "|"
        for way in sorted({(row["method"], row["fit"]) for row in own}):
            found = {row["budget"]: f"{row['metric']:.1f}" for row in own if (row["method"], row["fit"]) == way}
            yield f"| {' | '.join(way)} | {' | '.join(found.get(budget, '') for budget in budgets)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("figure", type=Path)
    options = parser.parse_args()
    rows = read(options.rows)
    print("\n".join(tables(rows)))
    draw(rows, options.figure)


if __name__ == "__main__":
    main()
