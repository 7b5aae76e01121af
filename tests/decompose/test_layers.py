"""Which layers can be factorized, and putting factors into a model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from secateur.capture import record
from secateur.capture.normalize import normalize
from secateur.decompose import (
    CP,
    METHODS,
    SVD,
    Call,
    Decomposable,
    Refusal,
    Tucker,
    acts_as_base,
    captured_layers,
    decomposable,
    decomposable_layers,
    decompose,
    method_of,
    replace_layers,
    settings_of,
)
from secateur.errors import PlanError, SelectionError


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
        Decomposable(("0", "3"), ("svd",), None, ("svd",), "Linear 16 -> 16", 272, 256),
        Decomposable(("2.0",), (), "it is too small: even rank 1 costs as much as the layer", ("svd",), "Linear 2 -> 2", 6, 4),
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


def captured(model, inputs):
    return captured_layers(normalize(record(model.eval(), (inputs,))))


class Reading(nn.Module):
    """Reads weights of its layers past their forward: one is shared, one is used directly, one never."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(16, 16), nn.Linear(16, 16)
        self.head.weight = self.table.weight
        self.direct, self.idle, self.plain, self.twice = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, ids):
        x = nn.functional.linear(self.table(ids), self.direct.weight)
        return self.head(self.twice(self.twice(self.plain(x))))


def test_the_graph_tells_who_else_reads_a_weight():
    found = captured(Reading(), torch.arange(6).reshape(2, 3))
    assert {row.name: row.methods for row in found if row.methods} == {"plain": ("svd",), "twice": ("svd",)}
    for name, reason in {"head": "shared with table.weight", "direct": "read by the model itself", "idle": "does not run it"}.items():
        assert reason in found[name].reason
    assert [row.name for row in found if row.calls] == ["plain", "twice"]
    assert found["twice"].calls == (Call(6, ()), Call(6, ()))
    assert (found["plain"].macs, found["twice"].macs) == (6 * 256, 2 * 6 * 256)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("normalised", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_is_computed_is_told_from_one_that_is_not_run(normalised):
    (row,) = captured(nn.Sequential(normalised(nn.Linear(16, 16))), torch.randn(2, 16))
    assert "computed from other tensors" in row.reason


class FirstOf(nn.Linear):
    """A subclass that takes a list."""

    def forward(self, xs):
        return super().forward(xs[0])


class Listing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), FirstOf(16, 16)

    def forward(self, x):
        return self.second([self.first(x)])


def test_a_layer_that_takes_no_tensor_stays():
    found = {row.name: row for row in captured_layers(normalize(record(Listing(), (torch.randn(2, 16),))))}
    assert found["first"].methods == ("svd",)
    assert found["second"].methods == ()
    assert "overrides forward" in found["second"].reason


class Standardised(nn.Linear):
    """Computes with another weight, which it makes of its own."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)


def test_a_layer_that_computes_with_another_weight_than_its_own_is_told_from_one_that_is_not_run():
    (row,) = captured(nn.Sequential(Standardised(16, 16)), torch.randn(2, 16))
    assert row.reason == "it computes with other values than those of its weight"


def test_work_is_counted_at_the_sizes_that_a_run_shows():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Conv2d(6, 8, (1, 5)), nn.Flatten(), nn.Linear(32, 3))
    rows = captured(model, torch.randn(2, 4, 4, 11))
    assert [row.calls for row in rows] == [(Call(2, (4, 11)),), (Call(2, (2, 6)),), (Call(2, ()),)]
    assert [row.macs for row in rows] == [2 * 12 * 4 * 6 * 9, 2 * 4 * 6 * 8 * 5, 2 * 32 * 3]


@pytest.mark.parametrize("padding", ["same", (2, 1)])
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_a_layer_that_pads_its_own_input_is_counted_at_the_size_that_it_is_given(padding, mode):
    layer = nn.Conv2d(4, 6, (5, 3), padding=padding, padding_mode=mode)
    (row,) = captured(nn.Sequential(layer), torch.randn(2, 4, 7, 9))
    assert row.calls == (Call(2, (7, 9)),)
    assert row.macs == 2 * 7 * 9 * 4 * 6 * 15


def test_subclasses_are_admitted_where_they_were_seen_to_act_as_their_base():
    class Padding(nn.Conv2d):
        """Pads as much as the size of its input leaves over."""

        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, x.shape[3] % 2)))

    model = nn.Sequential(PaddedConv(16, 16, 1), PaddedConv(16, 16, 3), Padding(16, 16, 3), nn.Conv2d(16, 16, 3, groups=16))
    rows = captured(model, torch.randn(1, 16, 9, 9))
    assert [(row.name, row.trusted) for row in rows] == [("0", True), ("1", False), ("2", False), ("3", False)]
    assert rows["0"].methods == ("svd",)
    assert "depthwise" in rows["3"].reason
    assert rows.to_json()[0]["names"] == ("0",)
    assert "1 of 4 layers can be factorized" in str(rows)


def test_settings_make_the_method_again():
    for method in (CP(separable=False, seed=3), SVD(), Tucker(keep_full=True)):
        assert method_of(method.name, settings_of(method)) == method
    assert settings_of(CP(separable=False)) == {"separable": False}
    with pytest.raises(PlanError, match="unknown method 'qr'"):
        method_of("qr", {})
    with pytest.raises(PlanError, match="unknown setting 'rank'"):
        method_of("svd", {"rank": 3})
