"""Initial states of recurrent operators, whose sizes torch does not look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from secateur.capture.normalize import probes
from secateur.capture.states import check_states, starts_from_inputs
from secateur.errors import CaptureError
from secateur.export.pt2 import export_program

aten = torch.ops.aten


class Stepping(nn.Module):
    def __init__(self, *, given: bool) -> None:
        super().__init__()
        self.given, self.lstm = given, nn.LSTM(3, 4)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        start = state + 1 if self.given else x.new_zeros(1, x.shape[1], 4)
        found: Tensor = aten.lstm.input(x, [start, start], self.lstm._flat_weights, True, 1, 0.0, False, False, False)[0]
        return found


@pytest.mark.parametrize("given", [True, False])
def test_states_that_come_from_the_caller_are_found(given: bool) -> None:
    program = torch.export.export(
        Stepping(given=given).eval(), (torch.ones(5, 2, 3), torch.zeros(1, 2, 4)), dynamic_shapes=({1: torch.export.Dim.AUTO}, None)
    ).module()
    assert isinstance(program, fx.GraphModule)
    assert starts_from_inputs(program) is given
    assert not starts_from_inputs(Stepping(given=given))


@pytest.mark.parametrize(
    ("x", "state", "layers", "both", "first", "fits"),
    [
        ((5, 2, 3), (1, 2, 4), 1, False, False, True),
        ((5, 2, 3), (1, 1, 4), 1, False, False, False),
        ((5, 2, 3), (1, 5, 4), 1, False, True, True),
        ((5, 2, 3), (2, 2, 4), 1, True, False, True),
        ((5, 2, 3), (2, 2, 4), 1, False, False, False),
        ((5, 2, 3), (4, 2, 4), 2, True, False, True),
        ((5, 3), (1, 4), 1, False, False, True),
        ((5, 3), (2, 4), 1, False, False, False),
    ],
)
@pytest.mark.parametrize("target", [aten.lstm.input, aten.gru.input])
def test_states_of_other_sizes_are_refused(
    target: object, x: tuple[int, ...], state: tuple[int, ...], layers: int, both: bool, first: bool, fits: bool
) -> None:
    states = torch.ones(state) if target is aten.gru.input else [torch.ones(state)] * 2
    args = (torch.ones(x), states, [], True, layers, 0.0, False, both, first)
    if fits:
        check_states(target, args)
    else:
        with pytest.raises(CaptureError, match="starts from a state of sizes"):
            check_states(target, args)


def test_graphs_of_given_states_are_tried_on_no_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(Stepping(given=True).eval(), (torch.ones(5, 2, 3), torch.zeros(1, 2, 4))).module(check_guards=False)
    assert isinstance(program, fx.GraphModule)
    exported = export_program(program, (torch.ones(5, 2, 3), torch.zeros(1, 2, 4)), {})
    assert exported.open_dims == {}
    assert len(exported.inputs) == 1
    seen = []
    monkeypatch.setattr(probes, "check_states", lambda target, args: seen.append(target))
    graph = fx.Graph()
    graph.output(graph.call_function(aten.relu.default, (graph.placeholder("x"),)))
    probes.probe_sizes(fx.GraphModule({}, graph), [torch.ones(2)], None)
    assert aten.relu.default in seen


def test_other_operators_are_not_looked_at() -> None:
    check_states(aten.relu.default, (torch.ones(1),))
