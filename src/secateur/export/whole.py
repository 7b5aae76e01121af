"""A directory that is there with all its files, or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import FileError


@contextmanager
def whole_directory(path: Path, *, force: bool, mark: str) -> Iterator[Path]:
    """Yield a fresh directory that becomes ``path`` when all went well; after any failure everything is as before.

    A directory that exists is refused unless ``force``, and replaced only if it is empty or holds the file ``mark``, so
    that nobody's other files are removed.
    """
    target = path.resolve()
    _check_free(target, force, mark)
    try:
        made = _make_parents(target)
        fresh = _sibling(target)
        fresh.mkdir()
    except OSError as error:
        raise FileError(f"Cannot write to {path}: {error}.") from error
    try:
        yield fresh
        _check_free(target, force, mark)
        _swap_in(fresh, target)
    except OSError as error:
        raise FileError(f"Cannot write {path}: {error}. Nothing was changed.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)


def _check_free(target: Path, force: bool, mark: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileError(f"{target} is a file; choose another path for the directory.")
    if not force:
        raise FileError(f"{target} exists already; choose another path, or force replacing it.")
    if not (target / mark).is_file() and any(target.iterdir()):
        raise FileError(f"{target} holds other files and no {mark}, so it is not replaced even by force; choose another path.")


def _make_parents(target: Path) -> list[Path]:
    """Make the directories above, and return those that were not there, innermost first."""
    missing = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(made: list[Path]) -> None:
    for directory in made:
        with suppress(OSError):
            directory.rmdir()


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}")


def _swap_in(fresh: Path, target: Path) -> None:
    """Put the fresh directory in place; the old one is removed only after that."""
    old = _sibling(target) if target.exists() else None
    try:
        if old is not None:
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        if old is not None and old.exists() and not target.exists():
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
