"""Put factors in the place of layers: plain layers in an ``nn.Sequential`` under the layer's own name.

A plan holds ranks and settings, so factors are computed here, each time that it is applied: from the weights that the model has
then and, where an edit asks for it, from calibration data. The same weights and the same data give the same factors. What is saved
are the factors themselves, as weights of the smaller model; loading replays the shapes alone and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateur.capture import Capture
from secateur.capture.duplicate import duplicate
from secateur.decompose import (
    Decomposable,
    Moments,
    Slopes,
    captured_layers,
    gather_moments,
    gather_paired,
    gather_slopes,
    method_of,
    replace_layers,
)
from secateur.decompose.factors import Decomposition, Factorized, check, decompose
from secateur.decompose.linalg import compose
from secateur.decompose.spec import LayerSpec, Refusal, base_class, build, read_spec, to_kernel, to_weight, weight_shape
from secateur.errors import PlanError, ProofError, SelectionError
from secateur.plan import Factorize, did_you_mean

Batches = Callable[[], Iterable[Any]]
"""Gives the same calibration batches each time it is called."""
# Patches of more elements than this are described by the covariance of their channels: a 4608 x 4608 matrix a layer would be too much.
PATCH_LIMIT = 1200
# Elements of the covariance matrices that are gathered in one pass over the data.
_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class FactorizedLayer:
    """What became of one layer.

    Errors are relative Frobenius norms: of the weight, and of the layer's outputs on the calibration inputs (``None`` without them).
    """

    layer: str
    method: str
    rank: tuple[int, ...]
    fit: str
    relative_error: float
    output_error: float | None
    parameters_before: int
    parameters_after: int

    def to_json(self) -> dict[str, Any]:
        """The row as plain values."""
        return asdict(self)


def factorize(capture: Capture, edits: Sequence[Factorize], batches: Batches | None = None) -> tuple[nn.Module, list[FactorizedLayer]]:
    """Return a copy of a captured model with factors in the place of layers, and what each cost in accuracy; the model stays as it is.

    ``batches`` gives the calibration data for edits that are fitted to inputs. Layers fitted to inputs ``"sequential"`` see those that
    the copy gives once all layers before them are factorized.
    Raises :class:`PlanError` for layers that the model does not have or that cannot be factorized so, and :class:`SelectionError`
    where calibration data are missing.
    """
    layers = check_layers(capture, edits)
    ordered = sorted(edits, key=lambda edit: list(layers).index(edit.layer))
    if batches is None and any(edit.needs_data for edit in edits):
        wanting = ", ".join(edit.layer for edit in edits if edit.needs_data)
        raise SelectionError(f"The plan fits factors to inputs ({wanting}): give calibration data with data=...")
    model = duplicate(capture.model)
    seeing = [edit.layer for edit in ordered if edit.fit == "inputs"]
    moments = input_moments(capture.model, seeing, batches) if batches else {}
    slopes = output_slopes(capture.model, [edit.layer for edit in ordered if edit.weighted and edit.needs_data], batches) if batches else {}
    rows = []
    for edit in ordered:
        row = layers[edit.layer]
        if edit.fit == "sequential" and batches is not None:
            paired = gather_paired(
                capture.model, model, edit.layer, batches(), calls=len(row.calls), patch_limit=PATCH_LIMIT, trust_forward=row.trusted
            )
            moments = {edit.layer: paired.shrunk()}
        found = _fitted(model.get_submodule(edit.layer), edit, moments.get(edit.layer), slopes.get(edit.layer), trusted=row.trusted)
        replace_layers(model, {edit.layer: found.module})
        rows.append(_told(edit, found))
    return model, rows


def check_layers(capture: Capture, edits: Sequence[Factorize]) -> dict[str, Decomposable]:
    """The layers that a plan factorizes, in the order in which the model runs them; :class:`PlanError` if one cannot be."""
    known = captured_layers(capture)
    wanted = {edit.layer: edit for edit in edits}
    for edit in edits:
        if edit.layer not in known:
            close = did_you_mean(edit.layer, [name for row in known for name in row.names])
            raise PlanError(f"The plan factorizes {edit.layer!r}, which is no layer of this model.{close}")
        row = known[edit.layer]
        if edit.method not in row.fitting:
            reason = row.reason if row.reason and not row.fitting else f"{edit.method} does not apply to it"
            raise PlanError(f"The plan factorizes {edit.layer!r} by {edit.method}, which cannot be: {reason}.")
    same = {name: row for row in known for name in row.names if name in wanted}
    if len({row.name for row in same.values()}) < len(same):
        raise PlanError("The plan factorizes one layer twice, under two of its names.")
    return same


def input_moments(model: nn.Module, layers: Sequence[str], batches: Batches) -> dict[str, Moments]:
    """Gather the moments of the inputs of layers, in as few passes over the calibration data as memory allows."""
    found: dict[str, Moments] = {}
    for part in _parts(model, layers, _input_elements):
        found |= gather_moments(model, part, batches(), patch_limit=PATCH_LIMIT, trust_forward=True)
    return {name: moments.shrunk() for name, moments in found.items()}


def output_slopes(model: nn.Module, layers: Sequence[str], batches: Batches) -> dict[str, Slopes]:
    """Gather the slopes of layers, in as few passes over the calibration data as memory allows."""
    found: dict[str, Slopes] = {}
    for part in _parts(model, layers, lambda spec: spec.groups * spec.group_outputs**2):
        found |= gather_slopes(model, part, batches(), trust_forward=True)
    return found


def _input_elements(spec: LayerSpec) -> int:
    return spec.groups * max(spec.group_inputs, min(spec.group_inputs * spec.taps, PATCH_LIMIT)) ** 2


def _parts(model: nn.Module, names: Sequence[str], elements: Callable[[LayerSpec], int]) -> list[list[str]]:
    parts: list[list[str]] = []
    room = 0
    for name in names:
        spec = read_spec(model.get_submodule(name), trust_forward=True)
        assert isinstance(spec, LayerSpec)
        size = elements(spec)
        if not parts or size > room:
            parts.append([])
            room = _ELEMENTS
        parts[-1].append(name)
        room -= size
    return parts


def _fitted(layer: nn.Module, edit: Factorize, moments: Moments | None, slopes: Slopes | None, *, trusted: bool) -> Factorized:
    method = method_of(edit.method, edit.options)
    try:
        return decompose(
            layer,
            method,
            edit.rank,
            moments=moments,
            slopes=slopes,
            correct_bias=edit.correct_bias,
            accept_dearer=True,
            trust_forward=trusted,
        )
    except SelectionError as error:
        raise PlanError(f"The plan factorizes {edit.layer!r}, but {error}.") from error


def _told(edit: Factorize, found: Factorized) -> FactorizedLayer:
    params = found.before.params, found.after.params
    return FactorizedLayer(edit.layer, edit.method, edit.rank, edit.fit, found.relative_error, found.output_error, *params)


def with_skeletons(model: nn.Module, edits: Sequence[Factorize]) -> None:
    """Put layers of the shapes that a plan asks for in the place of others, in place; their values are to be loaded."""
    for edit in edits:
        layer, method = model.get_submodule(edit.layer), method_of(edit.method, edit.options)
        spec = read_spec(layer, trust_forward=True)
        rank = spec if isinstance(spec, Refusal) else check(spec, method, edit.rank, accept_dearer=True)
        if isinstance(rank, Refusal) or isinstance(spec, Refusal):
            raise PlanError(f"The plan factorizes {edit.layer!r}, which this model cannot: {getattr(rank, 'reason', '')}.")
        replace_layers(model, {edit.layer: _skeleton(layer, spec, method, rank, moved=edit.needs_data and edit.correct_bias)})


def _skeleton(layer: nn.Module, spec: LayerSpec, method: Decomposition, rank: tuple[int, ...], *, moved: bool) -> nn.Sequential:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    module = nn.Sequential()
    specs = method.layers(spec, rank)
    for place, (role, one) in enumerate(specs.items()):
        last = place == len(specs) - 1
        kernel = weight.new_ones((one.groups, one.group_outputs, one.group_inputs, *one.extent)) / (one.group_inputs * one.taps)
        bias = weight.new_zeros(one.outputs) if one.bias or (last and moved) else None
        module.add_module(role, build(one, kernel, bias, trainable=weight.requires_grad))
    return module.train(layer.training)


def recomposed(layer: nn.Module, factors: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight and the bias, in float64, with which a layer computes what its factors compute."""
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    kernels, bias = [], None
    for part in factors.children():
        one, weight = read_spec(part), getattr(part, "weight", None)
        if isinstance(one, Refusal) or not isinstance(weight, Tensor):
            raise ProofError(f"a factor is no plain layer: {one.reason if isinstance(one, Refusal) else type(part).__name__}")
        kernels.append(to_kernel(weight.detach().double(), one))
        bias = part.bias
    return to_weight(compose(kernels), spec), bias.detach().double() if isinstance(bias, Tensor) else None


def unfitting_factor(model: nn.Module, edits: Sequence[Factorize]) -> str | None:
    """The name of a factor whose weight has another shape than its settings say, if there is one."""
    for edit in edits:
        for role, part in model.get_submodule(edit.layer).named_children():
            spec, weight = read_spec(part), part.weight
            if isinstance(spec, LayerSpec) and isinstance(weight, Tensor) and weight.shape != weight_shape(spec):
                return f"{edit.layer}.{role}"
    return None


def with_recomposed(model: nn.Module, factorized: nn.Module, layers: Sequence[str]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of a model whose layers have the weights that factors recompose to, and these weights in float64 by name.

    The copy's own weights have the layers' dtype, since it has to run. A layer whose class knows no bias, where its factors have one, is a
    plain linear layer in the copy.
    """
    exact: dict[str, Tensor] = {}
    model = duplicate(model)
    for name in layers:
        layer: Any = model.get_submodule(name)
        weight, bias = recomposed(layer, factorized.get_submodule(name))
        if bias is not None and base_class(layer) is None and getattr(layer, "bias", None) is None:
            layer, weight = _plain(layer, weight)
            replace_layers(model, {name: layer})
        exact[f"{name}.weight"] = weight
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
        if bias is not None:
            exact[f"{name}.bias"] = bias
            layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    return model, exact


def _plain(layer: nn.Module, weight: Tensor) -> tuple[nn.Module, Tensor]:
    """The plain linear layer for one of another class, and a weight as that holds it."""
    spec = read_spec(layer, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    assert isinstance(layer.weight, Tensor)
    kernel = to_kernel(weight, spec)
    plain = build(spec, kernel.to(layer.weight.dtype), None, trainable=False).train(layer.training)
    return plain, to_weight(kernel, replace(spec, inputs_first=False))


def factor_bias_names(factorized: nn.Module, layers: Sequence[str]) -> dict[str, str]:
    """The name of each layer's bias by the name that it has among the factors."""
    lasts = {name: list(factorized.get_submodule(name)._modules)[-1] for name in layers}
    return {f"{name}.{last}.bias": f"{name}.bias" for name, last in lasts.items()}
