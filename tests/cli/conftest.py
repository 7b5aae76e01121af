"""Commands as a user types them, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secateur.cli import app

IMAGE = ("--input", "2x3x4x4")


@dataclass(frozen=True)
class Ran:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Secateur = Callable[..., Ran]


def _run(*words: object) -> Ran:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def secateur() -> Secateur:
    return _run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, cut to half, saved; tests do not change it."""
    path = tmp_path_factory.mktemp("saved") / "out"
    done = _run("prune", "cli.models:convnet", *IMAGE, "--ratio", 0.5, "--out", path, "--no-latency", "--no-onnx")
    assert done.code == 0, done.err
    return path
