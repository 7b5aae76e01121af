"""Models whose calls depend on values: the dense reference decides as the smaller model does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import RewriteError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
CORNER = float(X[0, 0])


class Finder(nn.Module):
    """Keeps the rows with a positive score, as a detector keeps boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.score, self.last = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 2)
        with torch.no_grad():
            self.score.weight.copy_(torch.tensor([[5.0, 5.0, 5.0, 5.0, -0.1, -0.1, -0.1, -0.1]]))
            self.first.weight[:4].mul_(0.5)
            self.score.bias.fill_(-1e-3)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one tensor for each row that is found."""
        inner = self.first(x).relu()
        found = [row for row, high in enumerate(self.score(inner)[:, 0] > 0) if bool(high)]
        return [self.last(inner[row]) for row in found] or [self.last(inner)]


class Unseen(Finder):
    """Looks at values in a way that leaves no call, and reads a width off its own code."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what is found, or for one input something else."""
        inner = self.first(x).view(6, 8)
        return [self.last(inner) if np.from_dlpack(x)[0, 0] == CORNER else self.last(inner.relu())]


class Listing(Finder):
    """Looks at a list of values, and reads a width off its own code."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return one of two outputs."""
        inner = self.first(x).view(6, 8)
        return [self.last(inner) if self.score(inner)[:, 0].tolist()[0] > 0 else self.last(inner.relu())]


class Stubborn(Finder):
    """Reads a width off its own code."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what is found, after a view that holds eight channels."""
        return [row + self.first(x).view(6, 8).sum() * 0 for row in super().forward(x)]


class Roomy(Stubborn):
    """Has a layer inside whose width no code tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8))


class Sorting(nn.Module):
    """Sends each row to one of two layers, as many as choose it, and reads a width off its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8))
        self.gate, self.layers = nn.Linear(4, 2), nn.ModuleList(nn.Linear(8, 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return rows of two numbers, those of the first layer in front."""
        choice = self.gate(x).argmax(1)
        sizes = torch.zeros(x.shape[0], 2).scatter(1, choice[:, None], 1).long().sum(0).tolist()
        parts = self.first(x).view(x.shape[0], 8)[choice.sort()[1]].split(sizes, dim=0)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)])


def test_the_reference_finds_what_the_smaller_model_finds() -> None:
    torch.manual_seed(0)
    model = Finder().eval()
    study = sc.study(model, X)
    result = sc.apply(study, study.plan(indices={"first": [0, 1, 2, 3]}))
    assert result.kind == "module"
    assert result.proof.holds
    assert len(result.model(X)) != len(model(X))


@pytest.mark.parametrize("kind", [Stubborn, Listing, Unseen])
def test_a_graph_of_decided_calls_is_refused(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    study = sc.study(kind().eval(), X)
    assert study.capture.decided == (kind is not Unseen)
    with pytest.raises(RewriteError, match="holds for these inputs alone"):
        sc.apply(study, study.plan(indices={"first": [0, 1]}))


@pytest.mark.parametrize(("kind", "why"), [(Roomy, "holds for these inputs alone"), (Sorting, "sizes that follow values")])
def test_where_a_graph_is_refused_the_class_is_cut_where_it_can_be(kind: type[nn.Module], why: str) -> None:
    torch.manual_seed(0)
    study = sc.study(kind().eval(), X)
    result = sc.apply(study, study.plan(indices={"first.0": [0, 1], "first.2": [0, 1]}))
    assert result.kind == "module"
    assert result.proof.holds
    assert [edit.group for edit in result.plan.prunes] == ["first.0"]
    assert [note for note in result.notes if why in note]
    assert [note for note in result.notes if "cannot hold them smaller: first.2" in note]
    with pytest.raises(RewriteError, match=why):
        sc.apply(study, study.plan(indices={"first.0": [0, 1], "first.2": [0, 1]}), prefer="graph")
