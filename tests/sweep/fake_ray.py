"""As much of Ray as a sweep asks for: what is sent is pickled, and tasks end in the reverse of their order."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


def read(content: bytes) -> Any:
    return pickle.loads(content)  # noqa: S301 - written a line before


@dataclass
class FakeRay:
    """A module of the name."""

    running: bool = False
    log: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **options: Any) -> None:
        self.log.append("init")
        self.running = True

    def shutdown(self) -> None:
        self.log.append("shutdown")
        self.running = False

    def put(self, value: Any) -> bytes:
        return pickle.dumps(value)

    def remote(self, work: Callable[..., Any]) -> Any:
        def begin(shared: bytes, item: Any) -> bytes:
            self.log.append("task")
            return pickle.dumps(work(read(shared), read(pickle.dumps(item))))

        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=begin)

        return SimpleNamespace(options=options)

    def wait(self, tasks: list[bytes], *, num_returns: int) -> tuple[list[bytes], list[bytes]]:
        return tasks[-num_returns:], tasks[:-num_returns]

    def get(self, tasks: list[bytes]) -> list[Any]:
        assert self.running
        return [read(task) for task in tasks]
