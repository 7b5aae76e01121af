"""Models as they come: wrapped, pruned by torch, packed, scripted, quantized."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import secateur as sc


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


class Timed(nn.Module):
    """A part of it is timed by torch's profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.body = two_layers()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.profiler.record_function("body"):
            return self.body(x)


class Packed(nn.Module):
    """Sequences of different lengths, packed for an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.recurrent, self.head = nn.Linear(4, 10), nn.LSTM(10, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0])


def pruned_by_torch() -> nn.Module:
    model = two_layers()
    prune.l1_unstructured(model[0], "weight", 0.3)
    return model


class OfComplexNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 12, dtype=torch.cfloat), nn.Linear(12, 4, dtype=torch.cfloat)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.to(torch.cfloat))).abs()


@pytest.mark.parametrize("build", [Timed, pruned_by_torch, OfComplexNumbers, lambda: nn.DataParallel(two_layers())])
def test_it_is_cut_and_proven_in_its_class(build: type[nn.Module]) -> None:
    x = torch.randn(3, 6)
    model = build().eval()
    result = sc.apply(model, sc.study(model, x).plan(ratio=0.5), x)
    assert (result.kind, type(result.model)) == ("module", type(model))
    assert result.proof.holds
    assert sum(p.numel() for p in result.model.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


def test_packed_sequences_are_cut_and_take_other_lengths() -> None:
    model, x = Packed().eval(), torch.randn(3, 5, 4)
    given = (x, torch.tensor([5, 2, 4]))
    result = sc.apply(model, sc.study(model, given).plan(ratio=0.5), given)
    assert result.model.get_submodule("recurrent").hidden_size == 4
    assert result.model.get_submodule("embed").out_features == 5
    assert result.model(x, torch.tensor([1, 3, 3])).shape == (3, 3, 3)


def test_models_whose_forward_cannot_be_seen_are_refused_by_name() -> None:
    x = torch.randn(3, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do away with both
        traced = torch.jit.trace(two_layers(), x)
        quantized = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(6, 12), nn.Linear(12, 4))
    with pytest.raises(sc.ModelError, match="compiled by TorchScript"):
        sc.study(traced, x)
    with pytest.raises(sc.ModelError, match="'0' is quantized"):
        sc.study(quantized, x)
