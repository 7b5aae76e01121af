"""What runs in training mode or for other values alone is seen, and stays whole with what it reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.capture import capture, training_branches, value_branches


class Auxiliary(nn.Module):
    """A second head on the inner channels, used in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.aside = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one output, or the sum of both heads."""
        inner = self.norm(self.first(x)).relu()
        out: Tensor = self.third(self.second(inner).relu())
        return out + self.aside(inner) if self.training else out


class Asking(Auxiliary):
    """In training it wants a target."""

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """Return the output, in training its distance from the target."""
        out = super().forward(x)
        if self.training and target is None:
            raise ValueError("no target")
        return out


X = torch.randn(2, 3, 4, 4)


def test_channels_that_a_training_branch_reads_stay() -> None:
    study = sc.study(Auxiliary().eval(), X)
    reasons = {layer.name: layer.reason for layer in study.layers}
    assert reasons["second"] is None
    assert "training mode alone" in str(reasons["first"])
    result = sc.apply(study, study.plan(ratio=0.5))
    assert result.kind == "module"
    assert result.model.second.out_channels == 6  # type: ignore[union-attr]
    assert result.model.train()(X).shape == (2, 2, 4, 4)


def test_the_model_is_left_as_it_was() -> None:
    model = Auxiliary()
    model.norm.eval()
    model.norm.running_mean.fill_(0.5)  # type: ignore[union-attr]
    found = training_branches(capture(model, (X,)))
    assert found is not None
    assert "aside.weight" in {str(n.target) for n in found.graph.find_nodes(op="get_attr")}
    assert [m.training for m in model.modules()] == [True, True, True, True, False, True]
    assert model.norm.running_mean.tolist() == [0.5] * 8  # type: ignore[union-attr]


def test_nothing_is_looked_at_where_all_weights_are_read_or_training_wants_more() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.Conv2d(8, 2, 1))
    assert training_branches(capture(plain, (X,))) is None
    assert training_branches(capture(Asking().eval(), (X,))) is None


class Experts(nn.Module):
    """Every sample goes to the layer that its first number chooses; one that no sample goes to is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of shape (batch, 3)."""
        inner = self.first(x)
        out = torch.zeros_like(inner)
        for number, expert in enumerate(self.experts):
            (mine,) = torch.where((x[:, 0] > 0) == bool(number))
            if mine.numel():
                out = out.index_add(0, mine, expert(inner[mine]))
        return self.last(out)


def test_channels_that_a_layer_reads_for_other_values_alone_stay() -> None:
    x = torch.randn(6, 5)
    x[:, 0] = x[:, 0].abs()
    study = sc.study(Experts().eval(), x)
    reasons = {layer.name: layer.reason for layer in study.layers}
    assert reasons["experts.1.0"] is None
    assert "for other values of the inputs alone" in str(reasons["first"])
    unseen = [d for d in study.coverage.dimensions if d.tensor.startswith("experts.0")]
    assert unseen
    assert not any(d.prunable for d in unseen)
    result = sc.apply(study, study.plan(ratio=0.5))
    assert result.model(-x).shape == (6, 3)


def test_nothing_is_looked_at_again_where_no_value_decides_or_all_weights_are_read() -> None:
    assert value_branches(capture(Auxiliary().eval(), (X,))) is None
    assert value_branches(capture(Experts().eval(), (torch.randn(9, 5),))) is None
