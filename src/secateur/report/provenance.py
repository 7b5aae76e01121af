"""Where a report comes from: versions, machine, command and date."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version

import torch


def provenance(command: str | None) -> dict[str, str]:
    """Versions, machine and date, with the command where there was one."""
    return {
        "command": command or "called from Python",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "secateur": version("secateur"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
