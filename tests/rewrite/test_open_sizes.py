"""A pruned graph takes the sizes at which the model makes the same calls, and refuses the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.rewrite import rewrite
from secateur.rewrite.execute import Double
from secateur.rewrite.graph import rewrite_graph
from secateur.study import study

WINDOW = 4


class Windows(nn.Module):
    """Attention within windows of a padded sequence, which are shifted where there are several."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.proj, self.head = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Rows of three numbers."""
        x = self.embed(x)
        batch, count, width = x.shape
        padded = F.pad(x, (0, 0, 0, (WINDOW - count % WINDOW) % WINDOW))
        shift = WINDOW // 2 if padded.shape[1] > WINDOW else 0
        if shift:
            padded = padded.roll(-shift, 1)
        windows = padded.view(batch * (padded.shape[1] // WINDOW), WINDOW, width)
        q, k, v = self.qkv(windows).view(-1, WINDOW, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)
        if shift:
            mixed = mixed.roll(shift, 1)
        return self.head(x + self.proj(mixed[:, :count]))


def pruned(model: nn.Module, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    found = study(model, inputs)
    return rewrite(found.cut(found.plan(ratio=0.5)), prefer="graph").model


def elsewhere(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the same cut gives that is made with these inputs."""
    found = study(model, inputs)
    (expected,) = Double(rewrite_graph(found.cut(found.plan(ratio=0.5)))).outputs([inputs])
    assert isinstance(expected, Tensor)
    return expected.float()


@pytest.mark.parametrize(("given", "taken", "refused"), [(12, (5, 9, 18), (3, 4)), (3, (2, 4), (5, 12))])
def test_a_graph_takes_what_the_calls_allow(given: int, taken: tuple[int, ...], refused: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Windows().eval()
    small = pruned(model, torch.randn(1, given, 3))
    for count in taken:
        inputs = torch.randn(2, count, 3)
        torch.testing.assert_close(small(inputs), elsewhere(model, inputs))
    for count in refused:
        with pytest.raises((AssertionError, RuntimeError)):
            small(torch.randn(2, count, 3))


class Parted(nn.Module):
    """Rows padded to four, and cut apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """At most four rows of three numbers."""
        count = x.shape[1]
        kept, rest = F.pad(self.embed(x).relu(), (0, 0, 0, 4 - count)).split([count, 4 - count], 1)
        return self.head(kept) + rest.sum()


def test_parts_of_a_fixed_size_may_follow_the_inputs() -> None:
    torch.manual_seed(0)
    model = Parted().eval()
    small = pruned(model, torch.randn(1, 3, 3))
    for count in (2, 3, 4):
        inputs = torch.randn(2, count, 3)
        torch.testing.assert_close(small(inputs), elsewhere(model, inputs))


class Positions(nn.Module):
    """A table of positions, and rows laid out again by their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Four rows of three numbers."""
        if x.shape[1] != 4:
            raise ValueError("four rows are wanted")
        return self.head((self.embed(x).transpose(1, 2).reshape(-1, 8, 4).transpose(1, 2) + self.table).relu())


def test_a_graph_refuses_what_the_model_refuses() -> None:
    model = Positions().eval()
    small = pruned(model, torch.randn(1, 4, 3))
    torch.testing.assert_close(small(x := torch.randn(5, 4, 3)), elsewhere(model, x))
    with pytest.raises(ValueError, match="four rows"):
        model(torch.randn(1, 8, 3))
    with pytest.raises(AssertionError, match="does not hold for inputs of these sizes"):
        small(torch.randn(1, 8, 3))
