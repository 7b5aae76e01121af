"""Options out of a file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from secateur.cli.bundles import dashed


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of a TOML or JSON file for options that are not on the command line."""
    if path is None:
        return None
    names = {p.name for p in context.command.params}
    given = {key.replace("-", "_"): value for key, value in _content(path).items()}
    if unknown := [key for key in given if key not in names or key == "config"]:
        known = ", ".join(sorted(dashed(n) for n in names if n and n != "config"))
        raise typer.BadParameter(f"{path} sets {unknown[0]!r}, which is no option here. The options are: {known}.")
    many = {p.name for p in context.command.params if p.multiple}
    context.default_map = {key: _listed(value) if key in many else value for key, value in given.items()}
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


def _listed(value: Any) -> list[str]:
    """The values of an option that may be repeated: a list, one value, or a table of values by name."""
    if isinstance(value, Mapping):
        return [f"{name}={','.join(map(str, one)) if isinstance(one, list) else one}" for name, one in value.items()]
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]
