"""Models that hand out a cache for their next call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.capture.caches import without_caches
from secateur.decompose.slopes import gather_slopes
from secateur.errors import ModelError
from secateur.measure.fidelity import compare_outputs

X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


class Config:
    """Settings as language models have them."""

    def __init__(self) -> None:
        self.use_cache = True
        self.width = 8


class Cell(nn.Module):
    """Hands out its keys, unless asked not to."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.key, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, use_cache: bool | None = None) -> Any:
        keys = torch.relu(self.key(x))
        wanted = self.config.use_cache if use_cache is None else use_cache
        return {"y": self.head(keys), **(self.stored(keys) if wanted else {})}

    def stored(self, keys: Tensor) -> dict[str, Tensor]:
        return {"keys": keys}


class Allocating(Cell):
    """Reserves its cache by the width that the settings tell."""

    def stored(self, keys: Tensor) -> dict[str, Tensor]:
        room = torch.zeros(2, 9, self.config.width)
        room[:, :5] = keys
        return {"keys": room}


class Picky(Cell):
    """Fails on its inputs."""

    def forward(self, x: Tensor, use_cache: bool | None = None) -> Any:
        raise ValueError("never")


def test_what_only_a_cache_reads_can_go() -> None:
    model = Cell(Config())
    result = sc.apply(model, sc.study(model, X).plan(ratio=0.5), X)
    assert result.kind == "module"
    assert result.model.key.out_features == 4
    assert result.model(X)["keys"].shape == (2, 5, 4)
    assert model.config.use_cache
    assert result.model.config.use_cache


def test_a_cache_that_is_asked_for_is_an_output() -> None:
    layers = sc.study(Cell(Config()), ((X,), {"use_cache": True})).layers
    assert not any(layer.prunable for layer in layers)


def test_a_class_whose_cache_wants_other_sizes_is_not_kept() -> None:
    model = Allocating(Config())
    result = sc.apply(model, sc.study(model, X).plan(ratio=0.5), X)
    assert result.kind == "graph"
    assert list(result.model(X)) == ["y"]
    assert any("does not run with a cache" in note for note in result.notes)
    assert any("does not return the 1 tensors of the cache" in note for note in result.notes)


def test_settings_are_as_before_after_an_error() -> None:
    model = Picky(Config())
    with pytest.raises(ModelError, match="never"):
        sc.study(model, X)
    assert model.config.use_cache


def test_settings_that_several_modules_share_are_switched_once() -> None:
    shared, off = Config(), Config()
    off.use_cache = False
    model = nn.Sequential(Cell(shared), Cell(shared), Cell(off))
    with without_caches(model.modules()):
        assert not shared.use_cache
    assert shared.use_cache
    assert not off.use_cache


def test_outputs_are_compared_without_caches() -> None:
    model = Cell(Config())
    result = sc.apply(model, sc.study(model, X).plan(ratio=0.5), X)
    assert compare_outputs(model, result.model, [(X,)]).relative_l2 > 0


def test_slopes_do_not_count_what_only_a_cache_reads() -> None:
    cached, plain = Cell(Config()), Cell(Config())
    plain.load_state_dict(cached.state_dict())
    plain.config.use_cache = False
    found, expected = (gather_slopes(model, ["key"], [X])["key"] for model in (cached, plain))
    assert torch.equal(found.outer, expected.outer)
