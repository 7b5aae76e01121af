"""Sums of products: linear layers, matrix products, einsum."""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase

from secateur.groups.fields import Fields
from secateur.groups.meeting import Shaped, contract, meet
from secateur.groups.rules.normalisation import renormalises
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


@rule("aten.linear", pliant=True)
def linear(call: Call) -> Outcome:
    """``y[..., o] = x[..., i] w[o, i] + b[o]``."""
    x, weight = call["input"], call["weight"]
    batch = ascii_lowercase[: len(x.shape) - 1]
    words = [batch + "z", "yz"] if len(weight.shape) == 2 else [batch + "z", "z"]
    out = batch + "y" if len(weight.shape) == 2 else batch
    return add_bias(call, product(call, [x, weight], words, out), call.shape, call["bias"])


@rule("aten.matmul", "aten.bmm", "aten.mm", "aten.mv", "aten.dot", "aten.vdot", pliant=True)
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


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv", pliant=True)
def addmm(call: Call) -> Outcome:
    """A matrix product added to a broadcast first operand."""
    bias, a, b = call.operands()
    if str(call.node.target).startswith("aten.addbmm"):
        return call.refuse("aten.addbmm sums over its batch, which has no rule")
    fields = _matmul(call, a, b)
    return meet(call.ledger, [bias, Shaped(call.shape, fields)], len(call.shape))


@rule("aten.tensordot")
def tensordot(call: Call) -> Outcome:
    """Some dimensions of one operand are summed over together with as many of another."""
    a, b = call["self"], call["other"]
    left, right = list(ascii_lowercase[: len(a.shape)]), list(ascii_uppercase[: len(b.shape)])
    for here, there in zip(call["dims_self"], call["dims_other"], strict=True):
        right[there] = left[here]
    out = [c for c in left if c not in right] + [c for c in right if c not in left]
    return product(call, [a, b], ["".join(left), "".join(right)], "".join(out))


@rule("aten.inner")
def inner(call: Call) -> Outcome:
    """``y[..., j...] = a[..., k] b[j..., k]``."""
    a, b = call.operands()
    if not a.shape or not b.shape:
        return meet(call.ledger, [a, b], len(call.shape))
    left, right = ascii_lowercase[: len(a.shape) - 1], ascii_uppercase[: len(b.shape) - 1]
    return product(call, [a, b], [left + "z", right + "z"], left + right)


@rule("aten.outer", "aten.ger", "aten.addr")
def outer(call: Call) -> Outcome:
    """``y[i, j] = a[i] b[j]``, added to a first operand if there are three."""
    *bias, a, b = call.operands()
    fields = product(call, [a, b], ["i", "j"], "ij")
    return meet(call.ledger, [*bias, Shaped(call.shape, fields)], len(call.shape))


@rule("aten.bilinear")
def bilinear(call: Call) -> Outcome:
    """``y[..., o] = a[..., i] w[o, i, j] b[..., j] + c[o]``."""
    a, b, weight = call["input1"], call["input2"], call["weight"]
    batch = ascii_lowercase[: len(a.shape) - 1]
    fields = product(call, [a, b, weight], [batch + "x", batch + "z", "yxz"], batch + "y")
    return add_bias(call, fields, call.shape, call["bias"])


@rule("aten.cdist")
def distances(call: Call) -> Outcome:
    """The distance of every row of one operand to every row of another, to which an absent position adds nothing."""
    a, b = call["x1"], call["x2"]
    if call["p"] < 0 or len(a.shape) != len(b.shape):
        return call.refuse("distances of this kind have no rule")
    batch = ascii_lowercase[: len(a.shape) - 2]
    return product(call, [a, b], [batch + "xz", batch + "yz"], batch + "xy")


@rule("aten.pairwise_distance")
def pairwise(call: Call) -> Outcome:
    """The distance of two vectors, from now on one over the kept positions: a small number is added to every difference."""
    a, b = call["x1"], call["x2"]
    if call["p"] < 0:
        return call.refuse("distances of this kind have no rule")
    rank = max(len(a.shape), len(b.shape))
    renormalises(call, a, frozenset({len(a.shape) - 1}))
    words = [ascii_lowercase[rank - len(each.shape) : rank] for each in (a, b)]
    fields = product(call, [a, b], words, ascii_lowercase[: rank - 1])
    return tuple(f.laid(f.labels[..., None]) for f in fields) if call["keepdim"] else fields


@rule("aten.cosine_similarity", "aten.linalg_vecdot")
def cosine(call: Call) -> Outcome:
    """Products of two operands, summed over one dimension."""
    a, b = call.operands()
    rank = max(len(a.shape), len(b.shape))
    dim = call["dim"] % rank
    words = [ascii_lowercase[rank - len(each.shape) : rank] for each in (a, b)]
    return product(call, [a, b], words, ascii_lowercase[:rank].replace(ascii_lowercase[dim], ""))


@rule("aten.einsum", pliant=True)
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
