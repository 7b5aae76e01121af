"""Sums of products: summed dimensions meet and end, the others label the result."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groups.by_hand import found, own, whole


def test_a_linear_layer_reads_one_dimension_of_its_weight_and_writes_the_other() -> None:
    met = found(lambda a, b, c, d: F.linear(a, b, c) + d, (2, 4), (3, 4), (3,), (3,))
    assert met["b1"] == met["a1"] == own("a1", 4)
    assert met["c0"] == met["d0"] == met["b0"] == own("b0", 3)
    assert met["a0"] == own("a0", 2)


@pytest.mark.parametrize(
    ("function", "left", "right", "summed", "kept"),
    [
        (torch.matmul, (3, 4), (4, 5), ("a1", "b0"), ("a0", "b1")),
        (torch.mm, (3, 4), (4, 5), ("a1", "b0"), ("a0", "b1")),
        (torch.matmul, (2, 3, 4), (4, 5), ("a2", "b0"), ("a0", "a1", "b1")),
        (torch.matmul, (4,), (4, 5), ("a0", "b0"), ("b1",)),
        (torch.mv, (3, 4), (4,), ("a1", "b0"), ("a0",)),
        (lambda a, b: torch.einsum("...ij,jk->...ki", a, b), (2, 3, 4), (4, 5), ("a2", "b0"), ("a0", "a1", "b1")),
        (lambda a, b: torch.einsum("ij,kj", a, b), (3, 4), (5, 4), ("a1", "b1"), ("a0", "b0")),
    ],
)
def test_summed_dimensions_go_together(
    function: object, left: tuple[int, ...], right: tuple[int, ...], summed: tuple[str, str], kept: tuple[str, ...]
) -> None:
    met = found(function, left, right)  # type: ignore[arg-type]
    assert met[summed[0]] == met[summed[1]] == own(summed[0], 4)
    for place in kept:
        assert met[place] == own(place, len(met[place]))


def test_batches_of_matrices_meet() -> None:
    met = found(torch.bmm, (2, 3, 4), (2, 4, 5))
    assert met["b0"] == met["a0"] == own("a0", 2)
    assert met["b1"] == met["a2"] == own("a2", 4)


@pytest.mark.parametrize("function", [torch.addmm, lambda a, b, c: a + b @ c])
def test_a_matrix_product_is_added_to(function: object) -> None:
    met = found(function, (5,), (3, 4), (4, 5))  # type: ignore[arg-type]
    assert met["c1"] == met["a0"] == own("a0", 5)
    assert met["c0"] == met["b1"] == own("b1", 4)


def test_a_diagonal_holds_what_it_is_taken_of() -> None:
    met = found(lambda a: torch.einsum("ii->i", a), (4, 4))
    assert met["a0"] == whole(4)
    assert "diagonal" in met.why("a0")


def test_attention_contracts_the_depth_of_queries_and_keys_and_holds_the_keys() -> None:
    met = found(F.scaled_dot_product_attention, (1, 3, 4), (1, 5, 4), (1, 5, 6))
    assert met["b2"] == met["a2"] == own("a2", 4)
    assert (met["a1"], met["c2"]) == (own("a1", 3), own("c2", 6))
    assert met["b1"] == met["c1"] == whole(5)
    assert "softmax" in met.why("b1")


def test_the_heads_of_attention_meet() -> None:
    met = found(lambda a, b, c: F.scaled_dot_product_attention(*(x.reshape(1, 2, 3, 5) for x in (a, b, c))), (30,), (30,), (30,))
    assert met.rectangles
    met = found(F.scaled_dot_product_attention, (1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 6))
    assert met["a1"] == met["b1"] == met["c1"] == own("a1", 2)


def test_keys_and_values_are_shared_by_consecutive_queries() -> None:
    met = found(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, enable_gqa=True), (1, 4, 3, 6), (1, 2, 5, 6), (1, 2, 5, 7))
    assert met["a1"] == ["a1[0]", "a1[0]", "a1[2]", "a1[2]"]
    assert met["b1"] == met["c1"] == ["a1[0]", "a1[2]"]


def test_keys_alone_may_be_shared() -> None:
    met = found(lambda a, b, c: F.scaled_dot_product_attention(a, b, c, enable_gqa=True), (1, 4, 3, 6), (1, 2, 5, 6), (1, 4, 5, 7))
    assert met["a1"] == met["c1"] == ["a1[0]", "a1[0]", "a1[2]", "a1[2]"]
    assert met["b1"] == ["a1[0]", "a1[2]"]


def test_embeddings_write_columns_and_hold_rows() -> None:
    met = found(lambda a, b: F.embedding(torch.tensor([0, 2]), a) + b, (3, 4), (4,))
    assert (met["a0"], met["a1"]) == (whole(3), own("a1", 4))
    assert met["b0"] == met["a1"]
    assert met.why("a0") == "rows that are looked up by number"


def test_experts_share_their_channels_and_all_stay() -> None:
    ends = torch.tensor([2, 5, 6], dtype=torch.int32)
    met = found(lambda a, b: torch._grouped_mm(a, b, offs=ends), (6, 8), (3, 8, 16))
    assert met["a1"] == met["b1"] == own("a1", 8)
    assert met["b2"] == own("b2", 16)
    assert met["b0"] == whole(3)
    assert "experts" in met.why("b0")


def test_experts_of_another_library_share_their_channels_too() -> None:
    pytest.importorskip("transformers.integrations.moe")
    ends = torch.tensor([2, 5, 6], dtype=torch.int32)
    met = found(lambda a, b: torch.ops.transformers.grouped_mm_fallback(a, b, ends), (6, 8), (3, 8, 16))
    assert (met["a1"], met["b0"], met["b2"]) == (own("a1", 8), whole(3), own("b2", 16))
    assert met["a1"] == met["b1"]
