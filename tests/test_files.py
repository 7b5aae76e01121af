"""Files that are whole or untouched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secateur.files import replace_file


def test_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    replace_file(tmp_path / "a.json", "new ä")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new ä"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
