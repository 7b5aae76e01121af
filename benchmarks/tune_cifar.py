"""Train a CIFAR-10 ResNet on a little more, so that it knows the images that it is measured on.

    python benchmarks/tune_cifar.py --images cifar10-jpeg.zip --weights resnet56.th --out tuned.th

Weights that were trained on lossless images lose about ten points on JPEG files; a pass over the JPEG training set wins most of them back.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_sets import cifar10, cifar_resnet, top1


def tune(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, rate: float, batch: int = 128) -> None:
    """Train in place by stochastic gradients with momentum and a cosine schedule; images are flipped at random."""
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=generator).split(batch):
            if len(part) < batch:
                continue
            flipped = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
            loss = F.cross_entropy(model(torch.where(flipped, images[part].flip(-1), images[part])), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=50_000, help="training images")
    parser.add_argument("--test", type=int, default=1_000, help="images to measure on, before and after")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.01)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, metric = cifar_resnet(options.weights), top1(*cifar10(options.images, "test", options.test))
    print(f"before: {metric(model):.2f} %", flush=True)
    tune(model, *cifar10(options.images, "train", options.train), epochs=options.epochs, rate=options.rate)
    print(f"after: {metric(model):.2f} %", flush=True)
    torch.save({"state_dict": model.state_dict()}, options.out)


if __name__ == "__main__":
    main()
