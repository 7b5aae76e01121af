"""FLOP parity with FPGM (He et al., CVPR 2019): torchvision ResNets in the paper's setting, reductions beside the published ones.

    python benchmarks/fpgm_parity.py [--json] [--model resnet18 ...]

The paper removes the same fraction of filters from the stem, from the inner convolutions of every block and from the one that ends it,
and keeps projection shortcuts. The inner part is an ordinary plan: cut by geometric median, and proven. The filters that end a block are
no channels of a group, since the stream that they are added to keeps its width: a plan for each of these convolutions alone, and for the
stem, says which go. This script removes them by hand from the proven model, puts what is left into zeros of the old width, and compares
with the model in which they are masked.
"coupled" is what Secateur does by itself at the same fraction: whole groups, the stream and the projections with them.
Weights are random: the counts do not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import secateur as sc
from secateur.target import remaining

SETTINGS = (("resnet18", 0.3, 41.8), ("resnet34", 0.3, 41.1), ("resnet50", 0.3, 42.2), ("resnet50", 0.4, 53.5), ("resnet101", 0.3, 42.2))
"""Model, fraction removed, and the published reduction of FLOPs in percent."""


class Scattered(nn.Module):
    """A convolution and its batch norm that make some of the channels; the others are zero."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, kept: Tensor) -> None:
        super().__init__()
        self.width = convolution.out_channels
        self.convolution, self.norm = sliced(convolution, kept, 0), sliced(norm, kept, 0)
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(self.convolution(x))
        zeros = found.new_zeros(found.shape[0], self.width, found.shape[2], found.shape[3])
        return zeros.index_copy(1, self.kept, found)


class Picked(nn.Module):
    """A convolution that reads some of its inputs."""

    def __init__(self, convolution: nn.Conv2d, kept: Tensor) -> None:
        super().__init__()
        self.convolution = sliced(convolution, kept, 1)
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.index_select(1, self.kept))


def sliced(layer: Any, kept: Tensor, dim: int) -> Any:
    """A copy of a layer with some of its channels."""
    small = copy.deepcopy(layer)
    for name, tensor in (*small._parameters.items(), *small._buffers.items()):
        if tensor is not None and tensor.dim() > dim:
            new = tensor.detach().index_select(dim, kept)
            setattr(small, name, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
    return small


def survivors(convolution: nn.Conv2d, ratio: float) -> Tensor:
    """The filters that a plan for this convolution alone keeps, by their distances to all others."""
    alone = nn.Sequential(convolution, nn.Conv2d(convolution.out_channels, 1, 1)).to(convolution.weight).eval()
    study = sc.study(alone, torch.randn(1, convolution.in_channels, 8, 8).to(convolution.weight))
    gone = study.plan(sc.GeometricMedian(), ratios={"0": ratio}).prunes[0].remove
    return torch.tensor([c for c in range(convolution.out_channels) if c not in gone])


def ends(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """The stem and every block, with the names of the convolution that writes to the stream and of its batch norm."""
    yield model, "conv1", "bn1"
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            last = "3" if hasattr(block, "conv3") else "2"
            yield block, f"conv{last}", f"bn{last}"


def scattered(model: nn.Module, ratio: float) -> tuple[nn.Module, nn.Module]:
    """A model without those filters, and one in which their outputs are masked."""
    small, masked = copy.deepcopy(model), copy.deepcopy(model)
    for place, (owner, convolution, norm) in enumerate(ends(small)):
        kept = survivors(getattr(owner, convolution), ratio)
        if place == 0:
            first = small.layer1[0]
            first.conv1 = Picked(first.conv1, kept)
            if first.downsample is not None:
                first.downsample[0] = Picked(first.downsample[0], kept)
        twin, _, its_norm = list(ends(masked))[place]
        hide(getattr(twin, its_norm), kept)
        setattr(owner, convolution, Scattered(getattr(owner, convolution), getattr(owner, norm), kept))
        setattr(owner, norm, nn.Identity())
    return small, masked


def hide(norm: nn.Module, kept: Tensor) -> None:
    def mask(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output).index_copy(1, kept, output.index_select(1, kept))

    norm.register_forward_hook(mask)


def inner(study: sc.Study, ratio: float) -> dict[str, float]:
    """The ratio for the layers inside blocks."""
    names = [layer.name for layer in study.layers if layer.prunable and layer.name.rpartition(".")[2] in ("conv1", "conv2")]
    return {name: ratio for name in names if name.startswith("layer")}


@torch.no_grad()
def compare(name: str, ratio: float, published: float) -> dict[str, Any]:
    """Cut one model in both ways and count."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, 224, 224)
    study = sc.study(model, images)
    result = sc.apply(study, study.plan(sc.GeometricMedian(), ratios=inner(study, ratio)))
    small, masked = scattered(result.model.double(), ratio)
    wanted, found = masked(images.double()), small(images.double())
    coupled = study.cut(study.plan(sc.GeometricMedian(), ratio=ratio))
    return {
        "name": name,
        "ratio": ratio,
        "published": published,
        "reduction": _removed(sc.study(small.float(), images).macs.total, study),
        "inner": _removed(result.after.macs, study),
        "coupled": 100 * (1 - remaining(sc.Target(macs=0.5), coupled, study.macs)),
        "proof_error": result.proof.error,
        "masked_error": float((wanted - found).abs().max() / wanted.abs().max()),
    }


def _removed(macs: int, study: sc.Study) -> float:
    return 100 * (1 - macs / study.macs.total)


def table(rows: Sequence[dict[str, Any]]) -> str:
    heading = "| model | removed | published | paper's setting | inner convolutions alone | whole groups | proof error | against masked |"
    lines = [heading, "|---" * 8 + "|"]
    for row in rows:
        reductions = " | ".join(f"{row[key]:.1f} %" for key in ("published", "reduction", "inner", "coupled"))
        lines.append(f"| {row['name']} | {row['ratio']:.0%} | {reductions} | {row['proof_error']:.0e} | {row['masked_error']:.0e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted({name for name, *_ in SETTINGS}), help="only this one (repeatable)")
    parser.add_argument("--json", action="store_true", help="one line of JSON a setting")
    options = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        if not options.model or setting[0] in options.model:
            rows.append(compare(*setting))
            if options.json:
                print(json.dumps(rows[-1]), flush=True)
    if not options.json:
        print(table(rows))


if __name__ == "__main__":
    main()
