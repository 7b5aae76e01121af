"""What all commands have in common: options out of settings, one answer, one message for an error, and the exit code."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from secateur.cli.bundles import Bundle, Settings, Values
from secateur.errors import SecateurError


@dataclass(frozen=True)
class Answer:
    """What a command has to say, for people and for machines."""

    shown: Sequence[RenderableType]
    data: Mapping[str, Any] = field(default_factory=dict)


Work = Callable[..., Answer | Generator[RenderableType, None, Answer]]
"""A command: it answers at its end, and may tell how far it is before that."""


@dataclass(frozen=True)
class Output:
    """Output."""

    json: bool = False
    """Print one JSON document to standard output, and nothing else."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Command:
    """A function of settings objects as a function of options."""

    function: Work

    @cached_property
    def bundles(self) -> Mapping[str, Bundle]:
        """What each parameter of the function is made of."""
        hints = get_type_hints(self.function, include_extras=True)
        return {name: _bundle(hints[name]) for name in inspect.signature(self.function).parameters}

    def for_typer(self) -> Callable[..., None]:
        """A function with one parameter an option, as typer reads it."""

        def run(**values: Any) -> None:
            self.run(values)

        every = {p.name: p for bundle in (*self.bundles.values(), Settings(Output)) for p in bundle.parameters()}
        parameters = sorted(every.values(), key=lambda p: p.default is not inspect.Parameter.empty)
        run.__name__, run.__doc__ = self.function.__name__, self.function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    def run(self, values: Values) -> None:
        """Do the work, then print the answer; or print one message, and exit with 1."""
        output: Output = Settings(Output).build(values)
        console = Console(file=sys.stdout, quiet=output.json)
        with reported(debug=output.debug):
            # Whatever the user's code and torch's exporters print must not come between the lines of an answer.
            with redirect_stdout(sys.stderr):
                answer = self._work(values, console)
            if output.json:
                print(json.dumps(answer.data, indent=1, allow_nan=False))
            _print(answer.shown, console)

    def _work(self, values: Values, console: Console) -> Answer:
        work = self.function(**{name: bundle.build(values) for name, bundle in self.bundles.items()})
        if isinstance(work, Answer):
            return work
        while True:
            try:
                console.print(next(work))
            except StopIteration as end:
                answer: Answer = end.value
                return answer


def register(app: typer.Typer, function: Work) -> None:
    """Add a function to the app, as a command of the same name."""
    app.command(function.__name__)(Command(function).for_typer())


def _print(parts: Sequence[RenderableType], console: Console) -> None:
    for part in parts:
        console.print(part)


@contextmanager
def reported(*, debug: bool) -> Iterator[None]:
    """Turn errors into one message on standard error and the exit code 1; ``debug`` lets tracebacks through."""
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            yield
    except SecateurError as error:
        fail(str(error), error, debug=debug)
    except OSError as error:
        fail(f"The system refused: {error}.", error, debug=debug)
    except KeyboardInterrupt as error:
        fail("Interrupted.", error, debug=debug)
    except (typer.BadParameter, typer.Exit):
        raise
    except Exception as error:  # noqa: BLE001 - a user's model and torch raise anything
        fail(f"Unexpected {type(error).__name__}: {error}\nSee where it comes from with --debug.", error, debug=debug)


def fail(message: str, error: BaseException, *, debug: bool) -> None:
    """Say what went wrong, and leave."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), message))
    if debug:
        raise error
    raise typer.Exit(1) from error


def _bundle(hint: Any) -> Bundle:
    if get_origin(hint) is Annotated:
        found: Bundle = get_args(hint)[1]
        return found
    return Settings(hint)
