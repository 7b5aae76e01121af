"""The command line: one file a command, options out of the settings classes."""

from __future__ import annotations

import typer

from secateur.cli.apply import apply
from secateur.cli.bench import bench
from secateur.cli.command import register
from secateur.cli.compress import compress
from secateur.cli.decompose import decompose
from secateur.cli.demo import demo
from secateur.cli.finetune import finetune
from secateur.cli.layers import layers
from secateur.cli.prove import prove
from secateur.cli.prune import prune
from secateur.cli.report import report
from secateur.cli.sensitivity import sensitivity
from secateur.cli.sweep import sweep

app = typer.Typer(
    name="secateur",
    help="Make trained neural networks smaller by cutting channels and factorizing layers, and prove that nothing else changed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (layers, prune, decompose, apply, compress, sweep, sensitivity, finetune, prove, bench, report, demo):
    register(app, command)


def main() -> None:
    """Run the command line."""
    app()
