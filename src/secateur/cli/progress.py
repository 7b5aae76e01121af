"""A sign of life on the terminal for work that takes over two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE_S = 2.0


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal, beside standard output, what goes on and for how long, once it has gone on for two seconds."""
    console = Console(stderr=True)
    shown = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True)
    shown.add_task(what, total=None)
    timer = Timer(PATIENCE_S, shown.start)
    timer.daemon = True
    if console.is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if shown.live.is_started:
            shown.stop()
