"""Which layers can be factorized, and putting factors into a model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from secateur.decompose import (
    METHODS,
    SVD,
    Decomposable,
    Refusal,
    acts_as_base,
    decomposable,
    decomposable_layers,
    decompose,
    replace_layers,
)
from secateur.errors import SelectionError


class PaddedConv(nn.Conv2d):
    """A convolution that pads by itself, like those of mobile networks ported from elsewhere."""

    def forward(self, x):
        x = nn.functional.pad(x, (0, 1, 0, 1)) if self.kernel_size[0] > 1 else x
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride)


class Doubled(nn.Linear):
    """A subclass whose result has the shape of its base class's, and other values."""

    def forward(self, x):
        return 2 * super().forward(x)


class PlainSubclass(nn.Linear):
    """A subclass that computes what its base class computes."""


@pytest.mark.parametrize(
    ("layer", "methods"),
    [
        (nn.Linear(16, 16), ("svd",)),
        (PlainSubclass(16, 16), ("svd",)),
        (nn.Conv2d(16, 16, 1), ("svd",)),
        (nn.Conv2d(16, 16, 3), ("tucker", "cp", "spatial-svd")),
        (nn.Conv2d(16, 16, (1, 3)), ("tucker", "cp")),
        (nn.ConvTranspose1d(16, 16, 4), ("tucker", "cp")),
        (nn.Conv3d(16, 16, 3, groups=2), ("tucker", "cp", "spatial-svd")),
    ],
    ids=str,
)
def test_methods_that_gain_are_named(layer, methods):
    assert decomposable(layer) == methods
    for name in methods:
        assert decompose(layer, METHODS[name], 1).after.macs < decompose(layer, METHODS[name], 1).before.macs


def hooked():
    layer = nn.Linear(16, 16)
    layer.register_forward_hook(lambda module, args, output: output * 2)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.ReLU(), "neither"),
        (nn.Conv2d(16, 16, 3, groups=16), "depthwise"),
        (nn.Conv2d(16, 32, 3, groups=16), "depthwise"),
        (nn.Linear(2, 2), "too small"),
        (nn.Linear(16, 1), "single"),
        (PaddedConv(16, 16, 3), "overrides forward"),
        (parametrizations.weight_norm(nn.Linear(16, 16)), "parametrized"),
        (hooked(), "hooks"),
        (nn.LazyLinear(16), "no values yet"),
        (nn.Linear(16, 16, device="meta"), "no values yet"),
        (nn.Linear(16, 16, dtype=torch.complex64), "real floating"),
        (nn.MultiheadAttention(16, 2).out_proj, "read by its parent"),
    ],
    ids=str,
)
def test_layers_that_stay_carry_a_reason(layer, reason):
    found = decomposable(layer)
    assert isinstance(found, Refusal)
    assert reason in found.reason


def test_a_subclass_is_trusted_once_it_has_been_seen_to_act_as_its_base():
    pointwise, spatial = PaddedConv(16, 16, 1), PaddedConv(16, 16, 3)
    x = torch.randn(1, 16, 5, 5)
    assert acts_as_base(pointwise, x)
    assert not acts_as_base(spatial, x)
    assert not acts_as_base(Doubled(5, 5), x)
    assert not acts_as_base(nn.ReLU(), x)
    assert decomposable(pointwise, trust_forward=True) == ("svd",)
    with pytest.raises(SelectionError, match="overrides forward"):
        decompose(pointwise, SVD(), 4)
    torch.testing.assert_close(decompose(pointwise, SVD(), 16, trust_forward=True, accept_dearer=True).module(x), pointwise(x))


def shared_model():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Sequential(nn.Linear(2, 2)))
    model.append(model[0])
    return model


def test_layers_are_listed_once_with_all_their_names():
    assert decomposable_layers(shared_model()) == (
        Decomposable(("0", "3"), ("svd",)),
        Decomposable(("2.0",), (), "it is too small: even rank 1 costs as much as the layer"),
    )


def test_a_shared_layer_is_replaced_wherever_it_is_used():
    model = shared_model()
    factorized = decompose(model[0], SVD(), 4).module
    replace_layers(model, {"3": factorized})
    assert model[0] is model[3] is factorized
    assert isinstance(model[2][0], nn.Linear)


@pytest.mark.parametrize("name", ["", "4", "0.weight"])
def test_only_layers_that_exist_are_replaced(name):
    with pytest.raises(SelectionError, match="no layer named"):
        replace_layers(shared_model(), {name: nn.Identity()})
