"""torch.export in the form of a capture, with sizes left open where the model leaves them open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from capture.models import Branching, ConvNet, Counting, Creating, Memory, Nested, Tied
from secateur.capture import Capture, export, record
from secateur.capture.export import CLOSED
from secateur.capture.flat import FlatModel
from secateur.capture.sizes import open_sizes
from secateur.capture.verify import check_on
from secateur.errors import CaptureError

aten = torch.ops.aten


def rerun(capture: Capture, *args: object, **kwargs: object) -> Any:
    return pytree.tree_unflatten(list(capture.program(*pytree.tree_leaves((args, kwargs)))), capture.out_spec)


def targets(capture: Capture) -> list[object]:
    return [node.target for node in capture.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("batch", [1, 2])
def test_batch_and_image_size_stay_open(batch: int) -> None:
    model = ConvNet()
    capture = export(model, (torch.randn(batch, 3, 8, 8),), dynamic=True)
    assert (capture.how, capture.dynamic) == ("export", True)
    assert capture.notes == ("torch.export: input dimensions that may vary: input_0[0, 2, 3]",)
    assert model.training
    model.eval()
    for other in (torch.randn(1, 3, 8, 8), torch.randn(5, 3, 11, 6)):
        torch.testing.assert_close(rerun(capture, other), model(other))


def test_calls_names_and_paths_are_those_of_the_recorder() -> None:
    args = (torch.randn(2, 3, 8, 8),)
    exported, recorded = export(ConvNet(), args, dynamic=False), record(ConvNet(), args)
    assert not exported.dynamic
    for attribute in ("op", "target"):
        assert [getattr(n, attribute) for n in exported.graph.nodes if n.op == "call_function"] == [
            getattr(n, attribute) for n in recorded.graph.nodes if n.op == "call_function"
        ]
    paths = [[n.meta["module"] for n in c.graph.nodes if n.op == "call_function"] for c in (exported, recorded)]
    assert paths[0] == paths[1]
    assert {n.target for n in exported.graph.find_nodes(op="get_attr")} == {n.target for n in recorded.graph.find_nodes(op="get_attr")}


class FixedPositions(nn.Module):
    """A table of positions fixes the length; the batch is free."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions


class Staged(nn.Module):
    """Another calculation for large inputs: its length must not be left open."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1).cumsum(1) if x.shape[1] > 6 else x * 2


@pytest.mark.parametrize(("model", "shape"), [(FixedPositions(), (3, 6, 4)), (Staged(), (3, 4))])
def test_sizes_that_the_model_fixes_are_not_left_open(model: nn.Module, shape: tuple[int, ...]) -> None:
    capture = export(model, (torch.randn(shape),), dynamic=True)
    told = [note for note in capture.notes if note.startswith("torch.export: input")]
    assert told == ["torch.export: input dimensions that may vary: input_0[0]"]
    assert (CLOSED in capture.notes) == isinstance(model, Staged)


class Twice(nn.Module):
    """Makes other calls at each length that is tried."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.shape[1] == 8 else x.tanh()


def test_a_note_tells_of_sizes_that_the_model_alone_takes() -> None:
    flat = [torch.randn(3, 8)]
    assert open_sizes(FlatModel(Twice(), flat, pytree.tree_structure(((0,), {}))), flat).closed == [(0, 1)]
    assert CLOSED in export(Twice(), (flat[0],), dynamic=True).notes
    assert CLOSED not in export(FixedPositions(), (torch.randn(3, 6, 4),), dynamic=True).notes


class AtFour(nn.Module):
    """A product that fits one length."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight) if x.shape[1] == 4 else x[:, :2]


def test_a_program_may_refuse_sizes_in_doubt_but_not_give_something_else() -> None:
    capture, longer = record(AtFour(), (torch.randn(3, 4),)), [torch.randn(3, 6)]
    run = FlatModel(AtFour(), capture.flat_inputs(), capture.in_spec)
    check_on(capture, longer, run, may_refuse=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check_on(capture, longer, run)
    with pytest.raises(CaptureError, match="Output 0"):
        check_on(capture, [torch.randn(3, 4)], run, may_refuse=True)


def test_open_sizes_are_found_before_exporting() -> None:
    for model, shape, expected in ((FixedPositions(), (3, 6, 4), []), (ConvNet(), (2, 3, 8, 4), [(0, 2), (0, 3)])):
        flat = [torch.randn(shape)]
        places, witnesses, doubts, closed = open_sizes(FlatModel(model, flat, pytree.tree_structure(((0,), {}))), flat)
        assert (doubts, closed) == ([], [])
        assert places == expected
        assert {tuple(witness[0].shape) for witness in witnesses} == (
            {(2, 3, 4, 4), (2, 3, 16, 4), (2, 3, 8, 2), (2, 3, 8, 8)} if expected else set()
        )


def test_sizes_with_other_calls_are_in_doubt() -> None:
    flat = [torch.randn(3, 4)]
    found = open_sizes(FlatModel(Staged(), flat, pytree.tree_structure(((0,), {}))), flat)
    assert found.places == [(0, 1)]
    assert [[tuple(x.shape) for x in inputs] for inputs in (*found.witnesses, *found.doubts)] == [[(3, 2)], [(3, 6)], [(3, 8)]]


class Skipping(nn.Module):
    """Leaves a mask out that hides nothing, unless it is exported, and refuses an odd length."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        pairs = x.reshape(x.shape[0], x.shape[1] // 2, 2).flatten(1)
        return pairs if not torch.compiler.is_compiling() and bool(mask.all()) else pairs * mask


def test_sizes_stay_open_where_other_calls_give_the_same() -> None:
    mask = torch.ones(3, 8)
    mask[:, 5:] = 0
    capture = export(Skipping(), (torch.randn(3, 8), mask), dynamic=True)
    assert capture.notes[-1] == "torch.export: input dimensions that may vary: input_0[0, 1], input_1[0, 1]"


@pytest.mark.parametrize(
    "forward", [lambda _, x: x * 2 if x.shape[0] % 2 else x * 3, lambda _, x: x.reshape(2, 3) * 2], ids=["even", "reshape"]
)
def test_a_batch_that_the_model_fixes_is_not_left_open(forward: Any) -> None:
    model = type("Fixed", (nn.Module,), {"forward": forward})()
    capture = export(model, (torch.randn(2, 3),), dynamic=True)
    assert "input_0[0" not in capture.notes[-1]
    assert capture.dynamic is ("may vary" in capture.notes[-1])


def test_assertions_are_left_out() -> None:
    class Checking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._check(x.shape[0] > 1)
            torch._assert(x.dim() == 2, "two dimensions")
            return x.to(torch.float64) + 1

    capture = export(Checking(), (torch.randn(3, 2),), dynamic=True)
    assert [str(target) for target in targets(capture) if "to" not in str(target)] == ["aten.add.Tensor"]


class OneOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise ValueError("one at a time")
        return self.lin(x)


def test_a_model_for_single_examples_gets_fixed_sizes() -> None:
    capture = export(OneOnly(), (torch.randn(1, 3),), dynamic=True)
    assert not capture.dynamic
    assert capture.notes[-1] == "torch.export: input sizes are fixed"


def test_sequences_with_masks_by_name() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)

        def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
            length = ids.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None].bool()
            x = self.embed(ids)
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=causal)

    model, ids = Masked(), torch.randint(0, 9, (2, 5))
    capture = export(model, (), {"mask": torch.ones(2, 5, dtype=torch.long), "ids": ids}, dynamic=True)
    assert [node.name for node in capture.graph.find_nodes(op="placeholder")] == ["mask", "ids"]
    mask, others = torch.tensor([[1, 1, 0]]).expand(4, 3), torch.randint(0, 9, (4, 3))
    torch.testing.assert_close(rerun(capture, mask=mask, ids=others), model(others, mask))


def test_state_that_a_forward_writes_is_put_back() -> None:
    model = Counting()
    capture = export(model, (torch.ones(2),), dynamic=True)
    assert (model.count.tolist(), model.last.tolist(), model.anchor.tolist(), model.notes) == ([0, 0], [0], [1, 1], {"calls": 0})
    assert "_constant_0" in capture.tied
    model.anchor.fill_(9)
    for _ in range(2):
        torch.testing.assert_close(rerun(capture, torch.ones(2)), torch.tensor([3.0, 2.0]))


def test_nested_inputs_and_outputs() -> None:
    model, pair = Nested(), (torch.randn(2, 3), torch.randn(2, 3))
    capture = export(model, (pair,), {"scale": 2.0, "options": None}, dynamic=True)
    others = (torch.randn(4, 3), torch.randn(4, 3))
    found, expected = rerun(capture, others, scale=2.0, options=None), model(others, scale=2.0)
    torch.testing.assert_close(found["y"][0], expected["y"][0])
    assert (found["y"][1], found["n"]) == (None, 4)
    assert isinstance(found["memory"], Memory)
    torch.testing.assert_close(found["memory"].layers[0]["v"], others[1])


def test_constants_and_tied_tensors() -> None:
    capture = export(Creating(), (torch.randn(2, 4),), dynamic=False)
    assert torch.equal(capture.leaf("_constant_0"), torch.tensor([1.0, 2.0]))
    tied = export(Tied(), (torch.tensor([[1, 2]]),), dynamic=False)
    assert [node.target for node in tied.graph.find_nodes(op="get_attr")] == ["embed.weight"]


def test_wrappers_are_inlined() -> None:
    class Without(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                y = self.lin(x)
            with torch.enable_grad():
                z = y * 2
            return z + x

    capture = export(Without(), (torch.randn(2, 3),), dynamic=True)
    assert targets(capture) == [aten.linear.default, aten.mul.Tensor, aten.add.Tensor]
    assert [n.meta["module"] for n in capture.graph.nodes if n.op == "call_function"] == ["lin", "", ""]


def test_what_reads_tensors_cannot_be_exported() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export with fixed sizes: "):
        export(Branching(), (torch.ones(2, 3),), dynamic=True)
