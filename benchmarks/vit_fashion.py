"""A small ViT on Fashion-MNIST, thinned in the pattern of SNP's DeiT-T: by SNP, by L2 norm and by chance; refitted, and trained a little.

    OMP_NUM_THREADS=1 python benchmarks/vit_fashion.py --data /usr/share/datasets/fashion-mnist

The images are those of the Debian package dataset-fashion-mnist. The ViT (four layers, four heads, width 64, 16 tokens) is trained first,
on the same images as afterwards. Queries and keys, values and hidden neurons of each layer lose the fractions that those of DeiT-T lose at
the same depth (Shim, Yun, Choi, ECCV 2024), the stream loses a fifth. Calibration samples are training images.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.score import Scorer

QUERIES, VALUES, HIDDEN, STREAM = (0.39, 0.5, 0.69, 0.69), (0.2, 0.5, 0.4, 0.7), (0.2, 0.2, 0.3, 0.5), 0.2
CRITERIA: dict[str, Scorer] = {"SNP": sc.SNP(), "L2": sc.L2(), "chance": sc.Random()}
Images = tuple[Tensor, Tensor]


def images(folder: Path, part: str, count: int) -> Images:
    """Images between -1 and 1, and labels."""
    pixels, labels = (gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()) for kind in ("images-idx3", "labels-idx1"))
    shown = torch.tensor(np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:count])
    return shown.float() / 127.5 - 1, torch.tensor(np.frombuffer(labels, np.uint8, offset=8)[:count]).long()


@torch.no_grad()
def accuracy(model: nn.Module, test: Images) -> float:
    """Percent of images named rightly."""
    model.eval()
    found = torch.cat([model(part).argmax(1) for part in test[0].split(500)])
    return 100 * float((found == test[1]).float().mean())


def build() -> nn.Module:
    """The ViT, untrained."""
    torch.manual_seed(0)
    sizes = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
    return timm.models.VisionTransformer(**sizes, embed_dim=64, depth=4, num_heads=4, mlp_ratio=4)


def ratios(study: sc.Study) -> dict[str, float]:
    """What goes of each group."""
    per_layer = {"attn.qk": QUERIES, "attn.v": VALUES, "mlp.fc1": HIDDEN}
    found = {f"blocks.{layer}.{name}": given[layer] for name, given in per_layer.items() for layer in range(4)}
    (stream,) = (group.name for group in study.groups if group.prunable and group.size == 64 and group.rows == 1)
    return found | {stream: STREAM}


def main() -> None:
    """Train, and print a row of the table for each criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--train", type=int, default=20000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--after", type=int, default=5, help="epochs after the cut")
    parser.add_argument("--calibration", type=int, default=256)
    options = parser.parse_args()
    train, test = images(options.data, "train", options.train), images(options.data, "t10k", options.test)
    settings = {"optimizer": "adamw", "weight_decay": 0.05, "batch_size": 128}
    begin = time.process_time()
    dense = sc.FineTune(epochs=options.epochs, rate=2e-3, **settings)(build(), train).model.eval()
    print(f"dense: {accuracy(dense, test):.2f} %, trained in {time.process_time() - begin:.0f} CPU seconds", flush=True)
    some = train[0][: options.calibration]
    study = sc.study(dense, train[0][:2])
    for name, criterion in CRITERIA.items():
        begin = time.process_time()
        plan = study.plan(criterion, ratios=ratios(study), data=some)
        result = sc.apply(study, plan)
        bare = accuracy(result.model, test)
        sc.Refit()(result.model, study.cut(plan), some)
        refitted = accuracy(result.model, test)
        tuned = sc.FineTune(epochs=options.after, rate=1e-3, **settings)(result.model, train).model
        shares = result.after.macs / result.before.macs, result.after.parameters / result.before.parameters
        figures = " | ".join(f"{each:.2f}" for each in (bare, refitted, accuracy(tuned, test)))
        print(f"| {name} | {shares[0]:.1%} | {shares[1]:.1%} | {figures} | {time.process_time() - begin:.0f} CPU s |", flush=True)


if __name__ == "__main__":
    main()
