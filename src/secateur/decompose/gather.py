"""Run calibration data through a model and gather what the inputs of its layers look like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.capture.caches import without_caches
from secateur.capture.inputs import normalise_inputs
from secateur.decompose.linalg import power_of_two
from secateur.decompose.moments import Moments
from secateur.decompose.spec import LayerSpec, Refusal, read_spec
from secateur.errors import SelectionError

# Elements of an unfolded chunk; bounds memory, changes nothing else.
_CHUNK = 1 << 24


def moments_of(layer: nn.Module, inputs: Tensor, *, patch_limit: int = 0, trust_forward: bool = False) -> Moments:
    """Gather the moments of one batch of a layer's inputs; patches are used where they have at most `patch_limit` elements."""
    spec = read_spec(layer, trust_forward=trust_forward)
    if isinstance(spec, Refusal):
        raise SelectionError(f"no input moments for {layer}: {spec.reason}")
    return _gather(spec, inputs, patch_limit)


def gather_moments(
    model: nn.Module,
    names: Sequence[str],
    batches: Iterable[Any],
    *,
    patch_limit: int = 0,
    trust_forward: bool = False,
) -> dict[str, Moments]:
    """Run batches through a model and gather the moments of the inputs of the named layers.

    A batch is what the model is called with: a tensor, a tuple of arguments, a mapping of keywords, or a pair of the last two.
    """
    specs = {name: read_spec(model.get_submodule(name), trust_forward=trust_forward) for name in names}
    gathered: dict[str, Moments] = {}

    def watch(name: str, spec: LayerSpec, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        moments = _gather(spec, arguments[0] if arguments else keywords["input"], patch_limit)
        gathered[name] = gathered[name] + moments if name in gathered else moments

    hooks = []
    try:
        for name, spec in specs.items():
            if isinstance(spec, Refusal):
                raise SelectionError(f"no input moments for layer {name}: {spec.reason}")
            hook = _hook(watch, name, spec)
            hooks.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        with evaluating(model), torch.no_grad():
            for batch in batches:
                args, kwargs = normalise_inputs(batch)
                model(*args, **kwargs)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: _finite(name, moments.shared()) for name, moments in gathered.items()}


def gather_paired(
    dense: nn.Module,
    compressed: nn.Module,
    name: str,
    batches: Iterable[Any],
    *,
    calls: int,
    patch_limit: int = 0,
    trust_forward: bool = False,
) -> Moments:
    """Gather the moments of a layer's inputs in a compressed model together with those of the same inputs in the dense one.

    `calls` tells how often a batch reaches the layer; the runs end there.
    """
    spec = read_spec(dense.get_submodule(name), trust_forward=trust_forward)
    if isinstance(spec, Refusal):
        raise SelectionError(f"no input moments for layer {name}: {spec.reason}")
    found: Moments | None = None
    for batch in batches:
        pairs = zip(*(_inputs_of(model, name, batch, calls) for model in (compressed, dense)), strict=True)
        for inputs, target in pairs:
            moments = _gather(spec, inputs, patch_limit, target)
            found = moments if found is None else found + moments
    if found is None:
        raise SelectionError(f"no calibration batch reaches layer {name}")
    return _finite(name, found.shared())


def _finite(name: str, moments: Moments) -> Moments:
    if not bool(moments.outer.isfinite().all()):
        raise SelectionError(f"the inputs of layer {name} are not all finite on the calibration data: give others, or a wider dtype")
    return moments


def _inputs_of(model: nn.Module, name: str, batch: Any, calls: int) -> list[Tensor]:
    """The inputs of a layer's calls in a run that ends with the last of them."""
    seen: list[Tensor] = []

    def watch(_: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        seen.append(arguments[0] if arguments else keywords["input"])
        if len(seen) == calls:
            raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(watch, with_kwargs=True)
    args, kwargs = normalise_inputs(batch)
    try:
        with evaluating(model), torch.no_grad(), suppress(_Reached):
            model(*args, **kwargs)
    finally:
        handle.remove()
    return seen


class _Reached(Exception):
    """Nothing that is asked for comes after this point of the run."""


def _hook(watch: Any, name: str, spec: LayerSpec) -> Any:
    return lambda _, arguments, keywords: watch(name, spec, arguments, keywords)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and without caches; every module's own mode is back afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with without_caches(training):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _gather(spec: LayerSpec, inputs: Tensor, patch_limit: int, target: Tensor | None = None) -> Moments:
    """Gather the moments of inputs, and of those that they stand for where they are given."""
    given = [_at_least_single(each.detach()) for each in (inputs, target) if each is not None]
    scales = [power_of_two(each) for each in given]
    # Squares of very large and very small inputs have no place in single precision.
    both = [each / scale for each, scale in zip(given, scales, strict=True)]
    return _moments_of(spec, both, patch_limit).times(*(float(scale) for scale in scales))


def _moments_of(spec: LayerSpec, both: Sequence[Tensor], patch_limit: int) -> Moments:
    if not spec.extent:
        return _moments(*(each.reshape(1, -1, spec.inputs) for each in both))
    both = [each.unsqueeze(0) if each.dim() == len(spec.extent) + 1 else each for each in both]
    patches = not spec.transposed and (spec.taps == 1 or spec.group_inputs * spec.taps <= patch_limit)
    elements = both[0][0].numel() * (spec.taps if patches else 1)
    chunks = zip(*(torch.split(each, max(1, _CHUNK // elements)) for each in both), strict=True)
    parts = [_moments(*(_rows(spec, part, patches=patches) for part in chunk)) for chunk in chunks]
    return sum(parts[1:], start=parts[0])


def _rows(spec: LayerSpec, inputs: Tensor, *, patches: bool) -> Tensor:
    """Lay the inputs out as `(groups, positions, in [* taps])`."""
    axes = len(spec.extent)
    if patches:
        inputs = _padded(inputs, spec)
        for axis, (k, s, d) in enumerate(zip(spec.extent, spec.stride, spec.dilation, strict=True)):
            inputs = inputs.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    else:
        inputs = inputs.reshape(*inputs.shape, *(1,) * axes)
    grouped = torch.unflatten(inputs, 1, (spec.groups, spec.group_inputs))
    positions = grouped.movedim(2, 2 + axes)  # (batch, groups, *positions, in, *taps)
    return positions.movedim(1, 0).flatten(-axes - 1).flatten(1, -2)


def _padded(inputs: Tensor, spec: LayerSpec) -> Tensor:
    if isinstance(spec.padding, str):
        totals = [d * (k - 1) if spec.padding == "same" else 0 for k, d in zip(spec.extent, spec.dilation, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in spec.padding]
    amounts = [side for pair in reversed(sides) for side in pair]
    return functional.pad(inputs, amounts, mode="constant" if spec.padding_mode == "zeros" else spec.padding_mode)


def _moments(own: Tensor, target: Tensor | None = None) -> Moments:
    products = None if target is None else (target.sum(1).cpu().double(), (target.mT @ own).cpu().double())
    return Moments(own.shape[1], own.sum(1).cpu().double(), (own.mT @ own).cpu().double(), products)


def _at_least_single(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 or rows.device.type == "mps" else rows.float()
