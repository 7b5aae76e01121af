"""From scores and wishes to the channels that go."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from secateur.allocate.allocator import Allocator
from secateur.allocate.constraints import check_removal, settle
from secateur.allocate.ladder import Ladder, Scores, is_even, ladder
from secateur.allocate.manual import check_ratio, indices_by_group, ratios_by_group
from secateur.allocate.options import Options
from secateur.allocate.pool import Gone, Pool, fallen, living, without_blocks
from secateur.allocate.ties import Joined, Ties, joined
from secateur.allocate.uniform import Uniform
from secateur.errors import SelectionError
from secateur.groups.group import ChannelGroup
from secateur.plan import Prune
from secateur.score.blocks import inside


@dataclass(frozen=True)
class Allocation:
    """The channels that go from each group, and where wishes had to be bent to be legal."""

    remove: Mapping[str, tuple[int, ...]]
    """Channels or blocks by group; groups that lose nothing are not in it."""
    notes: tuple[str, ...] = ()

    def edits(self, groups: Sequence[ChannelGroup]) -> tuple[Prune, ...]:
        """The edits of a plan that remove these channels, in the order of the groups."""
        return tuple(Prune(g.name, self.remove[g.name], g.size, g.kind) for g in groups if self.remove.get(g.name))


def allocate(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    *,
    ratio: float | None = None,
    ratios: Mapping[str, float] | None = None,
    indices: Mapping[str, Iterable[int]] | None = None,
    heads: float | Mapping[str, float] | None = None,
    allocator: Allocator | None = None,
    exclude: Collection[str] = (),
    options: Options | None = None,
    ties: Ties | None = None,
) -> Allocation:
    """Choose the channels to remove.

    ``indices`` come before ``ratios``, and these before ``ratio``, which the allocator spreads over all other groups
    of channels. Whole heads and groups go first, where ``heads`` or a name asks for them; what falls with them leaves
    the pool, and counts then apply to each head that lives. Groups named in ``exclude`` stay whole. Groups that are tied
    keep the same share, of channels of their own, or all stay whole.
    """
    ties, options = ties or Ties(), options or Options()
    sets = _tied(groups, ties, options, indices or {})
    wishes = _wishes(sets.groups, ratio, ratios, indices, heads, sets.names(exclude), options)
    found = _Selection(sets, _Ranking(_scores_of(sets, scores), sets.groups, options), wishes).run(allocator or Uniform())
    return Allocation(sets.split(found.remove), (*ties.notes, *found.notes))


def _tied(groups: Sequence[ChannelGroup], ties: Ties, options: Options, indices: Mapping[str, Iterable[int]]) -> Joined:
    sets = joined(groups, ties)
    sets.refuse_indices(indices)
    if options.group_policy in ("sum", "average") and any(len(parts) > 1 for parts in sets.parts.values()):
        raise SelectionError(
            f"group_policy is {options.group_policy!r}, by which all tied layers would lose the same channels. Use 'none'."
        )
    return sets


def _scores_of(sets: Joined, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Scores of joined groups: those of their parts, one after the other."""
    known = {name: parts for name, parts in sets.parts.items() if all(part.name in scores for part in parts)}
    return {name: torch.cat([scores[part.name] for part in parts]) for name, parts in known.items()}


@dataclass(frozen=True)
class _Wishes:
    """What was asked for, by the names of groups."""

    options: Options
    ratio: float | None
    shares: Mapping[str, float]
    indices: Mapping[str, tuple[int, ...]]
    exclude: Collection[str]


def _wishes(
    groups: Sequence[ChannelGroup],
    ratio: float | None,
    ratios: Mapping[str, float] | None,
    indices: Mapping[str, Iterable[int]] | None,
    heads: float | Mapping[str, float] | None,
    exclude: Collection[str],
    options: Options,
) -> _Wishes:
    if all(wish is None for wish in (ratio, ratios, indices, heads)):
        raise SelectionError("Nothing says what to remove. Give a ratio, ratios by layer, indices, or a ratio of heads.")
    _require_prunable(groups)
    blocks = [g for g in groups if g.kind == "blocks"]
    exclude = {*exclude, *_touching(blocks, [g for g in groups if g.name in exclude])}
    if ratio is not None:
        check_ratio(ratio, "for all layers")
    if isinstance(heads, int | float):
        check_ratio(heads, "of heads")
        shares = {g.name: float(heads) for g in blocks if g.prunable and g.name not in exclude}
        if not shares:
            raise SelectionError(
                "A ratio of heads was given, but no heads or groups of this model can be removed whole, or all are to be left alone."
            )
    else:
        shares = ratios_by_group(blocks, heads, exclude) if heads else {}
    shares |= ratios_by_group(groups, ratios, exclude) if ratios else {}
    if options.whole_heads:
        shares = _handed_to_heads([g for g in groups if g.name not in exclude], shares, ratio)
    return _Wishes(options, ratio, shares, indices_by_group(groups, indices, exclude) if indices else {}, exclude)


def _handed_to_heads(groups: Sequence[ChannelGroup], shares: Mapping[str, float], ratio: float | None) -> dict[str, float]:
    """Shares in which whole heads take over the ratios of the channels inside them, the largest where these differ."""
    out = dict(shares)
    for blocks in (g for g in groups if g.kind == "blocks" and g.prunable):
        all_gone = without_blocks({}, blocks, np.arange(blocks.size))
        thinned = [g.name for g in groups if g.kind == "channels" and g.rows > 1 and fallen(g, all_gone).any()]
        asked = [shares[name] for name in thinned if name in shares]
        out.setdefault(blocks.name, max(asked, default=ratio or 0.0))
        out |= dict.fromkeys(thinned, 0.0)
    return out


def _touching(blocks: Sequence[ChannelGroup], alone: Sequence[ChannelGroup]) -> set[str]:
    """Blocks with which channels of layers to leave alone would go."""
    return {each.name for each in blocks if any(inside(each, group)[0].size for group in alone)}


def _require_prunable(groups: Sequence[ChannelGroup]) -> None:
    if not any(g.prunable for g in groups):
        reasons = dict.fromkeys(g.reason for g in groups if g.reason)
        raise SelectionError(f"No layer of this model can be pruned{': ' + '; '.join(list(reasons)[:3]) if reasons else ''}.")


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Scores as plain numbers, the lowest to go first."""

    scores: Mapping[str, Tensor]
    groups: Sequence[ChannelGroup]
    options: Options

    def ladder(self, pool: Pool, *, minimum: int) -> Ladder:
        """The order in which the channels of a pool go."""
        return ladder(pool, self._numbers(pool.group), self.options.group_policy, minimum=minimum)

    def _numbers(self, group: ChannelGroup) -> Scores:
        if group.name not in self.scores:
            raise SelectionError(f"{group.name!r} has no scores; score it first, or give its channels by index.")
        found = _as_numbers(self.scores[group.name])
        if found.shape != (group.size,) or not np.isfinite(found).all():
            raise SelectionError(f"The scores of {group.name!r} must be {group.size} finite numbers.")
        return self._mirror - found if self.options.reverse else found

    @cached_property
    def _mirror(self) -> float:
        """Lowest plus highest score of all: subtracting from it turns the order around and leaves the range as it is."""
        values = [_as_numbers(self.scores[g.name]) for g in self.groups if g.name in self.scores and g.size]
        return float(min(v.min() for v in values) + max(v.max() for v in values))


def _as_numbers(scores: Tensor) -> Scores:
    return np.asarray(scores.detach().to("cpu", torch.float64).numpy(), dtype=np.float64)


@dataclass(eq=False)
class _Selection:
    sets: Joined
    ranking: _Ranking
    wishes: _Wishes
    gone: Gone = field(default_factory=dict)
    remove: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self, allocator: Allocator) -> Allocation:
        usable = [g for g in self.sets.groups if g.prunable and g.name not in self.wishes.exclude]
        for group in usable:
            if group.kind == "blocks":
                self._blocks(group)
        self._channels([g for g in usable if g.kind == "channels"], allocator)
        if not self.remove:
            self.notes.append("Nothing is removed.")
        return Allocation(dict(self.remove), tuple(self.notes))

    def _blocks(self, group: ChannelGroup) -> None:
        share = self.wishes.shares.get(group.name)
        if group.name in self.wishes.indices:
            self._by_index(living(group, {}))
        elif share:
            self._by_blocks(group, share)
        self.gone = without_blocks(self.gone, group, np.array(self.remove.get(group.name, ()), dtype=np.int64))

    def _by_blocks(self, group: ChannelGroup, share: float) -> None:
        """Remove a share of the blocks, of which some may have fallen with others already."""
        whole, left = living(group, {}), living(group, self.gone)
        already = (whole.size - left.size) // max(sum(left.take), 1)
        wanted = self.ranking.ladder(whole, minimum=1).steps_for(share) - already
        self._take(self.ranking.ladder(left, minimum=1), max(0, wanted), replace(self.wishes.options, step_size=1, minimum=1))

    def _channels(self, groups: Sequence[ChannelGroup], allocator: Allocator) -> None:
        pools = [living(g, self.gone) for g in groups]
        for pool in pools:
            if pool.name in self.wishes.indices:
                self._by_index(pool)
            elif self.wishes.shares.get(pool.name):
                self._by_ratio(pool, self.wishes.shares[pool.name])
        rest = [p for p in pools if p.name not in self.wishes.indices and p.name not in self.wishes.shares]
        if self.wishes.ratio:
            ladders = [self._ladder(p) for p in rest if p.size]
            counts = allocator(ladders, self.wishes.ratio)
            for each in ladders:
                if (steps := counts.get(each.name, 0)) or isinstance(allocator, Uniform):
                    self._take(each, steps, self.wishes.options)

    def _by_index(self, pool: Pool) -> None:
        wanted = self.wishes.indices[pool.name]
        left = tuple(c for c in wanted if any(c in cell for cell in pool.cells))
        if len(left) < len(wanted):
            self.notes.append(f"{pool.name}: {len(wanted) - len(left)} of the given channels go with their heads or groups already")
        check_removal(pool.group, left, pool)
        self.remove[pool.name] = left

    def _by_ratio(self, pool: Pool, share: float) -> None:
        each = self._ladder(pool)
        steps = each.steps_for(share)
        self._take(each, steps, self.wishes.options)
        if not steps and pool.name not in self.remove:
            self.notes.append(
                f"{pool.name}: removes nothing: {share:g} of {pool.size // max(len(pool.cells), 1)} channels is less than one"
            )

    def _ladder(self, pool: Pool) -> Ladder:
        policy = self.wishes.options.group_policy
        if policy in ("sum", "average") and not is_even(pool):
            self.notes.append(
                f"{pool.name}: its heads or groups have unlike sizes, so each loses its own lowest channels, not the same ones"
            )
        return self.ranking.ladder(pool, minimum=self.sets.least(pool.name, self.wishes.options.minimum))

    def _take(self, each: Ladder, wanted: int, options: Options) -> None:
        steps, notes = settle(each, wanted, options)
        self.notes += notes
        if steps:
            self.remove[each.name] = each.removed(steps)
