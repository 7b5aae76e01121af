"""Sums of products: linear layers, matrix products, einsum."""

from __future__ import annotations

from string import ascii_lowercase

from secateur.groups.fields import Fields
from secateur.groups.meeting import Shaped, contract, meet
from secateur.groups.rules.registry import Call, Operand, Outcome, rule


def product(call: Call, operands: list[Operand], words: list[str], out: str) -> Fields:
    """Contract operands, and write down which labels a weight writes and reads, and which two activations share."""
    for operand, word in zip(operands, words, strict=True):
        kept = frozenset(i for i, letter in enumerate(word) if letter in out)
        summed = frozenset(range(len(word))) - kept
        if operand.parametric:
            call.ledger.note(operand.fields, kept, "writes")
            call.ledger.note(operand.fields, summed, "reads")
        elif not any(o.parametric for o in operands):
            call.ledger.note(operand.fields, summed, "dot")
            if operand is operands[-1]:
                call.ledger.note(operand.fields, kept, "mixed")
    return contract(call.ledger, operands, words, out)


def add_bias(call: Call, fields: Fields, shape: tuple[int, ...], bias: Operand | None) -> Fields:
    """Fields after a bias along the last dimension is added."""
    return fields if bias is None else meet(call.ledger, [Shaped(shape, fields), bias], len(shape))


@rule("aten.linear")
def linear(call: Call) -> Outcome:
    """``y[..., o] = x[..., i] w[o, i] + b[o]``."""
    x, weight = call["input"], call["weight"]
    batch = ascii_lowercase[: len(x.shape) - 1]
    words = [batch + "z", "yz"] if len(weight.shape) == 2 else [batch + "z", "z"]
    out = batch + "y" if len(weight.shape) == 2 else batch
    return add_bias(call, product(call, [x, weight], words, out), call.shape, call["bias"])


@rule("aten.matmul", "aten.bmm", "aten.mm", "aten.mv", "aten.dot")
def matmul(call: Call) -> Outcome:
    """``y[..., n, m] = a[..., n, k] b[..., k, m]`` with broadcast batch dimensions."""
    a, b = call.operands()
    return _matmul(call, a, b)


def _matmul(call: Call, a: Operand, b: Operand) -> Fields:
    rank = max(len(a.shape), len(b.shape), 2) - 2
    batch = ascii_lowercase[:rank]
    left = batch[rank - max(len(a.shape) - 2, 0) :] + ("yz" if len(a.shape) > 1 else "z")
    right = batch[rank - max(len(b.shape) - 2, 0) :] + ("zx" if len(b.shape) > 1 else "z")
    out = batch + ("y" if len(a.shape) > 1 else "") + ("x" if len(b.shape) > 1 else "")
    return product(call, [a, b], [left, right], out)


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv")
def addmm(call: Call) -> Outcome:
    """A matrix product added to a broadcast first operand."""
    bias, a, b = call.operands()
    if "addbmm" in str(call.node.target):
        return call.refuse("aten.addbmm sums over its batch, which has no rule")
    fields = _matmul(call, a, b)
    return meet(call.ledger, [bias, Shaped(call.shape, fields)], len(call.shape))


@rule("aten.einsum")
def einsum(call: Call) -> Outcome:
    """An einsum by its equation; an ellipsis becomes letters of its own."""
    operands: list[Operand] = list(call["tensors"])
    words, out = _equation(call["equation"], [len(o.shape) for o in operands])
    if any(len(set(word)) < len(word) for word in [*words, out]):
        return call.refuse("einsum takes a diagonal, which has no rule")
    return product(call, operands, words, out)


def _equation(text: str, ranks: list[int]) -> tuple[list[str], str]:
    left, arrow, out = text.replace(" ", "").partition("->")
    words = left.split(",")
    free = [c for c in map(chr, range(0x391, 0x3C9)) if c not in text]
    wide = max((rank - len(word.replace("...", "")) for word, rank in zip(words, ranks, strict=True) if "..." in word), default=0)
    dots = "".join(free[:wide])
    full = []
    for word, rank in zip(words, ranks, strict=True):
        own = rank - len(word.replace("...", ""))
        full.append(word.replace("...", dots[len(dots) - own :] if own else ""))
    if not arrow:
        plain = "".join(words).replace(".", "")
        out = ("..." if wide else "") + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    return full, out.replace("...", dots)
