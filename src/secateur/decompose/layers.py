"""Which layers of a model can be factorized, by which methods, and how they are put into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture import Capture
from secateur.capture.execution import plain_execution
from secateur.capture.trees import copied
from secateur.capture.untouched import untouched
from secateur.decompose.calls import Call, Use, uses, workload
from secateur.decompose.cp import CP
from secateur.decompose.factors import Decomposition, too_narrow
from secateur.decompose.ranks import break_even
from secateur.decompose.spec import LayerSpec, Refusal, base_class, read_spec
from secateur.decompose.svd import SVD, SpatialSVD
from secateur.decompose.tucker import Tucker
from secateur.errors import PlanError, SelectionError

METHODS: Mapping[str, Decomposition] = {"svd": SVD(), "tucker": Tucker(), "cp": CP(), "spatial-svd": SpatialSVD()}


def method_of(name: str, options: Mapping[str, Any]) -> Decomposition:
    """Make the method that a plan names, with its settings; :class:`PlanError` if there is none such."""
    if name not in METHODS:
        raise PlanError(f"The plan factorizes by the unknown method {name!r}; it must be one of {', '.join(METHODS)}.")
    kind: Any = type(METHODS[name])
    unknown = options.keys() - {each.name for each in fields(kind)}
    if unknown:
        raise PlanError(f"The plan gives {name} the unknown setting {min(unknown)!r}.")
    method: Decomposition = kind(**options)
    return method


def settings_of(method: Any) -> dict[str, Any]:
    """The settings of a method that are not its defaults."""
    usual = asdict(type(method)())
    return {name: value for name, value in asdict(method).items() if value != usual[name]}


@dataclass(frozen=True)
class Decomposable:
    """A linear or convolution layer: its names in the model (several if it is shared), and the methods for it or why there is none."""

    names: tuple[str, ...]
    methods: tuple[str, ...]
    """Methods that can make it cheaper."""
    reason: str | None = None
    fitting: tuple[str, ...] = ()
    """Methods that apply to it, whether they gain or not."""
    kind: str = ""
    """Its class, widths, extent and groups."""
    parameters: int = 0
    macs: int = 0
    """Multiply-adds of all its calls in one run on the example inputs."""
    calls: tuple[Call, ...] = ()
    trusted: bool = False
    """Whether its class has a forward of its own that computes what its base class would."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True)
class DecomposableLayers:
    """All linear and convolution layers of a model, in the order in which it runs them."""

    rows: tuple[Decomposable, ...]
    _by_name: Mapping[str, Decomposable] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {name: row for row in self.rows for name in row.names})

    def __iter__(self) -> Iterator[Decomposable]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Decomposable:
        return self._by_name[name]

    def to_json(self) -> list[dict[str, Any]]:
        """The table as plain values."""
        return [asdict(row) for row in self.rows]

    def table(self) -> Table:
        """The table for a terminal."""
        table = Table(title=f"{sum(bool(row.methods) for row in self.rows)} of {len(self.rows)} layers can be factorized")
        for name in ("layer", "kind", "parameters", "MACs", "methods"):
            table.add_column(name, justify="right" if name in ("parameters", "MACs") else "left", overflow="fold")
        for row in self.rows:
            answer = ", ".join(row.methods) or f"none: {row.reason}"
            table.add_row(", ".join(row.names), row.kind, f"{row.parameters:,}", f"{row.macs:,}", answer)
        return table

    def __str__(self) -> str:
        console = Console(width=160, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()


def decomposable(module: nn.Module, *, trust_forward: bool = False) -> tuple[str, ...] | Refusal:
    """Name the methods that can make a module cheaper, or say why none can."""
    fitting = _fitting(module, trust_forward=trust_forward)
    if isinstance(fitting, Refusal):
        return fitting
    spec = read_spec(module, trust_forward=True)
    assert isinstance(spec, LayerSpec)
    gaining = tuple(name for name in fitting if break_even(spec, METHODS[name]) is not None)
    return gaining or Refusal("it is too small: even rank 1 costs as much as the layer")


def _fitting(module: nn.Module, *, trust_forward: bool) -> tuple[str, ...] | Refusal:
    """Name the methods that apply to a module, or say why none does: its widths come before what its class does."""
    spec = read_spec(module, trust_forward=trust_forward)
    known = read_spec(module, trust_forward=True)
    narrow = None if isinstance(known, Refusal) else too_narrow(known)
    if narrow is not None:
        return Refusal(narrow)
    if isinstance(spec, Refusal):
        return spec
    return tuple(name for name, method in METHODS.items() if method.obstacle(spec) is None)


def decomposable_layers(model: nn.Module) -> tuple[Decomposable, ...]:
    """List every linear and convolution layer of a model once, with the methods for it or the reason why it stays as it is."""
    return tuple(_row(module, names) for module, names in _names(model).items() if base_class(module) is not None)


def captured_layers(capture: Capture) -> DecomposableLayers:
    """List the layers of a captured model as :func:`decomposable_layers` does, with what the graph and one run tell besides.

    Layers whose weight is shared with another or read by another module stay as they are. Layers of a subclass with a forward
    of its own are admitted where it was seen to compute what the base class computes.
    """
    modules = {names: module for module, names in _names(capture.model).items() if base_class(module) is not None}
    found = uses(capture, {names[0]: names for names in modules})
    order = {name: place for place, name in enumerate(found)}
    trusted = _trusted(capture, {names[0]: module for names, module in modules.items()})
    rows = [_row(module, names, found[names[0]], trusted=names[0] in trusted) for names, module in modules.items()]
    return DecomposableLayers(tuple(sorted(rows, key=lambda row: order[row.name])))


def _row(module: nn.Module, names: tuple[str, ...], use: Use | None = None, *, trusted: bool = False) -> Decomposable:
    use = use or Use(())
    spec = read_spec(module, trust_forward=True)
    found = Refusal(use.reason) if use.reason else decomposable(module, trust_forward=trusted)
    methods, reason = ((), found.reason) if isinstance(found, Refusal) else (found, None)
    fitting = () if use.reason else _fitting(module, trust_forward=trusted)
    row = Decomposable(names, methods, reason, () if isinstance(fitting, Refusal) else fitting, type(module).__name__, trusted=trusted)
    if isinstance(spec, Refusal):
        return row
    total = workload([spec], use.calls)
    return replace(row, kind=f"{row.kind} {_outline(spec)}", parameters=total.params, macs=total.macs, calls=use.calls)


def _outline(spec: LayerSpec) -> str:
    extent = f", {'x'.join(map(str, spec.extent))}" if spec.extent else ""
    return f"{spec.inputs} -> {spec.outputs}{extent}{f', {spec.groups} groups' if spec.groups > 1 else ''}"


def _trusted(capture: Capture, modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Layers whose own forward is their base class's on the example inputs, and on smaller ones."""
    own = {name: module for name, module in modules.items() if isinstance(read_spec(module), Refusal)}
    unsure = {name: module for name, module in own.items() if not isinstance(read_spec(module, trust_forward=True), Refusal)}
    seen = _first_inputs(capture, unsure) if unsure else {}
    return frozenset(name for name, example in seen.items() if all(acts_as_base(unsure[name], x) for x in (example, _cropped(example))))


def _first_inputs(capture: Capture, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        return lambda _, arguments: seen.setdefault(name, arguments[0].detach().clone()) if arguments else None

    flat = capture.flat_inputs()
    args, kwargs = pytree.tree_unflatten(copied(flat), capture.in_spec)
    with untouched(capture.model, flat), plain_execution(capture.model, flat):
        for name, module in modules.items():
            module.register_forward_pre_hook(watch(name))
        capture.model(*args, **kwargs)
    return seen


def _cropped(example: Tensor) -> Tensor:
    """An input one position shorter in each spatial direction, on which padding that depends on the size shows."""
    inner = tuple(slice(None, -1) if size > 1 else slice(None) for size in example.shape[2:])
    return example[(slice(None), slice(None), *inner)] if example.dim() > 2 else example


def acts_as_base(module: nn.Module, example: Tensor) -> bool:
    """Check on an input whether a subclass computes exactly what its base class would with the same settings.

    True for a subclass that pads in front of the convolution only where its padding is empty at this input size.
    """
    base = base_class(module)
    if base is None:
        return False
    try:
        with torch.no_grad():
            ours, plain = module(example), base.forward(module, example)
    except RuntimeError:
        return False
    return bool(isinstance(ours, Tensor) and ours.shape == plain.shape and torch.equal(ours, plain))


def replace_layers(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put modules into a model in place, under every name that the layer they replace has there."""
    names = {name: aliases for aliases in _names(model).values() for name in aliases}
    for name, replacement in replacements.items():
        if not names.get(name, ("",))[0]:
            raise SelectionError(f"the model has no layer named {name!r} that could be replaced")
        for alias in names[name]:
            parent, _, attribute = alias.rpartition(".")
            setattr(model.get_submodule(parent), attribute, replacement)


def _names(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    return names
