"""How long single operators take at given shapes on this machine: measured once, kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from secateur.files import replace_file
from secateur.measure.latency import torch_threads
from secateur.measure.operation import Operation
from secateur.score.progress import with_progress
from secateur.score.ranks import of_first

FORMAT = "secateur-layer-times/1"


@dataclass(frozen=True)
class Machine:
    """What times depend on beside the operators and their shapes."""

    runtime: str
    device: str
    threads: int

    @property
    def file(self) -> str:
        """The name of the file of its times."""
        return f"{hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]}.json"


class Timer(Protocol):
    """Takes the time of one operator, in milliseconds; ``None`` for what it does not run."""

    @property
    def machine(self) -> Machine: ...
    def __call__(self, operation: Operation) -> float | None: ...


@runtime_checkable
class Preparing(Protocol):
    """A timer that does for many operators at once what each of them needs before it can be timed."""

    def prepared(self, operations: Sequence[Operation]) -> Timer:
        """A timer of these operators."""
        ...


@dataclass(frozen=True)
class Repeats:
    """How often an operator is called: so many calls are timed after others to warm up."""

    clock: Callable[[], float] = time.perf_counter
    warmup: int = 3
    repeats: int = 15
    budget_s: float = 0.03
    """Stop before so many repeats, but not before a third of them, once they have taken so long."""

    def fastest_ms(self, call: Callable[[], object]) -> float:
        """Milliseconds of the fastest call."""
        for _ in range(self.warmup):
            call()
        return 1e3 * min(self._seconds(call))

    def _seconds(self, call: Callable[[], object]) -> list[float]:
        end = self.clock() + self.budget_s
        found: list[float] = []
        while len(found) < self.repeats and (len(found) < self.repeats // 3 or self.clock() < end):
            begin = self.clock()
            call()
            found.append(self.clock() - begin)
        return found


@dataclass(frozen=True)
class EagerTimer:
    """Times operators as torch runs them one by one: the fastest of some calls after others to warm up.

    The fastest, for what else the machine does only adds to a call by itself, and not always as much; whole models are compared by medians.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int | None = None
    repeats: Repeats = field(default_factory=Repeats)

    @property
    def machine(self) -> Machine:
        """Where, with what and with how many threads it measures."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor_name()
        return Machine(f"torch {torch.__version__}", f"{self.device.type} {name}", self.threads or torch.get_num_threads())

    @torch.no_grad()
    def __call__(self, operation: Operation) -> float | None:
        """Milliseconds of the fastest call; ``None`` for an operator that does not run on made-up values."""
        with torch.random.fork_rng(devices=[]), torch_threads(self.threads):
            args, kwargs = operation.arguments(self.device)

            def call() -> None:
                operation.target(*args, **kwargs)
                if self.device.type != "cpu":
                    torch.accelerator.synchronize(self.device)

            try:
                return self.repeats.fastest_ms(call)
            except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
                return None


@dataclass(eq=False)
class LayerTimes:
    """The times of operators by their shapes: a table that grows by what it is asked for, and lies in a file between runs.

    A file is one machine's: device, runtime with version, and threads make its name; operator, data types and shapes, the batch among them,
    make the key of each time. A file that cannot be read is started anew, and one that cannot be written is done without; ``notes`` say so.
    Under ``torchrun`` all processes have the times of the first.

    >>> import torch, secateur as sc
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> graph = sc.study(model, torch.randn(1, 4)).capture.graph
    >>> operations = [found for node in graph.nodes if (found := Operation.of(node))]
    >>> len(LayerTimes(EagerTimer(), folder=None)(operations))
    2
    """

    timer: Timer
    folder: Path | None = field(default_factory=lambda: cache_folder())
    """Where files are; nowhere if ``None``."""
    notes: list[str] = field(default_factory=list)
    measured: int = 0
    """How many times were taken, rather than read."""
    _known: dict[str, float | None] = field(default_factory=dict)
    _kept: dict[str, float | None] | None = None

    def __call__(self, operations: Iterable[Operation]) -> list[float | None]:
        """The time of each operation in milliseconds, ``None`` for what does not run; what is not known yet is measured now."""
        wanted = list(operations)
        new = {each.key: each for each in wanted if each.key not in self._known}
        if new:
            self._known |= of_first(self._looked_up(list(new.values())))
        return [self._known[each.key] for each in wanted]

    def _looked_up(self, operations: Sequence[Operation]) -> dict[str, float | None]:
        if self._kept is None:
            self._kept = self._read()
        missing = [each for each in operations if each.key not in self._kept]
        timer = self.timer.prepared(missing) if isinstance(self.timer, Preparing) else self.timer
        for each in with_progress(missing, "Timing layers at several widths", len(missing)):
            self._kept[each.key] = timer(each)
        if missing:
            self.measured += len(missing)
            self._write()
        return {each.key: self._kept[each.key] for each in operations}

    @property
    def path(self) -> Path | None:
        """The file of this machine's times."""
        return None if self.folder is None else self.folder / self.timer.machine.file

    def _read(self) -> dict[str, float | None]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT or content["machine"] != asdict(self.timer.machine):
                raise ValueError("it is of another format or machine")
            return {str(key): None if value is None else float(value) for key, value in content["milliseconds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.notes.append(f"the layer times in {self.path} cannot be read ({type(error).__name__}), so layers are timed anew")
            return {}

    def _write(self) -> None:
        """Replace the file at once, with what others have put there meanwhile."""
        if self.path is None:
            return
        noted = len(self.notes)
        times = {**self._read(), **(self._kept or {})}
        del self.notes[noted:]
        content = {"format": FORMAT, "machine": asdict(self.timer.machine), "milliseconds": times}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(content, indent=0))
        except OSError as error:
            self.notes.append(f"layer times are not kept: {self.path} cannot be written ({error.strerror})")
            self.folder = None


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a user's caches go, in a folder of our own: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "secateur" / "layer-times"


def processor_name() -> str:
    """What the system calls its processor, and how many there are."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return f"{found[1] if found else platform.processor() or platform.machine()} x {os.cpu_count()}"
