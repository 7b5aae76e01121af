"""A study of a model: what can be cut or factorized, what can't and why, and plans for it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.allocate import Allocation, Allocator, Leave, Options, Ties, allocate, excluded, priced, settled, timed
from secateur.capture import Capture, capture, normalise_inputs, training_branches, value_branches
from secateur.capture.normalize import normalize
from secateur.capture.pause import collector_paused
from secateur.decompose import DecomposableLayers, Decomposition, captured_layers
from secateur.errors import SelectionError
from secateur.groups import ChannelGroup, Solution, build_groups, solve, walk
from secateur.groups.coverage import Coverage, coverage
from secateur.layers import Layer, Layers
from secateur.measure import EagerTimer, LayerTimes, OnnxTimer, count_macs
from secateur.measure.macs import MacCount
from secateur.plan import Edit, Fit, Plan, fingerprint
from secateur.pretrained import uniform_ties
from secateur.rewrite import Cut, offenders
from secateur.rewrite.planned import planned_cut
from secateur.score import L2, Combine, Scorer, calibrate, gather, needs_data, score_groups
from secateur.score.batches import Data
from secateur.study.calibration import Calibration, calibration
from secateur.study.decomposition import choose_factors
from secateur.study.rank_budget import Budget
from secateur.study.rank_latency import LatencyBudget
from secateur.study.stages import Between, stages
from secateur.study.wish import USUAL, Decompose, RankChoice
from secateur.target import Candidates, PredictedLatency, Quantity, Reached, Runtime, Stopwatch, Target, closest, reach


@dataclass(frozen=True)
class Start:
    """What was planned for the dense model so far, and what that model takes."""

    plan: Plan
    taken: Mapping[Quantity, int]
    """MACs, parameters and bytes."""


@dataclass(frozen=True, eq=False)
class Study:
    """A captured model with its channel groups."""

    capture: Capture
    solution: Solution
    groups: tuple[ChannelGroup, ...]
    start: Start | None = None
    """What was done to the dense model before, if this is not the dense model itself."""

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
        self, criterion: Scorer | None = None, *, data: Any = None, options: Options | None = None, samples: int | None = 256
    ) -> Mapping[str, Tensor]:
        """Scores of every prunable group, by name; higher means keep.

        Raises :class:`SelectionError` if the criterion needs the activations of some group and no data is given.
        """
        return self.scores_by({"": criterion or L2()}, data=data, options=options, samples=samples)[""]

    def scores_by(
        self, criteria: Mapping[str, Scorer], *, data: Any = None, options: Options | None = None, samples: int | None = 256
    ) -> dict[str, Mapping[str, Tensor]]:
        """Scores by several criteria under names of your own, all from one pass over the data, as :meth:`plan` takes them.

        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> found = sc.study(model, torch.randn(2, 4))
        >>> scores = found.scores_by({"norm": sc.L2(), "maps": sc.NuclearNorm()}, data=torch.randn(64, 4))
        >>> {name: found.plan(ratio=0.5, scores=each).ratios for name, each in scores.items()}
        {'norm': {'0': 0.5}, 'maps': {'0': 0.5}}
        """
        options = options or Options()
        combine = Combine(policy=options.policy, layer_norm=options.layer_norm)
        observed, asking = None, [criterion for criterion in criteria.values() if needs_data(criterion)]
        if data is not None and asking:
            observed = calibrate(self.solution, self.groups, asking, data, combine=combine, samples=samples)
        evidence = gather(self.solution, combine=combine, observed=observed)
        return {
            name: score_groups(criterion, self.groups, evidence, group_policy=options.group_policy) for name, criterion in criteria.items()
        }

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
        samples: int | None = 256,
        scores: Mapping[str, Tensor] | None = None,
    ) -> Plan:
        """Decide what goes, and return it as a plan; nothing is changed.

        Args:
            criterion: how channels are scored; L2 norm by default.
            ratio: the fraction of every layer, or with an allocator of all layers, that goes.
            ratios: fractions by layer name or glob.
            indices: channels to remove, by layer name.
            heads: the fraction of whole heads and groups that goes.
            target: what may remain of MACs, parameters, bytes or measured latency; the ratio is found.
            exclude: layers to leave alone on both sides: names, globs, types or predicates.

        Example:
            >>> import torch, secateur as sc
            >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> sc.study(model, torch.randn(1, 4)).plan(sc.L2(), ratio=0.5).ratios
            {'0': 0.5}
        """
        options = options or Options(step_size=None if target is not None and target.quantity == "latency" else 1)
        options, settling = settled(allocator, options) if allocator else (options, ())
        leave = excluded(self.groups, self.model, exclude, tied=self.capture.tied)
        ties = uniform_ties(self.model, self.groups, self.capture.tied) if options.uniform else Ties()
        needed = ratio is not None or ratios or heads is not None or target is not None
        found = scores if scores is not None else self.scores(criterion, data=data, options=options, samples=samples) if needed else {}
        runtime: Runtime = "torch" if target is None else target.runtime
        price = self._priced(allocator, runtime)
        wishes: dict[str, Any] = {"ratios": ratios, "indices": indices, "heads": heads, "exclude": leave, "ties": ties}

        def decided(options: Options) -> Reached:
            def choose(share: float | None) -> Allocation:
                allocation = allocate(self.groups, found, ratio=share, allocator=price, options=options, **wishes)
                return self._legal(allocation, tuple(indices or ()))

            candidates = self._candidates(choose, tuple(indices or ()), options)
            return Reached(choose(ratio)) if target is None else self._reached(target, candidates, ratio)

        reached, options = closest(decided, options)
        settings = _settings(criterion, allocator, options, (*settling, *reached.allocation.notes), ratio, target)
        return self._planned(reached.allocation.edits(self.groups), settings | reached.told)

    def plan_decomposition(
        self,
        method: Decomposition | Sequence[Decomposition] = USUAL,
        *,
        rank: RankChoice | Mapping[str, RankChoice] | None = None,
        target: Target | None = None,
        exclude: Sequence[Leave] = (),
        data: Data | Calibration | None = None,
        samples: int | None = 256,
        fit: Fit | None = None,
        correct_bias: bool = True,
        round_to: int = 1,
        accept_dearer: bool = False,
        weighted: bool | None = None,
        timed: bool = False,
        strict: bool = False,
    ) -> Plan:
        """Decide which layers are factorized, and at what ranks; nothing is changed.

        The plan holds methods, ranks and settings, no factors: those are computed when it is applied, from the weights and, unless
        they are fitted to the weights alone, from calibration data given there.

        Args:
            method: how layers are factorized; of several, the first that applies to a layer, or with a target the one that loses least.
            rank: the rank of every layer, or by name or glob: a number, a number for each mode (Tucker: in, out), or a rule such as
                ``ByRatio``, ``ByEnergy`` or ``ByVBMF``, which is the default. A layer that a name asks for must come out cheaper;
                one that a glob or a rule for all reaches stays as it is otherwise, and a note says why.
            target: what may remain of the model's MACs, parameters, bytes or measured latency; all ranks are chosen together for the
                least error.
            exclude: layers to leave alone: names, globs, types or predicates.
            data: calibration data. Ranks for a target then weigh errors of outputs, and factors are fitted to them.
            fit: ``"weights"``, ``"inputs"`` or ``"sequential"``; by default ``"inputs"`` where there are data.
            correct_bias: let biases take up the mean of what is lost, where there are data.
            round_to: with a target, ranks are multiples of it; for a latency, unless another is given, of what processors like.
            accept_dearer: take ranks that make a layer dearer.
            weighted: let errors of outputs count as the model's outputs depend on them; by default where factors are fitted to inputs
                and the model can be differentiated.
            timed: leave a layer as it is where its factors are measured to be slower.
            strict: raise an error where a layer that factors could replace stays as it is.

        Raises:
            SelectionError: a name or glob matches no layer, a layer asked for by name cannot be made cheaper so, or a target
                cannot be reached.

        Example:
            >>> import torch, secateur as sc
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3))
            >>> sc.study(model, torch.randn(1, 3, 8, 8)).plan_decomposition(sc.Tucker(), rank={"2": (8, 8)}).factorizations[0].rank
            (8, 8)
        """
        held = calibration(self.capture, data, samples)
        wish = Decompose(method, rank, fit, correct_bias, round_to, accept_dearer, weighted, timed, strict)
        budget = None if target is None else self._allowance(target)
        edits, notes, forecast = choose_factors(self.capture, self.decomposable, wish, exclude=exclude, budget=budget, held=held)
        told = replace(wish, weighted=any(edit.weighted for edit in edits)).to_json(target, held)
        latency = {} if forecast is None else {"latency": forecast.to_json()}
        return self._planned(edits, {**_versions(), "decomposition": told, "notes": list(notes), **latency})

    def _allowance(self, target: Target) -> Budget | LatencyBudget:
        if target.quantity != "latency":
            return self.budget(target)
        return self.latency_budget(target)

    def latency_budget(self, target: Target) -> LatencyBudget:
        """A target of latency with what it is predicted and measured by."""
        return LatencyBudget(self._within(target), self.predicted_latency(target.runtime), Stopwatch.of(target.runtime))

    @property
    def parameters(self) -> int:
        """Elements of the parameters that the graph reads."""
        return sum(t.numel() for t in self.weights.values() if isinstance(t, nn.Parameter))

    @property
    def taken(self) -> dict[Quantity, int]:
        """MACs, elements of parameters, and bytes of all that the graph reads."""
        return {"macs": self.macs.total, "parameters": self.parameters, "bytes": sum(t.nbytes for t in self.weights.values())}

    def budget(self, target: Target) -> Budget:
        """What of a target's quantity may remain; bytes are counted in elements of the narrowest weight that factors could replace."""
        sizes = [self.capture.leaf(f"{row.name}.weight").itemsize for row in self.decomposable if f"{row.name}.weight" in self.weights]
        unit = min(sizes, default=1) if target.quantity == "bytes" else 1
        return Budget.of_target(target, self._within(target), self.taken[target.quantity], unit)

    @cached_property
    def decomposable(self) -> DecomposableLayers:
        """The table of layers that can be factorized, by which methods, and why the others cannot."""
        return captured_layers(self.capture)

    def _candidates(self, choose: Callable[[float | None], Allocation], asked: tuple[str, ...], options: Options) -> Candidates:
        """What a search for a target chooses from.

        Groups that keep alike are never at different ratios, nor blocks and what lies in them.
        """
        fixed = frozenset(g.name for g in self.groups if g.kind == "blocks" or options.uniform)
        return Candidates(choose, partial(self._legal, asked=asked), self.cut_of, fixed)

    def _reached(self, target: Target, candidates: Candidates, ratio: float | None) -> Reached:
        return reach(self._within(target), candidates, self.macs, ratio=ratio, predicted=self.predicted_latency(target.runtime))

    def _priced(self, allocator: Allocator | None, runtime: Runtime) -> Allocator | None:
        """An allocator that knows what the weights cost, if it wants to."""
        elements = {name: tensor.numel() for name, tensor in self.weights.items()}
        sizes = {name: tensor.nbytes for name, tensor in self.weights.items()}
        costs = {"macs": self.macs.by_weight, "parameters": elements, "bytes": sizes}
        return None if allocator is None else timed(priced(allocator, costs), self.predicted_latency(runtime))

    def predicted_latency(self, runtime: Runtime = "torch") -> PredictedLatency:
        """The latency of what a cut leaves, by the times of its operators; these are measured as they are asked for."""
        if runtime not in self._predictions:
            groups = [group for group in self.groups if group.prunable and group.kind == "channels"]
            device = next((tensor.device for tensor in self.weights.values()), torch.device("cpu"))
            timer = EagerTimer(device) if runtime == "torch" else OnnxTimer()
            self._predictions[runtime] = PredictedLatency(groups, self.cut_of, LayerTimes(timer))
        return self._predictions[runtime]

    @cached_property
    def _predictions(self) -> dict[Runtime, PredictedLatency]:
        return {}

    def _within(self, target: Target) -> Target:
        """A target for the dense model as one for what the plan before left of it."""
        if self.start is None:
            return target
        if target.quantity == "latency":
            raise SelectionError("A target of latency is measured beside the dense model. Give it to a study of that, before other edits.")
        dense, own = self.start.taken[target.quantity], self.taken[target.quantity]
        fraction = target.fraction * dense / max(own, 1)
        if fraction >= 1:
            raise SelectionError(f"{target} is reached already: what was planned before leaves {own / dense:.1%}.")
        left: Any = {target.quantity: fraction}
        return replace(target, **left)

    def _planned(self, edits: Sequence[Edit], settings: Mapping[str, Any]) -> Plan:
        """A plan of these edits, after those that were made before."""
        if self.start is None:
            return Plan(tuple(edits), self.fingerprint, settings)
        before = self.start.plan
        notes = [*before.settings.get("notes", ()), *settings.get("notes", ())]
        return Plan((*before.edits, *edits), before.fingerprint, {**before.settings, **settings, "notes": notes})

    def cut_of(self, remove: Mapping[str, Iterable[int]]) -> Cut:
        """The cut that removes these channels, by group."""
        dead = np.zeros(self.solution.count, dtype=bool)
        for group in self.groups:
            dead[group.classes[list(remove.get(group.name, ()))]] = True
        return Cut(self.solution, dead)

    def cut(self, plan: Plan) -> Cut:
        """The cut that a plan asks for. Raises :class:`PlanError` if the plan belongs to another model."""
        plan.check(self.fingerprint)
        return planned_cut(self.solution, self.groups, plan.prunes)

    def again(self, model: nn.Module, start: Start | None = None) -> Study:
        """A study of another model on the same inputs."""
        return replace(study(model, (self.capture.args, dict(self.capture.kwargs))), start=start)

    def after(
        self, plan: Plan, *, data: Data | Calibration | None = None, samples: int | None = 256, between: Between | None = None
    ) -> Study:
        """A study of the model that a plan leaves; plans that it makes hold the edits of that plan too, and belong to the dense model.

        So layers are pruned first and what is left is factorized, or the reverse:

        >>> import torch, secateur as sc
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
        >>> found = sc.study(model, torch.randn(2, 32))
        >>> plan = found.after(found.plan(ratio=0.5)).plan_decomposition(sc.SVD(), rank=8)
        >>> [type(edit).__name__ for edit in plan.edits]
        ['Prune', 'Factorize', 'Factorize']

        ``data`` is needed where the plan fits factors to inputs; ``between`` gives what a cut left new values, as a recovery does.
        """
        plan.check(self.fingerprint)
        held = calibration(self.capture, data, samples)
        model = self.model
        for stage in stages(self, plan.stages, data=held, between=between):
            model = stage.done.model
        return self.again(model, Start(plan, self.taken))

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
        **({"uniform": True} if options.uniform else {}),
        "ratio": ratio,
        "target": None if target is None else repr(target),
        "notes": list(notes),
        "seed": getattr(criterion, "seed", 0),
        **_versions(),
    }


def _versions() -> dict[str, str]:
    return {"secateur": version("secateur"), "torch": torch.__version__}


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
        found = {"in training mode": training_branches(captured), "for other values of the inputs": value_branches(captured)}
        solution = solve(walk(captured, branches={where: normalize(each) for where, each in found.items() if each is not None}))
        return Study(captured, solution, tuple(build_groups(solution)))
