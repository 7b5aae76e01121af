"""What the inputs of a layer look like, so that a decomposition can spend its rank where inputs are.

For a layer Y = W x the squared output error of W' is tr((W - W') C (W - W')^T) with C the covariance of x, once the bias has taken up the
mean: b' = b + (W - W') mean(x). For a convolution x is a patch; where patches are too large, the covariance of the channels at one position
stands for it, shared by all taps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.capture.inputs import normalise_inputs
from secateur.decompose.linalg import ridge_solve, symmetric_root, unit_root
from secateur.decompose.spec import LayerSpec, Refusal, read_spec
from secateur.errors import SelectionError
from secateur.score.ranks import summed, total

# Elements of an unfolded chunk; bounds memory, changes nothing else.
_CHUNK = 1 << 24
# Of the mean variance of an input: directions that vary less than this are taken as they are.
_RESTORING_RIDGE = 1e-2
# Of the mean square of an input in float32.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Moments:
    """Sums over the inputs of one layer: how many, their total `(groups, d)` and their outer products `(groups, d, d)`.

    Where the inputs come from a model that is compressed already, `target` holds the same of the dense model's inputs: their total, and
    their outer products with the compressed model's. Sums add up: `a + b` holds what one pass over both sets of inputs would have given.
    """

    count: int
    total: Tensor
    outer: Tensor
    target: tuple[Tensor, Tensor] | None = None

    def __add__(self, other: Moments) -> Moments:
        if self.target is None or other.target is None:
            summed = None
        else:
            summed = (self.target[0] + other.target[0], self.target[1] + other.target[1])
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer, summed)

    def shared(self) -> Moments:
        """Sums over the inputs of all processes."""
        target = None if self.target is None else (summed(self.target[0]), summed(self.target[1]))
        return Moments(total(self.count), summed(self.total), summed(self.outer), target)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def target_mean(self) -> Tensor:
        """The mean of the dense model's inputs; of these inputs where nothing else is known."""
        return self.mean if self.target is None else self.target[0] / self.count

    def shrunk(self) -> Moments:
        """Draw the covariance towards equal variances in all directions, the more the fewer inputs there were for its size.

        Without it a layer with more inputs than there were samples seems to need no more rank than samples. Oracle approximating
        shrinkage, Chen et al., IEEE Transactions on Signal Processing 2010. Pairs with the dense model's inputs are drawn to equality.
        """
        found = self.covariance(centred=True)
        size = found.shape[-1]
        trace, squares = found.diagonal(dim1=-2, dim2=-1).sum(-1), found.square().sum((-2, -1))
        spread = (self.count + 1 - 2 / size) * (squares - trace.square() / size)
        weight = ((1 - 2 / size) * squares + trace.square()) / spread.clamp_min(torch.finfo(spread.dtype).tiny)
        weight = weight.clamp(0, 1)[..., None, None]
        prior = weight * (trace / size)[..., None, None] * torch.eye(size, dtype=found.dtype)
        outer = self.count * ((1 - weight) * found + prior + self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2))
        if self.target is None:
            return replace(self, outer=outer)
        shift = self.target_mean.unsqueeze(-1) * self.mean.unsqueeze(-2)
        cross = self.count * ((1 - weight) * (self.target[1] / self.count - shift) + prior + shift)
        return replace(self, outer=outer, target=(self.target[0], cross))

    def covariance(self, *, centred: bool) -> Tensor:
        """Return the covariance of the inputs, or their second moment where they are not centred."""
        second = self.outer / self.count
        return second - self.mean.unsqueeze(-1) * self.mean.unsqueeze(-2) if centred else second


@dataclass(frozen=True)
class Metric:
    """The norm in which a kernel's error counts: `channel` is `(groups, in, in)`, `patch` `(groups, in * taps, in * taps)` or None."""

    channel: Tensor
    patch: Tensor | None
    mean: Tensor
    restore: Tensor | None = None
    """The linear map that predicts the dense model's inputs from the compressed model's, on patches or on channels."""
    target_mean: Tensor | None = None

    @classmethod
    def of(cls, moments: Moments, spec: LayerSpec, *, centred: bool) -> Metric:
        """Make the metric of a layer from the moments of its inputs; centred if the bias takes up the mean."""
        covariance = moments.covariance(centred=centred)
        restore = _restoring(moments, covariance, centred=centred)
        means = [moments.mean, moments.target_mean]
        width, taps = spec.group_inputs, spec.taps
        if covariance.shape[:2] == (spec.groups, width * taps):
            blocks = covariance.reshape(spec.groups, width, taps, width, taps)
            channel = blocks.diagonal(dim1=2, dim2=4).mean(-1)
            mean, target = (each.reshape(spec.groups, width, taps) for each in means)
            return cls(channel, covariance, mean, restore, target)
        if covariance.shape[:2] != (spec.groups, width):
            raise SelectionError(
                f"moments of width {tuple(covariance.shape[:2])} do not belong to a layer with {spec.groups} x {width} inputs"
            )
        # A position of a transposed convolution's output receives one in prod(stride) taps.
        share = math.prod(spec.stride) if spec.transposed else 1
        mean, target = ((each / share).unsqueeze(-1).expand(-1, -1, taps) for each in means)
        return cls(covariance, None, mean, restore, target)

    def to(self, like: Tensor) -> Metric:
        """Move to the dtype and device of another tensor."""
        patch, restore, target = (None if each is None else each.to(like) for each in (self.patch, self.restore, self.target_mean))
        return Metric(self.channel.to(like), patch, self.mean.to(like), restore, target)

    def restored(self, kernel: Tensor) -> Tensor:
        """The kernel that comes closest, on the compressed model's inputs, to what the given one does on the dense model's."""
        if self.restore is None:
            return kernel
        if self.restore.shape[-1] == kernel.shape[2]:
            return torch.einsum("goi...,gij->goj...", kernel, self.restore)
        return (kernel.flatten(2) @ self.restore).reshape(kernel.shape)

    def root(self) -> tuple[Tensor, Tensor]:
        """Return a root of the channel covariance and its inverse."""
        return symmetric_root(self.channel)

    def unit_root(self) -> tuple[Tensor, Tensor]:
        """Return the same of the covariance scaled to variances of one on average, for fits."""
        return unit_root(self.channel)

    def norm(self, kernel: Tensor) -> float:
        """Measure a kernel `(groups, out, in, *extent)` by the output it makes."""
        flat = kernel.flatten(3) if kernel.dim() > 3 else kernel.unsqueeze(-1)
        if self.patch is not None:
            rows = flat.flatten(2)
            return math.sqrt(max(float(((rows @ self.patch) * rows).sum()), 0.0))
        return math.sqrt(max(float((torch.einsum("goik,gij->gojk", flat, self.channel) * flat).sum()), 0.0))

    def mean_output(self, kernel: Tensor, *, dense: bool = False) -> Tensor:
        """Return the mean output `(out,)` of a kernel, without bias: on the inputs, or on the dense model's."""
        mean = self.target_mean if dense and self.target_mean is not None else self.mean
        flat = kernel.flatten(3) if kernel.dim() > 3 else kernel.unsqueeze(-1)
        return torch.einsum("goik,gik->go", flat, mean).flatten()


def _restoring(moments: Moments, covariance: Tensor, *, centred: bool) -> Tensor | None:
    """Regress the dense model's inputs on the compressed model's; where these say nothing, they stand for themselves."""
    if moments.target is None:
        return None
    cross = moments.target[1] / moments.count
    if centred:
        cross = cross - moments.target_mean.unsqueeze(-1) * moments.mean.unsqueeze(-2)
    varies, squares = (each.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] for each in (covariance, moments.outer / moments.count))
    # Inputs that are all but constant hold rounding and no evidence.
    ridge = _RESTORING_RIDGE * varies + _ROUNDING * squares
    whole = ridge * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    return ridge_solve(cross + whole, covariance + whole)


def regress_outputs(kernel: Tensor, patterns: Tensor, patch: Tensor, *, ridge: float = 1e-9) -> tuple[Tensor, Tensor]:
    """Fit `kernel ~ weights @ patterns` by least squares over the patches.

    Shapes: kernel `(groups, out, d)`, patterns `(groups, r, d)`, patch covariance `(groups, d, d)`. Returns the weights `(groups, out, r)`
    and the covariance `(groups, r, r)` of what the patterns respond with.
    """
    seen = patterns @ patch
    response = seen @ patterns.mT
    return ridge_solve(kernel @ seen.mT, response, ridge=ridge), response


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
    return {name: moments.shared() for name, moments in gathered.items()}


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
    return found.shared()


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
    """Run in evaluation mode; every module's own mode is back afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _gather(spec: LayerSpec, inputs: Tensor, patch_limit: int, target: Tensor | None = None) -> Moments:
    """Gather the moments of inputs, and of those that they stand for where they are given."""
    both = [inputs.detach()] if target is None else [inputs.detach(), target.detach()]
    if not spec.extent:
        return _moments(*(each.reshape(1, -1, spec.inputs) for each in both))
    both = [each.unsqueeze(0) if each.dim() == len(spec.extent) + 1 else each for each in both]
    inputs = both[0]
    patches = not spec.transposed and (spec.taps == 1 or spec.group_inputs * spec.taps <= patch_limit)
    elements = inputs[0].numel() * (spec.taps if patches else 1)
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


def _moments(rows: Tensor, target: Tensor | None = None) -> Moments:
    own = _at_least_single(rows)
    paired = None if target is None else _at_least_single(target)
    products = None if paired is None else (paired.sum(1).cpu().double(), (paired.mT @ own).cpu().double())
    return Moments(rows.shape[1], own.sum(1).cpu().double(), (own.mT @ own).cpu().double(), products)


def _at_least_single(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 or rows.device.type == "mps" else rows.float()
