"""The pairwise contractions that an einsum is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

Label = str | int
"""A letter, or for a dimension under an ellipsis its position counted from the right (-1 is the last)."""


@dataclass(frozen=True)
class _Term:
    labels: frozenset[Label]
    sources: tuple[int, ...]


def contractions(
    equation: str, shapes: Sequence[tuple[int, ...]], *, path: Sequence[int] | None = None
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Give the multiply-adds of each pairwise contraction, with the positions of the operands in it.

    Operands meet two at a time: the first two again and again, or along ``path`` if there is one (pairs of positions, where each
    result goes to the end). A product that sums over nothing is elementwise and has no multiply-adds to count.
    """
    inputs, output = _parse(equation, shapes)
    sizes = _sizes(inputs, shapes)
    terms = [_Term(frozenset(_spanned(labels, shape)), (i,)) for i, (labels, shape) in enumerate(zip(inputs, shapes, strict=True))]
    steps = iter(path or ())
    while len(terms) > 1:
        low, high = sorted((next(steps, 0), next(steps, 1)))
        right, left = terms.pop(high), terms.pop(low)
        wanted = frozenset(output).union(*(term.labels for term in terms))
        macs, result = _contract(left, right, wanted, sizes)
        if macs:
            yield macs, result.sources
        terms.insert(len(terms) if path else 0, result)


def _contract(left: _Term, right: _Term, wanted: frozenset[Label], sizes: dict[Label, int]) -> tuple[int, _Term]:
    # What one operand alone has and nobody wants later is summed away before the two meet.
    mine, others = left.labels & (right.labels | wanted), right.labels & (left.labels | wanted)
    joint = mine | others
    summed = joint - wanted
    macs = prod(sizes[label] for label in joint) if summed else 0
    return macs, _Term(joint - summed, left.sources + right.sources)


def _spanned(labels: Sequence[Label], shape: tuple[int, ...]) -> Iterator[Label]:
    return (label for label, size in zip(labels, shape, strict=True) if size != 1)


def _sizes(inputs: Sequence[Sequence[Label]], shapes: Sequence[tuple[int, ...]]) -> dict[Label, int]:
    sizes: dict[Label, int] = {}
    for labels, shape in zip(inputs, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return sizes


def _parse(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[list[list[Label]], list[Label]]:
    left, arrow, right = equation.replace(" ", "").partition("->")
    inputs = [_labels(text, len(shape)) for text, shape in zip(left.split(","), shapes, strict=True)]
    hidden = sorted({label for labels in inputs for label in labels if isinstance(label, int)})
    if arrow:
        return inputs, [*hidden, *right.replace("...", "")] if "..." in right else [*right]
    once = Counter(letter for letter in left if letter.isalpha())
    return inputs, [*hidden, *(letter for letter, uses in once.items() if uses == 1)]


def _labels(text: str, rank: int) -> list[Label]:
    before, ellipsis, after = text.partition("...")
    if not ellipsis:
        return [*text]
    return [*before, *range(len(before) + len(after) - rank, 0), *after]
