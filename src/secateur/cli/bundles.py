"""Command-line options out of settings classes: one option a field, one object back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from types import UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import typer

from secateur.cli.fields import default_of, field_texts, plain

Values = Mapping[str, Any]


class Bundle(Protocol):
    """A group of options that make one object."""

    def parameters(self) -> Sequence[inspect.Parameter]:
        """The options, as the parameters of a function."""
        ...

    def build(self, values: Values) -> Any:
        """The object, from the values of all options of the command."""
        ...


@dataclass(frozen=True)
class Settings:
    """The fields of one settings class; those that are given by another name or not at all are left out."""

    cls: type
    leave_out: frozenset[str] = frozenset()
    title: str | None = None
    """What the help puts above the options; by default the first sentence about the class."""

    def parameters(self) -> Sequence[inspect.Parameter]:
        """One option a field."""
        hints, texts = get_type_hints(self.cls), field_texts(self.cls)
        return [parameter(f, hints[f.name], texts.get(f.name, ""), self._panel) for f in self._fields()]

    def build(self, values: Values) -> Any:
        """An object of the class."""
        given = {f.name: values[f.name] for f in self._fields()}
        return self.cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    @property
    def _panel(self) -> str:
        return self.title or plain((self.cls.__doc__ or self.cls.__name__).splitlines()[0]).rstrip(".")

    def _fields(self) -> list[Field[Any]]:
        return [f for f in fields(self.cls) if f.name not in self.leave_out]


@dataclass(frozen=True)
class LeftOpen(Settings):
    """The fields of one settings class, none of which has to be given: an object where one is, else nothing."""

    def parameters(self) -> Sequence[inspect.Parameter]:
        """One option a field, each without a value until somebody gives one."""
        hints, texts = get_type_hints(self.cls), field_texts(self.cls)
        told = {f.name: f"{texts.get(f.name, '')} (default: {default_of(f)})" for f in self._fields()}
        return [parameter(f, _openly(f, hints[f.name]), told[f.name], self._panel, default=None) for f in self._fields()]

    def build(self, values: Values) -> Any:
        """An object of the class, with defaults for what was not given; nothing if nothing was."""
        given = {f.name: values[f.name] for f in self._fields() if values[f.name] is not None}
        return self.cls(**{name: None if value is NOTHING else value for name, value in given.items()}) if given else None


@dataclass(frozen=True)
class Choice:
    """One of several settings classes by name, with the settings of all of them as options."""

    option: str
    entries: Mapping[str, type]
    default: str
    text: str
    shared: frozenset[str] = frozenset()
    """Fields that take the value of an option of the same name elsewhere in the command."""
    undecided: str | None = None
    """A name that leaves the choice to the command, which then gets ``None``."""

    def parameters(self) -> Sequence[inspect.Parameter]:
        """The option that chooses, then the settings of each class."""
        name = Literal[(*([self.undecided] if self.undecided else []), *self.entries)]  # type: ignore[valid-type]
        chosen = typer.Option(f"--{self.option}", help=self.text, rich_help_panel=self._panel)
        own = [inspect.Parameter(self.option, inspect.Parameter.KEYWORD_ONLY, default=self.default, annotation=Annotated[name, chosen])]
        return [*own, *self._settings().values()]

    def build(self, values: Values) -> Any:
        """An object of the class that was chosen; settings of the others are refused."""
        return self.of(values[self.option], values)

    def of(self, name: str, values: Values) -> Any:
        """An object of the class with this name."""
        own = {} if name == self.undecided else {f.name: f for f in self._fields(self.entries[name])}
        given = {key: values[key] for key in self._settings() if values[key] is not None}
        if foreign := [key for key in given if key not in own]:
            owners = [n for n, cls in self.entries.items() if foreign[0] in {f.name for f in fields(cls)}]
            raise typer.BadParameter(f"--{dashed(foreign[0])} belongs to --{self.option} {' or '.join(owners)}, not to {name}.")
        if name == self.undecided:
            return None
        nothing = {**values, **dict.fromkeys(given)}
        built = {key: self.of(value, nothing) if value in self.entries else value for key, value in given.items()}
        common = {f.name: values[f.name] for f in fields(self.entries[name]) if f.name in self.shared}
        return self.entries[name](**built, **common)

    @property
    def _panel(self) -> str:
        return self.option.capitalize()

    def _settings(self) -> dict[str, inspect.Parameter]:
        found: dict[str, inspect.Parameter] = {}
        for name, cls in self.entries.items():
            hints, texts = get_type_hints(cls), field_texts(cls)
            for f in self._fields(cls):
                hint = hints[f.name] if _is_simple(hints[f.name]) else Literal[tuple(n for n in self.entries if n != name)]
                text = f"For {name}: {texts.get(f.name) or f.name} (default: {_shown(default_of(f), self.entries)})"
                found[f.name] = parameter(f, hint | None, text, self._panel, default=None)
        return found

    def _fields(self, cls: type) -> list[Field[Any]]:
        """Fields that fit into an option, or that hold another object of the registry."""
        hints = get_type_hints(cls)
        return [f for f in fields(cls) if f.name not in self.shared and get_origin(hints[f.name]) not in _MAPPINGS]


def option(*names: str, metavar: str | None = None, **more: Any) -> dict[str, Any]:
    """Metadata of a field: what typer should know of the option beyond the field's name, type and docstring."""
    return {"declare": lambda text, panel: typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, **more)}


def argument(metavar: str) -> dict[str, Any]:
    """Metadata of a field that is given by its place."""
    return {"declare": lambda text, panel: typer.Argument(help=text, metavar=metavar, show_default=False)}


def parameter(f: Field[Any], hint: Any, text: str, panel: str, *, default: Any = MISSING) -> inspect.Parameter:
    """The parameter of a typer command for one field."""
    default = default_of(f) if default is MISSING else default
    declared = f.metadata["declare"](text, panel) if "declare" in f.metadata else _usual(f.name, hint, text, panel)
    many = get_origin(hint) is tuple
    parsed = Nothing in get_args(hint) or set(get_args(hint)) >= _NUMBER
    read = list[str] if many else float | None if parsed else hint
    value = inspect.Parameter.empty if default is MISSING else list(default) if many else default
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[read, declared])


def dashed(name: str) -> str:
    """The name of a field as an option spells it."""
    return name.replace("_", "-")


class Nothing:
    """What an option holds that was set to nothing, where leaving it out means something else."""


NOTHING = Nothing()
NUMBER_OR_NONE = "NUMBER|none"
_MAPPINGS = frozenset([get_origin(Mapping[str, int])])
_NUMBER = frozenset([int, float])


def _usual(name: str, hint: Any, text: str, panel: str) -> Any:
    """An option of the field's name; a flag that is off by default has no negative form."""
    if Nothing in get_args(hint):
        return typer.Option(f"--{dashed(name)}", help=text, rich_help_panel=panel, parser=_number_or_nothing, metavar=NUMBER_OR_NONE)
    if set(get_args(hint)) >= _NUMBER:
        return typer.Option(f"--{dashed(name)}", help=text, rich_help_panel=panel, parser=_number, metavar="NUMBER")
    return typer.Option(f"--{dashed(name)}", help=text, rich_help_panel=panel)


def _number_or_nothing(text: str) -> int | Nothing:
    """A whole number, or the word ``none``."""
    return NOTHING if text == "none" else int(text)


def _openly(f: Field[Any], hint: Any) -> Any:
    """The type of an option without a value; one that may be set to nothing can be told from one that is not set."""
    return (int | Nothing | None) if type(None) in get_args(hint) and default_of(f) is not None else hint | None


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _is_simple(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return all(map(_is_simple, get_args(hint)))
    return get_origin(hint) is Literal or hint in (bool, int, float, str, type(None))


def _shown(default: Any, entries: Mapping[str, type]) -> str:
    return next((name for name, cls in entries.items() if type(default) is cls), str(default))
