"""Which layers of a model can be factorized, by which methods, and how they are put into place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from secateur.capture import Capture
from secateur.decompose.calls import Call, Use, uses, workload
from secateur.decompose.cp import CP
from secateur.decompose.factors import Decomposition, too_narrow
from secateur.decompose.linear_maps import holds_matrix
from secateur.decompose.products import Product, stored_products
from secateur.decompose.ranks import break_even
from secateur.decompose.spec import LayerSpec, Refusal, base_class, read_spec
from secateur.decompose.svd import SVD, SpatialSVD
from secateur.decompose.trust import seen_in_a_run
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
    """A layer, or a module that holds matrices: its names (several if it is shared), and the methods for it or why there is none."""

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
    """Multiply-adds of all its calls in one run on the example inputs, or of one call where they are not followed; 0 if it is no layer."""
    calls: tuple[Call, ...] = ()
    trusted: bool = False
    """Whether its class has a forward of its own that was seen to compute what its settings say."""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True)
class DecomposableLayers:
    """All linear and convolution layers of a model, in the order in which it runs them, and what else holds matrices."""

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
            table.add_row(", ".join(name or "(the model)" for name in row.names), row.kind, f"{row.parameters:,}", f"{row.macs:,}", answer)
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
    of its own are admitted where it was seen to compute what the base class computes, and those of any other class that hold a
    matrix, perhaps a bias and nothing else where they were seen to multiply by it. Modules that hold other matrices which the model
    multiplies by come last.
    """
    products = stored_products(capture)
    modules = {names: module for module, names in _names(capture.model).items() if _is_layer(module, names, products)}
    seen = seen_in_a_run(capture, {names[0]: module for names, module in modules.items()})
    calls = {name: tuple(each.calls) for name, each in seen.items()}
    others = {names[0]: calls.get(names[0], ()) for names, module in modules.items() if base_class(module) is None}
    found = uses(capture, {names[0]: names for names in modules}, others)
    rows = [_row(module, names, found[names[0]], trusted=names[0] in seen and seen[names[0]].trusted) for names, module in modules.items()]
    order = {name: place for place, name in enumerate(found)}
    rest = _held_elsewhere(capture, products, {name for names in modules for name in names})
    return DecomposableLayers((*sorted(rows, key=lambda row: order[row.name]), *rest))


def _is_layer(module: nn.Module, names: Sequence[str], products: Sequence[Product]) -> bool:
    """Whether a module is a linear or convolution layer, or holds nothing but a matrix and multiplies by it."""
    return base_class(module) is not None or (holds_matrix(module) and any(product.module in names for product in products))


def _held_elsewhere(capture: Capture, products: Sequence[Product], known: set[str]) -> list[Decomposable]:
    """Modules that hold a matrix which somebody multiplies by and which no layer has alone, with what they hold."""
    held: dict[str, dict[str, None]] = {}
    for name in (name for product in products for name in product.weights):
        if not any(alias.rpartition(".")[0] in known for alias in capture.tied.get(name, (name,))):
            held.setdefault(name.rpartition(".")[0], {})[name] = None
    aliases = _names(capture.model)
    return [_row_of_holder(capture, aliases[capture.model.get_submodule(owner)], tuple(own)) for owner, own in held.items()]


def _row_of_holder(capture: Capture, names: tuple[str, ...], weights: tuple[str, ...]) -> Decomposable:
    kind = type(capture.model.get_submodule(names[0])).__name__
    shapes = {name.rpartition(".")[2]: capture.leaf(name).shape for name in weights}
    reason = f"the model multiplies by its {', '.join(shapes)} elsewhere than in a layer of its own"
    outline = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
    return Decomposable(names, (), reason, kind=f"{kind} {outline}", parameters=sum(shape.numel() for shape in shapes.values()))


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
