"""A progress bar for work that takes its time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
PATIENCE_S = 2.0


def with_progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Pass items on, and show a bar on a terminal once this has taken two seconds."""
    start = time.monotonic()
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(description, total=total)
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - start > PATIENCE_S:
                bar.start()
    finally:
        bar.stop()
