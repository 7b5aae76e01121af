"""The command that shows the report of a saved result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.text import Text

from secateur.cli.bundles import argument
from secateur.cli.command import Answer
from secateur.cli.saved_report import SavedReport, report_content
from secateur.report import console_report


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Report."""

    directory: Path = field(metadata=argument("DIRECTORY"))
    """What prune, apply or compress wrote."""
    open: bool = False
    """Open the page in a browser."""


def report(reporting: Reporting) -> Answer:
    """Print the report of a saved result, and where its page is.

    Example: secateur report out --open
    """
    content = report_content(reporting.directory)
    page = reporting.directory / "report.html"
    if reporting.open:
        typer.launch(page.resolve().as_uri())
    return Answer([console_report(SavedReport.of(content)), Text(f"The page is {page}")], content | {"page": str(page)})
