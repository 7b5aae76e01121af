"""The decision as a value: which channels go, which layers are factorized, and for which model.

A plan changes nothing. It prints as a table, goes to JSON and back, and is refused on a model with other weights.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table

from secateur.errors import FileError, PlanError, SelectionError
from secateur.files import replace_file

FORMAT = "secateur-plan/1"
FILE = "plan.json"
"""The name of a plan's file in a directory that holds a result."""
Kind = Literal["channels", "blocks"]
Fit = Literal["weights", "inputs", "sequential"]
"""What factors are fitted to: a layer's weights alone, its outputs on calibration inputs, or its outputs on the inputs that
the layers before it give once they are factorized themselves."""


@dataclass(frozen=True)
class Prune:
    """Remove some channels, or whole blocks, of one group, in all places where they live."""

    group: str
    remove: tuple[int, ...]
    """Channels that go; they are sorted, each once."""
    size: int
    """Number of channels before."""
    kind: Kind = "channels"

    def __post_init__(self) -> None:
        remove = _integers(self.remove, f"the channels to remove from {self.group!r}")
        object.__setattr__(self, "remove", tuple(sorted(set(remove))))
        size = _integers([self.size], f"the size of {self.group!r}")[0]
        if not self.remove:
            raise PlanError(f"The edit of {self.group!r} removes nothing; leave it out of the plan.")
        if self.remove[0] < 0 or self.remove[-1] >= size:
            raise PlanError(f"{self.group!r} has channels 0 to {size - 1}; the plan removes {_shortened(self.remove)}.")
        if len(self.remove) == size:
            raise PlanError(f"The plan removes all {size} channels of {self.group!r}; at least one must stay.")
        if self.kind not in get_args(Kind):
            raise PlanError(f"The kind of {self.group!r} is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}.")

    @property
    def name(self) -> str:
        """What the edit is about: the group."""
        return self.group

    @property
    def kept(self) -> int:
        """Number of channels that stay."""
        return self.size - len(self.remove)

    @property
    def ratio(self) -> float:
        """Fraction of the channels that go."""
        return len(self.remove) / self.size


@dataclass(frozen=True)
class Factorize:
    """Replace one layer by a chain of smaller ones.

    The edit holds shapes and settings, never values: the factors are computed when the plan is applied, from the weights that
    the model has then and, unless ``fit`` is ``"weights"``, from calibration data given there.
    """

    layer: str
    method: str
    rank: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of the method that are not its defaults."""
    fit: Fit = "weights"
    correct_bias: bool = True
    """With calibration data, let the bias take up the mean of what is lost; a layer without bias then gets one."""
    weighted: bool = False
    """With calibration data, let errors of the layer's outputs count as much as the model's outputs depend on them."""

    def __post_init__(self) -> None:
        if self.fit not in list(get_args(Fit)):
            raise PlanError(f"The factors of {self.layer!r} are fitted to {self.fit!r}; it must be one of {', '.join(get_args(Fit))}.")
        object.__setattr__(self, "rank", _integers(self.rank, f"the rank of {self.layer!r}"))
        object.__setattr__(self, "options", _plain(dict(self.options), f"the options of {self.layer!r}"))
        if not self.rank or min(self.rank) < 1:
            raise PlanError(f"The rank of {self.layer!r} is {self.rank}; it must hold numbers from 1 up.")

    @property
    def name(self) -> str:
        """What the edit is about: the layer."""
        return self.layer

    @property
    def needs_data(self) -> bool:
        """Whether applying it takes calibration data."""
        return self.fit != "weights"


Edit = Prune | Factorize
_EDITS: dict[str, type[Prune] | type[Factorize]] = {"prune": Prune, "factorize": Factorize}


@dataclass(frozen=True)
class Plan:
    """All edits of one model, in the order in which they are made."""

    edits: tuple[Edit, ...]
    fingerprint: str
    """What :func:`fingerprint` says of the model that the plan was made for."""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """How the plan came about: criterion, seed, options, versions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(self.edits))
        object.__setattr__(self, "settings", _plain(dict(self.settings), "the settings of a plan"))
        seen: set[tuple[type, str]] = set()
        for edit in self.edits:
            if (type(edit), edit.name) in seen:
                raise PlanError(f"The plan has two edits of one kind for {edit.name!r}.")
            seen.add((type(edit), edit.name))

    @property
    def prunes(self) -> tuple[Prune, ...]:
        """The edits that remove channels or blocks."""
        return tuple(e for e in self.edits if isinstance(e, Prune))

    @property
    def factorizations(self) -> tuple[Factorize, ...]:
        """The edits that factorize layers."""
        return tuple(e for e in self.edits if isinstance(e, Factorize))

    @property
    def stages(self) -> tuple[tuple[Prune, ...] | tuple[Factorize, ...], ...]:
        """The edits in runs of one kind: each run is made on the model that the runs before it leave."""
        runs: list[tuple[Any, ...]] = [tuple(run) for _, run in groupby(self.edits, key=type)]
        return tuple(runs)

    @property
    def needs_data(self) -> bool:
        """Whether applying it takes calibration data."""
        return any(edit.needs_data for edit in self.factorizations)

    @property
    def ratios(self) -> dict[str, float]:
        """Fraction removed of each group that loses channels."""
        return {edit.group: edit.ratio for edit in self.prunes}

    def replace(self, name: str, *, remove: Sequence[int] | None = None, rank: Sequence[int] | None = None) -> Plan:
        """The plan with other channels, or another rank, for one name; with nothing to remove the edit goes."""
        if (remove is None) == (rank is None):
            raise SelectionError(f"Give either the channels to remove or the rank for {name!r}.")
        kind = Prune if rank is None else Factorize
        if not any(isinstance(e, kind) and e.name == name for e in self.edits):
            raise SelectionError(f"The plan has no {kind.__name__} edit for {name!r}.{did_you_mean(name, [e.name for e in self.edits])}")
        edits = [_changed(e, remove, rank) if isinstance(e, kind) and e.name == name else e for e in self.edits]
        return replace(self, edits=tuple(e for e in edits if e is not None))

    def check(self, model_fingerprint: str) -> None:
        """Raise :class:`PlanError` unless the plan belongs to the model with this fingerprint."""
        if model_fingerprint != self.fingerprint:
            raise PlanError(
                f"This plan was made for another model: its fingerprint is {self.fingerprint[:12]}, that of the model's weights "
                f"(names and shapes) is {model_fingerprint[:12]}. Apply the plan to its own model, or make a new one."
            )

    def to_json(self) -> str:
        """The plan as JSON text."""
        edits = [{"edit": _edit_word(e), **asdict(e)} for e in self.edits]
        whole = {"format": FORMAT, "fingerprint": self.fingerprint, "settings": self.settings, "edits": edits}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back; anything missing, unknown or damaged raises :class:`PlanError`."""
        try:
            whole = json.loads(text, object_pairs_hook=_without_repeats)
        except ValueError as error:
            raise PlanError(f"The plan is no valid JSON: {error}.") from error
        parts = _fields(whole, ("format", "fingerprint", "settings", "edits"), "the plan")
        if parts["format"] != FORMAT:
            raise PlanError(f"The plan's format is {parts['format']!r}; this version reads {FORMAT!r}.")
        _expect(parts["fingerprint"], str, "the plan's fingerprint")
        _expect(parts["settings"], dict, "the plan's settings")
        return cls(tuple(_read_edit(e) for e in _expect(parts["edits"], list, "the plan's edits")), parts["fingerprint"], parts["settings"])

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the plan to a file, whole or not at all; an existing file is refused unless ``force``."""
        target = Path(path)
        if target.exists() and not force:
            raise FileError(f"{target} exists already; choose another path, or force overwriting it.")
        try:
            replace_file(target, self.to_json())
        except OSError as error:
            raise FileError(f"Cannot write the plan to {target}: {error}.") from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a file, or from a directory that holds a result."""
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"Cannot read the plan {file}: {error}.") from error
        return cls.from_json(_inner(text))

    def table(self) -> Table:
        """The plan as a table for a terminal: one row an edit."""
        table = Table(
            title=f"Plan for model {self.fingerprint[:12]}", caption=self._summary(), title_justify="left", caption_justify="left"
        )
        table.add_column("layer", overflow="fold")
        for heading in ("edit", "from", "to", "removed"):
            table.add_column(heading, justify="left" if heading == "edit" else "right")
        table.add_column("which", overflow="fold")
        for edit in self.edits:
            table.add_row(*_row(edit))
        return table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None, legacy_windows=False)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip("\n")

    def _summary(self) -> str:
        groups, layers = len(self.prunes), len(self.factorizations)
        parts = [f"{groups} group{'s' * (groups != 1)} pruned, {layers} layer{'s' * (layers != 1)} factorized"]
        return "; ".join([*parts, *(f"{key}: {_text(value)}" for key, value in self.settings.items())])


def fingerprint(model_tensors: Mapping[str, Sequence[int]]) -> str:
    """What a plan recognises its model by: the names and shapes of all weights, not their values."""
    entries = sorted((name, [int(n) for n in shape]) for name, shape in model_tensors.items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """A sentence with the names closest to one that is unknown, or nothing."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def _inner(text: str) -> str:
    """The plan inside the description of a saved result; any other text as it is."""
    with suppress(ValueError):
        whole = json.loads(text)
        if isinstance(whole, dict) and isinstance(whole.get("plan"), dict):
            return json.dumps(whole["plan"])
    return text


def _changed(edit: Edit, remove: Sequence[int] | None, rank: Sequence[int] | None) -> Edit | None:
    if isinstance(edit, Factorize):
        return replace(edit, rank=tuple(rank or ()))
    return replace(edit, remove=tuple(remove)) if remove else None


def _edit_word(edit: Edit) -> str:
    return next(word for word, kind in _EDITS.items() if isinstance(edit, kind))


def _read_edit(value: Any) -> Edit:
    word = value.get("edit") if isinstance(value, dict) else None
    kind = _EDITS.get(word) if isinstance(word, str) else None
    if kind is None:
        raise PlanError(f"An edit of the plan is of the unknown kind {word!r}; it must be one of {', '.join(_EDITS)}.")
    given = _fields(value, ("edit", *(f.name for f in fields(kind))), f"a {word} edit")
    if kind is Prune:
        return Prune(_expect(given["group"], str, "a group"), given["remove"], given["size"], given["kind"])
    options = _expect(given["options"], dict, "the options of a layer")
    correct = _expect(given["correct_bias"], bool, "whether a bias is corrected")
    layer, method = _expect(given["layer"], str, "a layer"), _expect(given["method"], str, "a method")
    weighted = _expect(given["weighted"], bool, "whether errors are weighted")
    return Factorize(layer, method, given["rank"], options, given["fit"], correct, weighted)


def _fields(value: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """A JSON object that holds exactly these fields."""
    given: dict[str, Any] = _expect(value, dict, what)
    missing, unknown = [n for n in names if n not in given], [n for n in given if n not in names]
    if missing or unknown:
        found = [f"no {', '.join(missing)}"] * bool(missing) + [f"the unknown {', '.join(unknown)}"] * bool(unknown)
        raise PlanError(f"{_sentence(what)} has {' and '.join(found)}.")
    return given


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise PlanError(f"{_sentence(what)} should be of type {kind.__name__}, not {type(value).__name__}.")
    return value


def _integers(values: Any, what: str) -> tuple[int, ...]:
    if isinstance(values, list | tuple) and set(map(type, values)) <= {int}:
        return tuple(values)
    if not isinstance(values, list | tuple) or any(isinstance(v, bool) or not hasattr(v, "__index__") for v in values):
        raise PlanError(f"{_sentence(what)} should be whole numbers, not {values!r}.")
    return tuple(int(v) for v in values)


def _plain(value: Any, what: str) -> Any:
    """A copy made of JSON values alone, so that a plan that was read back equals the one written."""
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _plain(v, what) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, what) for v in value]
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise PlanError(f"{_sentence(what)} cannot be written as JSON: they hold {value!r}.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise PlanError("The plan names a field twice.")
    return out


def _row(edit: Edit) -> tuple[str, ...]:
    if isinstance(edit, Prune):
        word = "prune" if edit.kind == "channels" else "prune blocks"
        return edit.group, word, str(edit.size), str(edit.kept), f"{edit.ratio:.1%}", _shortened(edit.remove)
    fitted = {"weights": "", "inputs": ", fitted to inputs", "sequential": ", fitted to inputs in turn"}[edit.fit]
    return edit.layer, f"factorize ({edit.method})", "", "", "", f"rank {' x '.join(map(str, edit.rank))}{fitted}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shortened(numbers: Sequence[int], most: int = 8) -> str:
    head = ", ".join(map(str, numbers[:most]))
    return head if len(numbers) <= most else f"{head}, ... ({len(numbers)})"


def _text(value: Any) -> str:
    return ", ".join(f"{k}={_text(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
