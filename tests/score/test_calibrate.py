from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from score.by_hand import solved
from secateur.capture.capture import Capture
from secateur.capture.record import record
from secateur.errors import FileError, ModelError, SelectionError
from secateur.score import L2, OBS, SNP, Fisher, NuclearNorm, Scorer, Taylor, Variance, calibrate, gather, score_groups
from secateur.score.batches import batches, calibration_inputs, held


class Two(nn.Module):
    """Two inputs, one of them by keyword, and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0, y: Tensor) -> Tensor:
        return self.a(x) * scale + self.b(y)


def captured() -> Capture:
    return record(nn.Linear(3, 2), (torch.randn(4, 3),))


def taken(data: Any, capture: Capture | None = None, samples: int | None = None) -> list[Tensor]:
    """The samples that count, batch by batch, of a model with one input."""
    found = list(batches(data, capture or captured(), samples=samples))
    assert all(b.size == 4 and b.leaves[0].shape[0] == 4 for b in found)
    return [b.leaves[0][: b.valid] for b in found]


ROWS = torch.arange(33.0).reshape(11, 3)


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        ROWS.numpy(),
        [ROWS],
        ROWS.split(4),
        ROWS.split(3),
        list(ROWS.split(1)),
        [(part, torch.zeros(len(part))) for part in ROWS.split(5)],
        [{"input": part, "label": 0} for part in ROWS.split(5)],
        {"input": ROWS},
        [((part,), {}) for part in ROWS.split(5)],
        TensorDataset(ROWS, torch.zeros(11)),
        DataLoader(TensorDataset(ROWS, torch.zeros(11)), batch_size=2),
    ],
    ids=["tensor", "array", "list", "even", "ragged", "single", "with labels", "mappings", "mapping", "pairs", "dataset", "loader"],
)
def test_every_form_of_data_gives_the_same_samples(data: Any) -> None:
    found = taken(data)
    assert [len(part) for part in found] == [4, 4, 3]
    assert torch.equal(torch.cat(found), ROWS)


def test_an_iterator_is_read_no_further_than_needed() -> None:
    read = []

    def long() -> Iterator[Tensor]:
        for _ in range(9):
            read.append(1)
            yield ROWS[:4]

    assert [len(part) for part in taken(long(), samples=10)] == [4, 4, 2]
    assert len(read) == 3


def test_files_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", ROWS.numpy())
    np.savez(tmp_path / "x.npz", input=ROWS.numpy())
    np.savez(tmp_path / "plain.npz", ROWS.numpy())
    (tmp_path / "loading.py").write_text("import torch\ndef rows():\n    return torch.arange(33.0).reshape(11, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for source in (tmp_path / "x.npy", str(tmp_path / "x.npz"), tmp_path / "plain.npz", "loading:rows"):
        assert torch.equal(torch.cat(taken(source)), ROWS)
    sys.modules.pop("loading")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("nowhere.npy", FileError, "nowhere"),
        ("nowhere", FileError, "no such folder"),
        ("no_such_module:f", SelectionError, "no_such_module"),
        ("json:no_such_function", SelectionError, "no_such_function"),
    ],
)
def test_sources_that_cannot_be_read_are_named(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        taken(text)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises(FileError, match=name):
            taken(tmp_path / name)


def test_a_folder_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for number, size in enumerate([(8, 8), (16, 8)]):
        pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        pixels[..., 0] = 255
        image.fromarray(pixels).save(tmp_path / f"{number}.png")
    capture = record(nn.Conv2d(3, 2, 1), (torch.randn(2, 3, 4, 4),))
    found = next(iter(batches(tmp_path, capture, samples=None))).leaves[0]
    assert found.shape == (2, 3, 4, 4)
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(found, expected.view(1, 3, 1, 1).expand(2, 3, 4, 4))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no images"):
        taken(tmp_path, record(nn.Conv2d(3, 2, 1), (torch.randn(4, 3, 4, 4),)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.randn(5, 4), ModelError, "n x 4, the example inputs n x 3"),
        ([torch.randn(5, 3, 1)], ModelError, "n x 3 x 1"),
        (list(ROWS), ModelError, "first dimension, as a DataLoader"),
        ([{"other": ROWS}], ModelError, "no 'input'"),
        ([torch.tensor(1.0)], ModelError, "of a number"),
        (ROWS.byte(), ModelError, "uint8, the example inputs float32"),
        ([ROWS.long()], ModelError, "int64"),
        (torch.full((2, 3), torch.nan), ModelError, "NaN"),
        (["a", "b"], ModelError, "a str where the model takes a tensor n x 3"),
        (np.array([[1, "a", 2]], dtype=object), ModelError, "ndarray"),
        (5, SelectionError, "not 'int'"),
    ],
)
def test_samples_that_the_model_does_not_take_are_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        taken(data)


@pytest.mark.parametrize("samples", [0, -1])
def test_a_number_of_samples_is_from_one_up(samples: int) -> None:
    with pytest.raises(SelectionError, match="from 1 up"):
        taken(ROWS, samples=samples)


def test_token_numbers_are_whole_and_masks_may_be_truth_values() -> None:
    tokens = record(nn.Embedding(9, 2), (torch.zeros(4, 3, dtype=torch.int64),))
    assert taken(ROWS.int().clamp(max=8), tokens)[0].dtype == torch.int64
    with pytest.raises(ModelError, match="float32, the example inputs int64"):
        taken(ROWS, tokens)
    assert taken(ROWS > 4)[0].dtype == torch.float32


def test_an_iterator_is_held_as_far_as_needed_and_anything_else_is_left() -> None:
    parts = iter(ROWS.split(4))
    kept = held(parts, 5)
    assert [len(part) for part in kept] == [4, 4]
    assert len(next(parts)) == 3
    assert len(list(held(({"x": part.numpy()} for part in ROWS.split(4)), None))) == 3
    for data in (ROWS, ROWS.numpy(), {"input": ROWS}, "somewhere.npy", TensorDataset(ROWS)):
        assert held(data, 5) is data


def test_several_inputs_by_place_and_by_name() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    capture = record(Two(), (x[:2],), {"scale": 2.0, "y": y[:2]})
    found = list(batches([{"x": x, "y": y, "label": 1}], capture, samples=None))
    assert [b.valid for b in found] == [2, 2, 2]
    leaves = [leaf for b in found for leaf in b.leaves]
    assert torch.equal(torch.cat([v for v in leaves if isinstance(v, Tensor) and v.shape[1] == 3]), x)
    assert torch.equal(torch.cat([v for v in leaves if isinstance(v, Tensor) and v.shape[1] == 2]), y)
    with pytest.raises(ModelError, match="'y'"):
        list(batches([{"x": x}], capture, samples=None))


def test_samples_take_the_dtype_of_the_example() -> None:
    capture = record(nn.Linear(3, 2).double(), (torch.randn(4, 3).double(),))
    assert taken(ROWS, capture)[0].dtype == torch.float64


def test_one_pass_serves_all_criteria_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    solution, groups = solved(model, torch.randn(2, 3, 4, 4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    reads = []

    def once() -> Iterator[Tensor]:
        reads.append(1)
        yield torch.ones(4, 3, 4, 4)

    observed = calibrate(solution, groups, [L2(), NuclearNorm(), SNP()], once())
    assert set(observed) == {(c, "0") for c in (NuclearNorm(), SNP())}
    assert len(reads) == 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("criterion", [L2(), SNP()], ids=str)
def test_data_are_left_alone_where_nobody_asks(criterion: Scorer) -> None:
    solution, groups = solved(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    data = iter([ROWS])
    calibrate(solution, groups, [criterion], data)
    assert next(data) is ROWS


def test_empty_data_are_an_error() -> None:
    solution, groups = solved(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3))
    with pytest.raises(SelectionError, match="no samples"):
        calibrate(solution, groups, [NuclearNorm()], iter([]))


@pytest.mark.parametrize("criterion", [NuclearNorm(), OBS(), Variance(), Taylor(), Fisher()], ids=str)
@pytest.mark.parametrize("samples", [2, 30])
def test_activations_that_are_not_finite_are_an_error(criterion: Scorer, samples: int) -> None:
    solution, groups = solved(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 2, 2))
    data = torch.full((samples, 3, 2, 2), torch.inf)
    observed = calibrate(solution, groups, [criterion], data)
    with pytest.raises(ModelError, match="not finite"):
        score_groups(criterion, groups, gather(solution, observed=observed))


def test_tokens_in_front_of_samples_do_not_matter() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.transpose(0, 1))).transpose(0, 1)

    torch.manual_seed(0)
    turned, data = TokensFirst(), torch.randn(7, 6, 3)
    plain = nn.Sequential(turned.a, turned.b)
    found = []
    for model in (turned, plain):
        solution, groups = solved(model, data[:2])
        observed = calibrate(solution, groups, [NuclearNorm()], data)
        found.append(NuclearNorm()(groups[0], gather(solution, observed=observed)))
    torch.testing.assert_close(found[0], found[1])


class Message(nn.Module):
    """Nodes of a graph, and where its edges go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        hidden = self.first(nodes).relu()
        return self.last(torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]]))


def graphs(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(5, 3), torch.randint(0, 5, (2, 9))) for _ in range(count)]


def test_batches_without_a_common_first_dimension_are_taken_whole() -> None:
    capture, given = record(Message(), graphs(1)[0]), graphs(4)
    found = list(batches(given, capture, samples=3))
    assert [(b.size, b.valid) for b in found] == [(1, 1)] * 3
    assert all(
        torch.equal(ours, theirs) for b, pair in zip(found, given, strict=False) for ours, theirs in zip(b.leaves, pair, strict=True)
    )
    assert len(list(calibration_inputs(capture, given))) == 4


def test_batches_that_are_taken_whole_have_the_shapes_of_the_example() -> None:
    with pytest.raises(ModelError, match=r"has the shape .4, 3., .* batches are taken whole"):
        list(batches([(torch.randn(4, 3), torch.randint(0, 4, (2, 9)))], record(Message(), graphs(1)[0]), samples=None))
