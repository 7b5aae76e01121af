"""Everything that Secateur raises, in one tree.

    SecateurError
    ├── UsageError            what the caller gave cannot be used as it stands
    │   ├── ModelError        the model or its example inputs do not run
    │   ├── SelectionError    a layer name, ratio or index list that the model cannot follow
    │   ├── PlanError         a plan that belongs to another model, or is damaged
    │   ├── FileError         a file that is missing, damaged, or in the way
    │   └── MissingExtraError an optional package that is not installed
    ├── CaptureError          no way of capturing the model's computation worked
    ├── RewriteError          an operator met a smaller tensor in a way that has no rewrite
    ├── ProofError            the smaller model differs from the masked dense model
    └── TrainingError         training has gone wrong and cannot go on

Each message says what was found, where, and what to do.
"""

from __future__ import annotations


class SecateurError(Exception):
    """Base of all errors that Secateur raises on purpose."""


class UsageError(SecateurError):
    """What the caller gave cannot be used as it stands."""


class ModelError(UsageError):
    """The model, or the example inputs given with it, do not run."""


class SelectionError(UsageError):
    """A layer name, ratio or list of indices that the model cannot follow."""


class PlanError(UsageError):
    """A plan that belongs to another model, or that is damaged."""


class FileError(UsageError):
    """A file that is missing, damaged, or in the way."""


class MissingExtraError(UsageError):
    """An optional package is needed and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. Install it with: pip install 'secateur[{extra}]'"
        )
        self.package = package
        self.extra = extra


class CaptureError(SecateurError):
    """No way of capturing the model's computation worked."""


class RewriteError(SecateurError):
    """An operator met a smaller tensor in a way that has no rewrite."""


class ProofError(SecateurError):
    """The smaller model differs from the masked dense model."""

    def __init__(self, message: str, *, node: str | None = None, error: float | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.error = error


class TrainingError(SecateurError):
    """Training has gone wrong and cannot go on."""
