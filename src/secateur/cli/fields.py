"""What a settings class says of its fields: the sentence below each, its type, its default."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field
from typing import Any


def field_texts(cls: type) -> Mapping[str, str]:
    """The docstring below each field of a class and its bases, as plain text."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__[:-1]):
        texts |= _own_texts(each)
    return texts


def default_of(field: Field[Any]) -> Any:
    """The default of a field; :data:`dataclasses.MISSING` if it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def plain(text: str) -> str:
    """Text on one line, without the marks of a docstring."""
    unmarked = re.sub(r":\w+:`~?\.?([^`]*)`", r"\1", text).replace("``", "")
    return " ".join(unmarked.split())


def _own_texts(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = plain(text)
    return texts
