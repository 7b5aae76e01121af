"""Starting several processes that know of each other, as torchrun does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
WORKER = TESTS / "tune" / "worker.py"
PATIENCE_S = 120


def run_together(kind: str, out: Path, count: int, worker: Path = WORKER) -> list[Path]:
    """Run a kind of work in so many processes, and return what each of them wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    files = [out / f"{kind}-{count}-{rank}.pt" for rank in range(count)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(worker), kind, str(file)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    try:
        told = [each.communicate(timeout=PATIENCE_S)[1] for each in started]
    finally:
        for each in started:
            each.kill()
    assert not any(each.returncode for each in started), "\n".join(told)
    return files
