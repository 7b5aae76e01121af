"""Where results go."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import typer

from secateur.cli.bundles import option
from secateur.cli.config import read_config
from secateur.errors import FileError


@dataclass(frozen=True)
class Destination:
    """Results."""

    out: Path | None = field(default=None, metadata=option(metavar="DIRECTORY"))
    """Write the smaller model, its plan and its report there."""
    force: bool = False
    """Replace what is there already."""
    onnx: bool | None = field(default=None, metadata=option("--onnx/--no-onnx"))
    """Write model.onnx; by default where the extra onnx is installed."""

    def directory(self) -> Path:
        """The directory, if it was given and is free."""
        if self.out is None:
            raise typer.BadParameter("Say where the result goes: --out DIRECTORY.")
        refuse_existing(self.out, self.force)
        return self.out


@dataclass(frozen=True)
class Config:
    """Options from a file."""

    config: Path | None = field(default=None, metadata=option(metavar="FILE", callback=read_config, is_eager=True))
    """A TOML or JSON file of options by their names; the command line goes first."""


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse a place that is taken before any work is done."""
    if path.exists() and not force:
        raise FileError(f"{path} exists already. Choose another place, or replace it with --force.")


def command_line() -> str:
    """How this program was called."""
    called = Path(sys.argv[0]).name
    return shlex.join([*(["python", "-m", "secateur"] if called == "__main__.py" else [called]), *sys.argv[1:]])
