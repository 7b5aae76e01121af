"""Options out of a file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from secateur.cli.bundles import NUMBER_OR_NONE, dashed


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of a TOML or JSON file for options that are not on the command line."""
    if path is None:
        return None
    options = {p.name: p for p in context.command.params if p.name}
    given = {key.replace("-", "_"): value for key, value in _content(path).items()}
    if unknown := [key for key in given if key not in options or key == "config"]:
        known = ", ".join(sorted(dashed(n) for n in options if n != "config"))
        raise typer.BadParameter(f"{path} sets {unknown[0]!r}, which is no option here. The options are: {known}.")
    context.default_map = {key: _typed(options[key], value) for key, value in given.items()}
    return path


def _content(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} must hold options by name.")
    return content


def _typed(option: Any, value: Any) -> Any:
    """A value as somebody would type it, so that both are read alike; a null is nothing where an option takes that, else not given."""
    if value is None:
        return "none" if option.metavar == NUMBER_OR_NONE else None
    if option.multiple:
        return _listed(value)
    return value if getattr(option, "is_flag", False) else str(value)


def _listed(value: Any) -> list[str]:
    """The values of an option that may be repeated: a list, one value, or a table of values by name."""
    if isinstance(value, Mapping):
        return [f"{name}={','.join(map(str, one)) if isinstance(one, list) else one}" for name, one in value.items()]
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
