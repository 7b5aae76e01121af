"""A study of a model: what can be cut, what can't and why, and plans for cutting it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.allocate import Allocation, Allocator, Leave, Options, allocate, excluded, settled
from secateur.capture import Capture, capture, normalise_inputs, training_branches
from secateur.capture.normalize import normalize
from secateur.capture.pause import collector_paused
from secateur.errors import PlanError, SelectionError
from secateur.groups import ChannelGroup, Solution, build_groups, solve, walk
from secateur.groups.coverage import Coverage, coverage
from secateur.layers import Layer, Layers
from secateur.measure import count_macs
from secateur.measure.macs import MacCount
from secateur.plan import Plan, fingerprint
from secateur.rewrite import Cut, offenders
from secateur.score import L2, Combine, Scorer, calibrate, gather, needs_data, score_groups
from secateur.target import Target, reach


@dataclass(frozen=True, eq=False)
class Study:
    """A captured model with its channel groups."""

    capture: Capture
    solution: Solution
    groups: tuple[ChannelGroup, ...]

    @property
    def model(self) -> nn.Module:
        """The user's model, unchanged."""
        return self.capture.model

    @cached_property
    def macs(self) -> MacCount:
        """Multiply-adds of the dense model, by weight and by layer."""
        return count_macs(self.capture.graph)

    @cached_property
    def coverage(self) -> Coverage:
        """Every dimension of every weight: prunable, or the reason why not."""
        return coverage(self.solution, self.groups)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Every tensor that the graph reads, by name."""
        names = dict.fromkeys(str(n.target) for n in self.capture.graph.find_nodes(op="get_attr"))
        return {name: self.capture.leaf(name) for name in names}

    @cached_property
    def layers(self) -> Layers:
        """The table of layers that can be cut, and of those that cannot."""
        parameters = {n: t.numel() for n, t in self.weights.items() if isinstance(t, nn.Parameter)}
        rows = tuple(Layer.of(g, parameters, self.macs.by_weight) for g in self.groups)
        shares = self.coverage.prunable_share(parameters), self.coverage.prunable_share(self.macs.by_weight)
        return Layers(rows, *shares, self.coverage.unknown, self.coverage.renormalising)

    @cached_property
    def fingerprint(self) -> str:
        """What a plan says of the model that it belongs to."""
        tensors = {n: t.shape for n, t in self.model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
        return fingerprint({name: tuple(shape) for name, shape in tensors.items()})

    def scores(
        self, criterion: Scorer | None = None, *, data: Any = None, options: Options | None = None, samples: int | None = 64
    ) -> Mapping[str, Tensor]:
        """Scores of every prunable group, by name; higher means keep.

        Raises :class:`SelectionError` if the criterion needs the activations of some group and no data is given.
        """
        criterion, options = criterion or L2(), options or Options()
        combine = Combine(policy=options.policy, layer_norm=options.layer_norm)
        observed = None
        if data is not None and needs_data(criterion):
            observed = calibrate(self.solution, self.groups, [criterion], data, combine=combine, samples=samples)
        evidence = gather(self.solution, combine=combine, observed=observed)
        return score_groups(criterion, self.groups, evidence, group_policy=options.group_policy)

    def plan(
        self,
        criterion: Scorer | None = None,
        *,
        ratio: float | None = None,
        ratios: Mapping[str, float] | None = None,
        indices: Mapping[str, Iterable[int]] | None = None,
        heads: float | Mapping[str, float] | None = None,
        target: Target | None = None,
        allocator: Allocator | None = None,
        exclude: Sequence[Leave] = (),
        options: Options | None = None,
        data: Any = None,
        samples: int | None = 64,
        scores: Mapping[str, Tensor] | None = None,
    ) -> Plan:
        """Decide what goes, and return it as a plan; nothing is changed.

        Args:
            criterion: how channels are scored; L2 norm by default.
            ratio: the fraction of every layer, or with an allocator of all layers, that goes.
            ratios: fractions by layer name or glob.
            indices: channels to remove, by layer name.
            heads: the fraction of whole heads and groups that goes.
            target: what may remain of MACs or parameters; the ratio is found.
            exclude: layers to leave alone on both sides: names, globs, types or predicates.

        Example:
            >>> import torch, secateur as sc
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> sc.study(model, torch.randn(1, 4)).plan(sc.L2(), ratio=0.5).ratios
            {'0': 0.5}
        """
        options, settling = settled(allocator, options or Options()) if allocator else (options or Options(), ())
        leave = excluded(self.groups, self.model, exclude, tied=self.capture.tied)
        needed = ratio is not None or ratios or heads is not None or target is not None
        found = scores if scores is not None else self.scores(criterion, data=data, options=options, samples=samples) if needed else {}

        def choose(share: float | None) -> Allocation:
            allocation = allocate(
                self.groups,
                found,
                ratio=share,
                ratios=ratios,
                indices=indices,
                heads=heads,
                allocator=allocator,
                exclude=leave,
                options=options,
            )
            return self._legal(allocation, tuple(indices or ()))

        allocation = reach(target, choose, self.cut_of, self.macs, ratio) if target else choose(ratio)
        settings = _settings(criterion, allocator, options, (*settling, *allocation.notes), ratio, target)
        return Plan(allocation.edits(self.groups), self.fingerprint, settings)

    def cut_of(self, remove: Mapping[str, Iterable[int]]) -> Cut:
        """The cut that removes these channels, by group."""
        dead = np.zeros(self.solution.count, dtype=bool)
        for group in self.groups:
            dead[group.classes[list(remove.get(group.name, ()))]] = True
        return Cut(self.solution, dead)

    def cut(self, plan: Plan) -> Cut:
        """The cut that a plan asks for. Raises :class:`PlanError` if the plan belongs to another model."""
        plan.check(self.fingerprint)
        known = {g.name: g for g in self.groups}
        for edit in plan.prunes:
            group = known.get(edit.group)
            if group is None or group.size != edit.size:
                text = f"The plan cuts {edit.group!r} with {edit.size} channels, which this model does not have."
                raise PlanError(f"{text} Make the plan anew.")
            if not group.prunable:
                raise PlanError(f"The plan cuts {edit.group!r}, which stays whole: {group.reason}")
        cut = self.cut_of({e.group: e.remove for e in plan.prunes})
        if (found := offenders(cut, self.groups)) is not None:
            raise PlanError(f"The plan cannot be carried out: {found[0]}. It comes from {', '.join(sorted(found[1]))}.")
        return cut

    def _legal(self, allocation: Allocation, asked: tuple[str, ...]) -> Allocation:
        """Give back the channels of groups whose choice would leave some tensor empty or ragged."""
        remove, notes = dict(allocation.remove), list(allocation.notes)
        while (found := offenders(self.cut_of(remove), self.groups)) is not None:
            text, names = found
            if not names or any(n in remove and _asked(n, asked, self.groups) for n in names):
                raise SelectionError(f"These channels cannot go: {text}. It comes from {', '.join(sorted(names)) or 'several layers'}.")
            for name in names:
                remove.pop(name, None)
            notes.append(f"{', '.join(sorted(names))}: kept whole, since {text}")
        return replace(allocation, remove=remove, notes=tuple(notes))


def _asked(name: str, asked: tuple[str, ...], groups: Sequence[ChannelGroup]) -> bool:
    return any(g.name == name and (name in asked or set(g.aliases) & set(asked)) for g in groups)


def _settings(
    criterion: Scorer | None,
    allocator: Allocator | None,
    options: Options,
    notes: tuple[str, ...],
    ratio: float | None,
    target: Target | None,
) -> dict[str, Any]:
    return {
        "criterion": repr(criterion or L2()),
        "allocator": repr(allocator) if allocator else "Uniform()",
        "options": repr(options),
        "ratio": ratio,
        "target": None if target is None else repr(target),
        "notes": list(notes),
        "secateur": version("secateur"),
        "torch": torch.__version__,
    }


def study(model: nn.Module | torch.export.ExportedProgram, inputs: Any = ()) -> Study:
    """Capture a model on example inputs and find its channel groups; the model stays as it is.

    Args:
        model: a module, a graph module or an exported program.
        inputs: a tensor, a tuple of positional inputs, a dictionary of keyword inputs, or a pair of both.

    Raises:
        ModelError: the model does not run on these inputs.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> [layer.name for layer in sc.study(model, torch.randn(1, 3, 8, 8)).layers if layer.prunable]
        ['0']
    """
    args, kwargs = normalise_inputs(inputs)
    with collector_paused():
        captured = normalize(capture(model, args, kwargs))
        aside = training_branches(captured)
        solution = solve(walk(captured, branches=None if aside is None else normalize(aside)))
        return Study(captured, solution, tuple(build_groups(solution)))
