"""Starting several processes that know of each other, as torchrun does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PATIENCE_S = 180


def run_together(worker: Path, out: Path, count: int) -> list[Path]:
    """Run a script in so many processes, each with the name of a file that it is to write, and return these names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    files = [out / f"{worker.stem}-{rank}.pt" for rank in range(count)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    started = []
    for rank, file in enumerate(files):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen([sys.executable, str(worker), str(file)], env=own, stderr=subprocess.PIPE, text=True))
    try:
        told = [each.communicate(timeout=PATIENCE_S)[1] for each in started]
    finally:
        for each in started:
            each.kill()
    assert not any(each.returncode for each in started), "\n".join(told)
    return files
