"""The report as one page that needs nothing else."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from secateur.report import figures, numbers
from secateur.report.provenance import provenance
from secateur.report.reported import Reported


def html_report(result: Reported, *, command: str | None = None) -> str:
    """One self-contained HTML page: it fetches nothing, runs no script, and prints.

    >>> Path("report.html").write_text(html_report(result), encoding="utf-8")  # doctest: +SKIP
    """
    page = _environment().get_template("report.html")
    return page.render(result=result, say=numbers, facts=figures, provenance=provenance(command))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("secateur.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
