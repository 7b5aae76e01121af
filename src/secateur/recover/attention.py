"""Give thinner heads the best basis: the numbers of neurons that a cut leaves, but not the neurons that it chose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from secateur.decompose.linalg import symmetric_root
from secateur.errors import SelectionError
from secateur.groups.fields import Labels
from secateur.recover.heads import Mixing, Product, mixing, name_of, query_key
from secateur.recover.readers import Reader, readers, shape
from secateur.recover.recovery import Change, Recovered, write_back
from secateur.recover.rotated import Rotated
from secateur.recover.scaled import Scaled, Scales, alike_in_all_heads, scaled
from secateur.recover.spread import Spread
from secateur.rewrite import Cut
from secateur.score.batches import Batch, Data, batches
from secateur.score.products import product_at
from secateur.score.ranks import check_samples, counted_before

Basis = Literal["best", "kept"]
FEWEST = 1 << 12
"""Tokens of each head up to which none are left out."""
FLOOR = 1e-6
"""Directions in which activations vary less than this share of the mean count as that."""


@dataclass(frozen=True)
class Attention:
    """Give queries, keys and values of thinner heads the best basis for what attention computes, in closed form.

    Between projection and product of a head stands nothing, so any matrix may come between: Q K^T = (Q A) (K A^-T)^T. The
    best k columns under the calibration data, for each head with C_Q = E[q q^T] = L_Q L_Q^T and C_K likewise:

        L_Q^T L_K = U S V^T,     W_q <- (L_Q^-T U_k S_k^1/2)^T W_q,     W_k <- (L_K^-T V_k S_k^1/2)^T W_k

    with biases likewise and the scale as it was; and for what the mixed values z give, with C_Z = L_Z L_Z^T:

        W_o L_Z = U S V^T,       W_o <- U_k S_k,                        W_v <- V_k^T L_Z^-1 W_v

    No choice of neurons does better. With ``basis="kept"`` queries and keys keep the neurons that the cut chose, and the
    queries get the matrix that makes the scores fit best.

    Where several heads share keys, C_Q is the sum over them; where they share values, W_o and C_Z are those of all of them, and each
    W_o is then the best for the common W_v. Where rotary positions turn neurons in pairs, only what commutes with turns may come
    between: the pairs that the cut chose are turned and scaled, each by itself, such that the scores fit best. Tokens that the mask
    hides from all queries do not count. Where queries or keys pass a norm with factors of its own, the neurons that the cut chose stay and
    these factors are fitted to the scores, one for each neuron, or for both of a turned pair. Products behind anything else stay as
    they are, with the reason.

    Lin et al., MoDeGPT, ICLR 2025 (values); the queries and keys after Eckart and Young.

    Example:
        >>> import torch, timm, secateur as sc
        >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
        >>> x = torch.randn(8, 3, 32, 32)
        >>> study = sc.study(model, x)
        >>> plan = study.plan(ratios={"*.attn.qk": 0.5})
        >>> list(Attention()(sc.apply(study, plan).model, study.cut(plan), x).changes)
        ['blocks.0.attn.qk']
    """

    basis: Basis = "best"
    """Any basis, or the neurons that the cut chose with the queries fitted to them."""
    samples: int | None = 256
    """Use so many samples at most."""
    evidence: int | None = 32
    """Look at so many tokens of a head for each of its neurons, and 4,096 in all, where there are more: at some batches only. At all if
    ``None``."""

    def __call__(self, model: nn.Module, cut: Cut, data: Data | None = None) -> Recovered:
        """Set the projections in place; raises :class:`~secateur.errors.SelectionError` without data."""
        if data is None:
            raise SelectionError(f"{self} needs calibration data: give some batches with data=...")
        given = list(batches(data, cut.solution.walk.capture, samples=self.samples))
        found = self.bases(cut, given)
        write_back(found.values, model, cut.solution.walk.capture)
        seen = check_samples(sum(b.valid for b in given))
        return Recovered(f"attention in the {self.basis} basis", found.changes, found.skipped, seen)

    @torch.no_grad()
    def bases(self, cut: Cut, given: Sequence[Batch]) -> Bases:
        """New bases for all heads that a cut made thinner, from what the dense model does on calibration data."""
        products, mixings, behind_norms, skipped = _thinner(cut)
        if not products and not mixings and not behind_norms:
            return Bases(skipped=skipped)
        check_samples(len(given))
        seen, scales = Spread(cut, products, mixings), Scales(cut, behind_norms)
        before, count = counted_before(len(given))
        step = 1 if self.evidence is None else max(1, seen.tokens * count // max(self.evidence * seen.neurons, FEWEST))
        for batch in given[-before % step :: step]:
            seen.take(batch)
            scales.take(batch)
        seen.share()
        scales.share()
        made = Rotated(cut)
        values, changes = scales.fitted()
        changes |= {p.name: self._scores(p, seen, made) for p in products}
        changes |= {m.name: self._values(m, seen, made) for m in mixings if self.basis == "best"}
        return Bases(made.values() | values, dict(made.transforms), changes, skipped)

    def _scores(self, product: Product, seen: Spread, made: Rotated) -> Change:
        """New rows of both projections of a product."""
        before = after = total = 0.0
        left, right = (made.kept(heads) for heads in (product.left, product.right))
        for head, (chosen, places) in enumerate(right):
            members = [m for m in np.flatnonzero(product.key_of == head) if len(left[m][0])]
            if not members:
                continue
            key, queries = seen.moments[product.node, 1][head], [seen.moments[product.node, 0][m] for m in members]
            turned, b = self._pairs(queries, key, chosen, product.left.quarter)
            made.put(product.right.reader, places, product.right.rows[head], b.mT)
            for m, query, a in zip(members, queries, turned, strict=True):
                total += _energy(query, key)
                before += _lost(query, key, *_selections(len(query), chosen))
                after += _lost(query, key, a, b)
                made.put(product.left.reader, left[m][1], product.left.rows[m], a.mT)
        return Change(before / total, after / total, f"{self.basis} basis" if product.left.quarter is None else "kept pairs, turned")

    def _pairs(self, queries: Sequence[Tensor], key: Tensor, chosen: Labels, quarter: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """What to multiply the queries of each head by that share the keys, and the keys."""
        if self.basis == "best" and quarter is None:
            a, b = best_pair(sum(queries, torch.zeros_like(key)), key, chosen)
            return [a] * len(queries), b
        fitted = fitted_pair if quarter is None else partial(turned_pair, quarter=quarter)
        pairs = [fitted(query, key, chosen) for query in queries]
        return [a for a, _ in pairs], pairs[0][1]

    def _values(self, mix: Mixing, seen: Spread, made: Rotated) -> Change:
        """New rows of the value projection, and new columns of the one that reads it."""
        before = after = total = 0.0
        weight = made.matrix(mix.out)
        for head, (chosen, places) in enumerate(made.kept(mix.values)):
            members = [m for m in np.flatnonzero(mix.value_of == head) if made.reads(mix.out, mix.columns[m][chosen])]
            if not members:
                continue
            columns = [weight[:, mix.columns[m]] for m in members]
            seconds = [seen.moments[mix.node, 2][m] for m in members]
            forward, _ = best_factors(torch.cat(columns), sum(seconds, torch.zeros_like(seconds[0])), len(chosen))
            made.put(mix.values.reader, places, mix.values.rows[head], forward)
            for m, own, second in zip(members, columns, seconds, strict=True):
                back = best_reader(own, second, forward)
                total += _read_energy(own, second)
                left, right = _selections(len(second), chosen)
                before += _read_energy(own @ left @ right.mT - own, second)
                after += _read_energy(back @ forward - own, second)
                made.put_columns(mix.out, mix.columns[m][chosen], back)
        return Change(before / total, after / total, f"{self.basis} basis")


@dataclass(frozen=True, eq=False)
class Bases:
    """What new bases come to."""

    values: Mapping[str, Tensor] = field(default_factory=dict)
    """New values of the smaller model's tensors, by name."""
    transforms: Mapping[str, Tensor] = field(default_factory=dict)
    """By weight, what turns the dense layer's outputs into those of the smaller one: ``(kept out, out)``."""
    changes: Mapping[str, Change] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


def best_pair(query: Tensor, key: Tensor, chosen: Labels) -> tuple[Tensor, Tensor]:
    """Matrices ``(d, k)`` with which Q A (K B)^T is the best approximation of Q K^T of rank k, for second moments ``(d, d)``."""
    (left, left_inverse), (right, right_inverse) = symmetric_root(query, floor=FLOOR), symmetric_root(key, floor=FLOOR)
    u, s, vh = torch.linalg.svd(left.mT @ right)
    root, k = s[: len(chosen)].sqrt(), len(chosen)
    return left_inverse.mT @ u[:, :k] * root, right_inverse.mT @ vh.mT[:, :k] * root


def fitted_pair(query: Tensor, key: Tensor, chosen: Labels) -> tuple[Tensor, Tensor]:
    """Matrices ``(d, k)`` that keep the chosen neurons, those of the query multiplied by what makes the product fit best."""
    q, k = query[chosen], key[chosen]
    inner = _solved(q[:, chosen], q) @ _solved(k[:, chosen], k).mT
    left, right = _selections(len(query), chosen)
    return left @ inner, right


def turned_pair(query: Tensor, key: Tensor, chosen: Labels, quarter: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices ``(d, k)`` that keep the chosen neurons, each pair of the query turned and scaled such that the product fits best.

    ``quarter`` turns all pairs by a right angle. With a_p + b_p J for pair p, and z_p = (q_p . k_p, J q_p . k_p), the a and b solve
    least squares for the sum of all q_p . k_p.
    """
    left, right = _selections(len(query), chosen)
    other = quarter.abs().argmax(1).where(quarter.any(1), torch.arange(len(quarter)))
    pair = torch.minimum(other, torch.arange(len(quarter)))
    kept, place = torch.unique(pair[torch.as_tensor(chosen)], return_inverse=True)
    if len(chosen) != int(torch.isin(pair, kept).sum()):
        return left, right
    member = torch.nn.functional.one_hot(pair, len(query)).to(query).mT
    turns = (torch.eye(len(query), dtype=query.dtype), quarter.to(query))
    grams = [[member @ ((x @ query @ y.mT) * key) @ member.mT for y in turns] for x in turns]
    gram = torch.cat([torch.cat([part[kept][:, kept] for part in row], 1) for row in grams])
    wanted = torch.cat([row[0][kept].sum(1) for row in grams])
    start = torch.cat([torch.ones(len(kept)), torch.zeros(len(kept))]).to(query)
    scale, turn = (start + _solved(gram, wanted - gram @ start)).chunk(2)
    return left * scale[place] + quarter.to(query).mT @ left * turn[place], right


def best_factors(columns: Tensor, second: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``(k, d)`` and ``(out, k)`` whose product stands best for ``(out, d)`` columns, for inputs with second moments ``(d, d)``."""
    root, inverse = symmetric_root(second, floor=FLOOR)
    u, s, vh = torch.linalg.svd(columns @ root, full_matrices=False)
    scale = s[:rank].sqrt()
    return scale.unsqueeze(1) * vh[:rank] @ inverse, u[:, :rank] * scale


def best_reader(columns: Tensor, second: Tensor, forward: Tensor) -> Tensor:
    """The ``(out, k)`` factor that goes best with a ``(k, d)`` one in place of ``(out, d)`` columns."""
    return _solved(forward @ second @ forward.mT, forward @ second @ columns.mT).mT


def _read_energy(columns: Tensor, second: Tensor) -> float:
    return max(float(((columns @ second) * columns).sum()), 0.0)


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    ridge = FLOOR * gram.diagonal().mean()
    solution: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), right)
    return solution


def _selections(size: int, chosen: Labels) -> tuple[Tensor, Tensor]:
    matrix = torch.eye(size, dtype=torch.float64)[:, torch.as_tensor(chosen)]
    return matrix, matrix


def _energy(query: Tensor, key: Tensor) -> float:
    return float((query * key).sum())


def _lost(query: Tensor, key: Tensor, a: Tensor, b: Tensor) -> float:
    """Mean squared error of scores if queries and keys were drawn independently."""
    error = torch.eye(len(query), dtype=query.dtype) - a @ b.mT
    return max(float(((error.mT @ query @ error) * key).sum()), 0.0)


def _thinner(cut: Cut) -> tuple[list[Product], list[Mixing], list[Scaled], dict[str, str]]:
    """The products whose heads lose some neurons and keep others, those of them behind norms, and why others are left as they are."""
    capture = cut.solution.walk.capture
    made = {reader.node: reader for reader in readers(capture.graph)[0].values()}
    rows = Rotated(cut)
    found: dict[type, list[Any]] = {Product: [], Mixing: [], Scaled: []}
    skipped = {}
    for node, kind in _losing(cut):
        each = _product(node, made, cut) if kind == "qk" else mixing(node, made)
        if isinstance(each, str):
            skipped[name_of(node, kind)] = each
            continue
        heads = each.left if isinstance(each, Product) else each.values if isinstance(each, Mixing) else None
        if heads is None or any(0 < len(chosen) < len(own) for (chosen, _), own in zip(rows.kept(heads), heads.rows, strict=True)):
            found[type(each)].append(each)
    return found[Product], found[Mixing], found[Scaled], skipped


def _product(node: fx.Node, made: Mapping[fx.Node, Reader], cut: Cut) -> Product | Scaled | str:
    """Queries and keys between which a basis is free, or behind a norm whose factors are; else the reason."""
    capture = cut.solution.walk.capture
    plain = query_key(node, made, capture)
    if not isinstance(plain, str):
        return plain
    behind = scaled(node, made, capture)
    if isinstance(behind, Scaled) and not alike_in_all_heads(cut, behind):
        return "heads keep different neurons behind a norm"
    return behind or plain


def _losing(cut: Cut) -> Iterator[tuple[fx.Node, Literal["qk", "v"]]]:
    """Products of activations that lose neurons: those summed over, and those mixed over tokens."""
    roles: dict[str, list[Labels]] = {}
    for labels, role, node in cut.solution.ledger.roles:
        if role == "dot":
            roles.setdefault(node, []).append(labels)
    mixed = {node for _, role, node in cut.solution.ledger.roles if role == "mixed"}
    for node in cut.solution.walk.capture.graph.nodes:
        product = product_at(node)
        summed = any(not cut.keeps(labels).all() for labels in roles.get(node.name, ()))
        if summed and (product is None or _loses(cut, product.query, product.query_order[-1])):
            yield node, "qk"
        if node.name in mixed and not (summed and product is None) and _loses(cut, node, len(shape(node)) - 1):
            yield node, "v"


def _loses(cut: Cut, node: fx.Node, dim: int) -> bool:
    return any(dim in f.dims and not f.block and not cut.keeps(f.labels).all() for f in cut.fields(node))
